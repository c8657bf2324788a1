"""What a person reads while a run works: on a terminal, on a narrow one, and in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from distill import progress
from distill.progress import Bars, Lines, clock, losses


def test_lines_say_step_losses_speed_and_time_left_every_so_often(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    lines = Lines(stream, every=30)
    lines.begin("student-rte-seed0", 50, 10)
    for done in range(11, 22):
        now[0] += 5
        lines.advance(done, "loss 0.5000  90 tokens/s  teacher 81.6" if done % 5 == 0 else "")
    lines.end("score 65.1")
    # Six of forty steps took 30 s: 34 are left at 5 s each. The figures are the last that were logged.
    assert stream.getvalue().splitlines() == [
        "student-rte-seed0: continues at step 10 of 50",
        "student-rte-seed0: step 16 of 50, loss 0.5000  90 tokens/s  teacher 81.6, 3 min left",
        "student-rte-seed0: score 65.1 (55 s)",
    ]


@pytest.mark.parametrize("width", [40, 60, 120])
def test_a_bar_shows_its_figures_whole_at_any_width(width):
    stream = io.StringIO()
    bars = Bars(Console(file=stream, width=width, height=20, force_terminal=True, legacy_windows=False))
    bars.begin("student-cb-seed0", 40)
    bars.advance(10, "loss 0.3535 (labels 0.7034, sinkhorn 0.0021)  1,224 tokens/s  teacher 81.6")
    bars.advance(11)  # a step that is not logged leaves the figures standing
    shown = io.StringIO()
    Console(file=shown, width=width).print(bars._bars.get_renderable())
    text = shown.getvalue()
    words = [
        "loss",
        "0.3535",
        "(labels",
        "0.7034,",
        "sinkhorn",
        "0.0021)",
        "1,224",
        "tokens/s",
        "teacher",
        "81.6",
    ]
    assert [word for word in text.split() if word in words] == words
    assert "11/40" in text
    assert all(len(line) <= width for line in text.splitlines())
    bars.end("score 65.1")
    assert "student-cb-seed0" in stream.getvalue()
    assert "score 65.1" in stream.getvalue()


def test_losses_are_shown_by_term():
    one = {"step": 1, "loss": 0.25, "loss/labels": 0.25, "gradient_norm": 1.0}
    assert losses(one) == "0.2500"
    assert losses(one | {"loss/forward_kl": 0.125}) == "0.2500 (labels 0.2500, forward_kl 0.1250)"


def test_a_clock_for_people():
    assert [clock(s) for s in (0.4, 99.4, 100, 5940, 6000, 11100)] == [
        "0 s", "99 s", "2 min", "99 min", "1 h 40 min", "3 h 05 min",
    ]  # fmt: skip
