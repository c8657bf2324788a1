"""The charts: their marks stand where the figures say."""

from __future__ import annotations

import re

import pytest

from distill.report.charts import Line, _ticks, layer_map, line_chart, reliability, thinned


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (0, 7.3, [0, 2, 4, 6, 8]), (0, 0.031, [0, 0.01, 0.02, 0.03, 0.04]),
     (-0.4, 1, [-0.5, 0, 0.5, 1]), (0, 0, [0, 0.25, 0.5, 0.75, 1]), (0, 12_000, [0, 5000, 10_000, 15_000])],
)  # fmt: skip
def test_ticks_are_round_and_cover_the_values(low, high, expected):
    assert _ticks(low, high) == pytest.approx(expected)


def test_a_long_log_is_shown_by_means():
    points = [(float(step), step % 2) for step in range(1, 1001)]
    found = thinned(points)
    assert 100 < len(found) <= 160
    assert found[0] == (pytest.approx(4.0), pytest.approx(4 / 7))
    assert sum(x for x, _ in found[:-1]) / len(found[:-1]) == pytest.approx(497.5, abs=4)
    assert thinned(points[:160]) == points[:160]
    assert thinned([]) == []


def test_a_curve_goes_through_its_points():
    chart = str(line_chart([Line("a", "#000", [(0, 0.0), (50, 2.0), (100, 4.0)])], title="loss"))
    (places,) = re.findall(r'polyline points="([^"]*)"', chart)
    points = [tuple(map(float, place.split(","))) for place in places.split()]
    assert points == [(46, 146), (197, 86), (348, 26)]


def test_values_that_are_not_finite_are_not_drawn():
    chart = str(
        line_chart([Line("a", "#000", [(0, 1.0), (1, float("nan")), (2, float("inf"))])], title="loss")
    )
    assert "nan" not in chart
    assert "inf" not in chart
    assert line_chart([Line("a", "#000", [(0, float("nan"))])], title="loss") == ""


def test_marks_of_a_calibrated_model_stand_on_the_diagonal():
    bins = [{"n": 5, "confidence": c, "accuracy": c} for c in (0.55, 0.75, 0.95)]
    chart = str(reliability({"student": {"n": 15, "bins": bins}}, "RTE"))
    marks = [tuple(map(float, each)) for each in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)]
    assert len(marks) == 3
    assert all((x - 46) / 250 == pytest.approx((276 - y) / 250, abs=1e-3) for x, y in marks)


@pytest.mark.parametrize(("kept", "total"), [((0, 2, 5), 6), (tuple(range(0, 48, 2)), 48), ((0, 0, 1), 2)])
def test_every_layer_has_its_cell_and_its_line(kept, total):
    chart = str(layer_map(kept, total, "layers"))
    assert chart.count("<rect") == total + len(kept)
    assert chart.count("<line") == len(kept)
    edges = [
        float(x) + float(w) for x, w in re.findall(r'<rect x="([\d.-]+)" y="\d+" width="([\d.]+)"', chart)
    ]
    assert all(0 <= edge <= 360 for edge in edges)
