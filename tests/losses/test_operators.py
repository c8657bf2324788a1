"""Losses multiply by numbers and add up to a flat total; wrong fields are named."""

import dataclasses
import math
from typing import get_args

import pytest
import torch

from distill.losses import (
    TAID,
    AdaptiveKL,
    AnyLoss,
    ForwardKL,
    GhostTokenKL,
    JensenShannon,
    Labels,
    MultiLevelTransport,
    ReverseKL,
    SampledTargets,
    Sinkhorn,
    SkewKL,
    SkewReverseKL,
    SortedTransport,
    Total,
    TotalVariation,
)


def test_a_factor_multiplies_the_weight_and_leaves_the_original():
    loss = Sinkhorn(epsilon=0.2, weight=0.5)
    assert (0.8 * loss).weight == (loss * 0.8).weight == 0.4
    assert (2 * loss).epsilon == 0.2
    assert loss.weight == 0.5


def test_calling_weighs_and_values_do_not(golden_rows):
    loss = 0.25 * ForwardKL()
    assert torch.equal(loss(golden_rows), 0.25 * loss.values(golden_rows))
    assert torch.equal(loss.values(golden_rows), ForwardKL()(golden_rows))
    values, diagnostics = loss.evaluate(golden_rows)
    assert torch.equal(values, loss.values(golden_rows))
    assert diagnostics == {}


def test_sums_are_flat_however_they_are_written(golden_rows):
    kl, labels, sinkhorn = ForwardKL(), Labels(), Sinkhorn()
    left, right = (kl + labels) + sinkhorn, kl + (labels + sinkhorn)
    assert left == right == Total([kl, labels, sinkhorn])
    assert hash(left) == hash(right)
    assert list(left) == [kl, labels, sinkhorn]
    assert len(left) == 3
    assert repr(kl + labels) == f"{kl!r} + {labels!r}"
    torch.testing.assert_close(
        left(golden_rows), kl(golden_rows) + labels(golden_rows) + sinkhorn(golden_rows)
    )


def test_a_factor_reaches_every_term(golden_rows):
    total = 0.5 * (0.8 * ForwardKL() + 0.2 * Labels()) * 2
    assert [term.weight for term in total] == [0.8, 0.2]
    expected = 0.8 * ForwardKL()(golden_rows) + 0.2 * Labels()(golden_rows)
    torch.testing.assert_close(total(golden_rows), expected, rtol=1e-14, atol=0)


def test_terms_are_evaluated_unweighted_under_their_names(golden_rows):
    total = (
        0.1 * ForwardKL() + 0.2 * Sinkhorn() + 0.3 * ForwardKL(temperature=2.0) + ForwardKL(temperature=3.0)
    )
    assert total.names == ("forward_kl", "sinkhorn", "forward_kl_2", "forward_kl_3")
    evaluation = total.evaluate(golden_rows)
    assert list(evaluation) == list(total.names)
    assert torch.equal(evaluation["forward_kl_2"][0], ForwardKL(temperature=2.0)(golden_rows))
    assert set(evaluation["sinkhorn"][1]) == {"marginal_error", "converged"}
    assert torch.equal(total.combine(evaluation), total(golden_rows))


def test_a_total_says_what_its_terms_need():
    assert (ForwardKL() + Labels()).additive
    assert not (ForwardKL() + Sinkhorn()).additive
    assert Total([Labels()]).needs_teacher is False
    assert (Labels() + ReverseKL()).needs_teacher
    assert (Sinkhorn(group_size=8) + ForwardKL()).group_size == 8
    assert (Labels() + ForwardKL()).group_size is None
    with pytest.raises(ValueError, match="must share one group_size, got 16 and 8"):
        Sinkhorn(group_size=8) + Sinkhorn(group_size=16)


def test_a_total_cannot_be_changed_or_built_of_anything_else():
    total = ForwardKL() + Labels()
    with pytest.raises(AttributeError, match="cannot be changed"):
        total.terms = ()
    with pytest.raises(ValueError, match="at least one loss"):
        Total([])
    with pytest.raises(TypeError, match="a term must be a loss, got str"):
        Total(["kl"])
    for other in (1, "kl", None):
        with pytest.raises(TypeError):
            ForwardKL() + other
        with pytest.raises(TypeError):
            total + other
    for factor in ("2", None, True):
        with pytest.raises(TypeError):
            ForwardKL() * factor
        with pytest.raises(TypeError):
            total * factor


@pytest.mark.parametrize("kind", get_args(AnyLoss))
def test_losses_are_frozen_and_compare_by_their_fields(kind):
    loss = kind()
    with pytest.raises(dataclasses.FrozenInstanceError):
        loss.weight = 2.0
    assert loss == kind()
    assert loss != 2 * kind()
    assert hash(loss) == hash(kind())
    with pytest.raises(TypeError):
        kind(2.0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ForwardKL(temperature=-1), "temperature must be a positive finite number, got -1"),
        (lambda: ForwardKL(temperature=0), "temperature must be a positive finite number, got 0"),
        (lambda: ReverseKL(temperature=math.nan), "temperature must be a finite number, got nan"),
        (lambda: ReverseKL(temperature=math.inf), "temperature must be a finite number, got inf"),
        (lambda: ForwardKL(scale=-0.5), "scale must be a finite number of at least 0, got -0.5"),
        (
            lambda: ForwardKL(scale="squared"),
            "scale must be a number or 'temperature_squared', got 'squared'",
        ),
        (lambda: ForwardKL(weight=-1), "weight must be a finite number of at least 0, got -1"),
        (lambda: -1 * Labels(), "weight must be a finite number of at least 0, got -1"),
        (lambda: ForwardKL(kind="reverse_kl"), "kind must be 'forward_kl', got 'reverse_kl'"),
        (lambda: JensenShannon(beta=1.5), "beta must lie between 0 and 1, got 1.5"),
        (lambda: SkewKL(skew=1.5), "skew must lie between 0 and 1, got 1.5"),
        (lambda: SkewKL(skew=1), "skew must be below 1, where one side is compared with itself"),
        (lambda: SkewReverseKL(skew=1.0), "skew must be below 1, where one side is compared with itself"),
        (lambda: AdaptiveKL(head=2), "head must lie between 0 and 1, got 2"),
        (lambda: GhostTokenKL(kept=0), "kept must be at least 1, got 0"),
        (lambda: SampledTargets(samples=0), "samples must be at least 1, got 0"),
        (lambda: SampledTargets(power=0), "power must be a positive finite number, got 0"),
        (lambda: TAID(t=1.5), "t must lie between 0 and 1, got 1.5"),
        (lambda: TAID(start=0.9, end=0.5), "end must not be below start, got 0.5 and 0.9"),
        (lambda: TAID(rate=-1), "rate must be a finite number of at least 0, got -1"),
        (lambda: TAID(trend=math.nan), "trend must be a finite number, got nan"),
        (lambda: Labels(smoothing=-0.1), "smoothing must lie between 0 and 1, got -0.1"),
        (lambda: Sinkhorn(epsilon=-0.1), "epsilon must be a finite number of at least 0, got -0.1"),
        (lambda: Sinkhorn(iterations=0), "iterations must be at least 1, got 0"),
        (lambda: Sinkhorn(group_size=0), "group_size must be at least 1, got 0"),
        (lambda: Sinkhorn(temperature=0.0), "temperature must be a positive finite number, got 0.0"),
        (lambda: Sinkhorn(tolerance=0), "tolerance must be a positive finite number, got 0"),
        (lambda: Sinkhorn(cost="l2"), "cost must be one of 'l1', .*, got 'l2'"),
        (
            lambda: Sinkhorn(gradient="unrolled"),
            "gradient must be one of 'exact', 'envelope', 'implicit', got 'unrolled'",
        ),
        (lambda: Sinkhorn(memory="none"), "memory must be one of 'fast', 'low', got 'none'"),
        (
            lambda: Sinkhorn(memory="low", cost="cosine"),
            "memory 'low' streams the costs 'l1' and 'total_variation', got 'cosine'",
        ),
        (
            lambda: Sinkhorn(solver="pot", epsilon=0, gradient="implicit"),
            "gradient 'implicit' needs an epsilon above 0, got 0",
        ),
        (lambda: SortedTransport(kept=0), "kept must be at least 1, got 0"),
        (lambda: SortedTransport(temperature=0), "temperature must be a positive finite number, got 0"),
        (lambda: MultiLevelTransport(kept=0), "kept must be at least 1, got 0"),
        (lambda: MultiLevelTransport(epsilon=0), "epsilon must be a positive finite number, got 0"),
        (lambda: MultiLevelTransport(sequence=-1), "sequence must be a finite number of at least 0, got -1"),
        (
            lambda: MultiLevelTransport(logarithmic=-1),
            "logarithmic must be a finite number of at least 0, got -1",
        ),
        (lambda: Sinkhorn(solver="ott"), "solver must be one of 'distill', 'pot', 'geomloss', got 'ott'"),
    ],
)
def test_a_field_out_of_range_is_named_with_what_was_found(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ForwardKL(temperature="2"), "temperature must be a number, got '2'"),
        (lambda: ForwardKL(temperature=True), "temperature must be a number, got True"),
        (lambda: Sinkhorn(iterations=2.5), "iterations must be a whole number, got 2.5"),
        (lambda: Sinkhorn(iterations=True), "iterations must be a whole number, got True"),
    ],
)
def test_a_field_of_the_wrong_type_is_named_with_what_was_found(build, message):
    with pytest.raises(TypeError, match=message):
        build()


def test_bounds_are_reached_by_the_farthest_rows():
    from distill.losses import Rows

    far = Rows(student=torch.tensor([[0.0, -torch.inf]]), teacher=torch.tensor([[-torch.inf, 0.0]]))
    for loss in (
        JensenShannon(),
        JensenShannon(beta=0.2, scale=3.0),
        SkewKL(),
        SkewReverseKL(skew=0.3, scale=2.0),
        TotalVariation(scale=2.0),
        Sinkhorn(),
        Sinkhorn(cost="cosine"),
    ):
        assert float(loss(far)) == pytest.approx(loss.bound, rel=1e-5)
    assert SkewKL(skew=0).bound == SkewReverseKL(skew=0).bound == math.inf
    assert JensenShannon(beta=0).bound == ForwardKL().bound == math.inf
