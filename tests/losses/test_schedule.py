"""TAID's schedule: as published, and the same after an interruption, to the last bit."""

import itertools
import json
import math
from dataclasses import asdict

import pytest

from distill.losses import TAID, ForwardKL, Labels


def published(losses: list[float], start: float = 0.4, end: float = 1.0) -> list[float]:
    """The schedule written as its authors' code executes it: t after each step."""
    t, momentum, previous, seen = start, 0.0, None, []
    for step, loss in enumerate(losses, start=1):
        delta = 0.0
        if previous is not None:
            relative = (previous - loss) / (previous + 1e-15)
            momentum = 0.99 * momentum + 0.01 * relative
            delta = 5e-4 * (1 / (1 + math.exp(-momentum))) * (1 - t)
        t = min(end, max(start + (end - start) * step / len(losses), t + delta))
        previous = loss
        seen.append(t)
    return seen


def falling_losses(steps: int) -> list[float]:
    return [2.0 / (1 + 0.01 * step) + 0.2 + 0.1 * math.sin(step) for step in range(steps)]


@pytest.mark.parametrize("steps", [1, 50, 20_000])
def test_the_schedule_is_the_published_one(steps):
    losses, loss, seen = falling_losses(steps), TAID(), []
    for step, value in enumerate(losses, start=1):
        loss = loss.advance(value, progress=step / steps)
        seen.append(loss.share)
    assert seen == pytest.approx(published(losses), rel=1e-12)
    assert seen[-1] == 1.0
    assert all(0.4 <= earlier <= later for earlier, later in itertools.pairwise(seen))
    if steps == 20_000:  # a long run lets the trend overtake the straight line
        assert seen[steps // 4] > 0.4 + 0.6 / 4 + 0.05


def test_an_interrupted_schedule_goes_on_to_the_last_bit():
    losses, loss, resumed = falling_losses(200), 0.5 * TAID(), 0.5 * TAID()
    for step, value in enumerate(losses, start=1):
        loss = loss.advance(value, progress=step / 200)
        resumed = TAID(**json.loads(json.dumps(asdict(resumed)))).advance(value, progress=step / 200)
        assert resumed == loss


def test_advancing_changes_nothing_but_returns_the_next_loss():
    loss = TAID(temperature=2.0)
    later = loss.advance(1.0, progress=0.5)
    assert loss == TAID(temperature=2.0)
    assert (later.t, later.previous, later.temperature) == (0.7, 1.0, 2.0)
    assert ForwardKL().advance(1.0, progress=0.5) == ForwardKL()
    with pytest.raises(ValueError, match=r"progress must lie between 0 and 1, got 1\.5"):
        loss.advance(1.0, progress=1.5)


def test_a_total_advances_each_term_by_its_own_value():
    total = 0.5 * TAID() + Labels() + TAID(start=0.2)
    assert total.scheduled
    assert not (Labels() + ForwardKL()).scheduled
    later = total.advance({"taid": 1.0, "labels": 3.0, "taid_2": 2.0}, progress=0.5)
    assert [getattr(term, "previous", None) for term in later] == [1.0, None, 2.0]
    assert [getattr(term, "t", None) for term in later] == [0.7, None, pytest.approx(0.6)]
    assert [term.weight for term in later] == [0.5, 1.0, 1.0]


def test_a_term_that_was_not_looked_at_stays_as_it_is():
    total = 0.5 * TAID() + Labels() + 2 * TAID(start=0.2)
    assert total.against_teacher == 0.5 * TAID() + 2 * TAID(start=0.2)
    assert total.against_teacher.names == ("taid", "taid_2")
    means = {"taid": 1.0, "taid_2": 2.0}
    assert total.advance(means, progress=0.5) == total.advance(means | {"labels": 3.0}, progress=0.5)
    assert total.advance({"taid": 1.0}, progress=0.5).terms[2] == total.terms[2]
    with pytest.raises(ValueError, match="at least one loss"):
        _ = (Labels() + Labels(smoothing=0.1)).against_teacher
