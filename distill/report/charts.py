"""The charts of report.html: inline SVG as wide as a phone, without scripts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from distill.report.numbers import Numbers
from distill.report.plot import LOOKS

WIDTH = 360  # as wide as the text of a phone, so that letters keep their size
MOST_POINTS = 160
# Okabe and Ito's, which colour-blind people tell apart; roles have theirs.
COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: for the legend.
        colour: of the curve.
        points: x and y, in the order of x.
    """

    name: str
    colour: str
    points: Sequence[tuple[float, float]]


def line_chart(lines: Sequence[Line], *, title: str, percent: bool = False) -> Markup:
    """Curves over training steps, from zero up. Of more than 160 points each stands for the mean of several."""
    points = [point for line in lines for point in line.points if math.isfinite(point[1])]
    if not points:
        return Markup("")
    right = max(x for x, _ in points) or 1
    low, high = min(0.0, *(y for _, y in points)), 1.0 if percent else max(y for _, y in points)
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    box = _Box(left=46, top=26, width=WIDTH - 58, height=120, x=(0, right), y=(low, high))
    parts = [_text(0, 14, title, "start", "title")]
    for tick in ticks:
        label = f"{tick:.0%}" if percent else f"{tick:g}"
        parts += [_rule(box.left, box.at_y(tick), box.left + box.width, box.at_y(tick))]
        parts += [_text(box.left - 5, box.at_y(tick) + 4, label, "end")]
    for tick in _ticks(0, right):
        if tick <= right and tick == int(tick):
            parts += [_text(box.at_x(tick), box.top + box.height + 16, f"{tick:,.0f}", "middle")]
    parts += [_text(box.left + box.width, box.top + box.height + 30, "step", "end")]
    for line in lines:
        places = " ".join(
            f"{box.at_x(x):.1f},{box.at_y(y):.1f}" for x, y in thinned(line.points) if math.isfinite(y)
        )
        parts += [
            Markup(
                '<polyline points="{}" fill="none" stroke="{}" stroke-width="1.8" stroke-opacity="0.8"/>'
            ).format(places, line.colour)
        ]
        if len(line.points) == 1:  # a line needs two
            x, y = line.points[0]
            parts += [_dot(box.at_x(x), box.at_y(y), 3, line.colour)]
    return _svg(parts, box.top + box.height + 36, title)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most 160 points: the means of as many neighbours as it takes."""
    size = -(-len(points) // MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), max(size, 1))]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def score_bars(
    numbers: Numbers, rows: Sequence[tuple[str, tuple[str | int, ...]]], roles: Sequence[str]
) -> Markup:
    """Scores in points with their 95 % intervals, a group of bars a row.

    Args:
        numbers: where they stand.
        rows: the name of each, and the path of its block below a role's.
        roles: which have bars.
    """
    blocks = [(role, numbers.value(role, *path) or {}) for _, path in rows for role in roles]
    highest = [
        max([block.get("score", 0), block.get("mean", 0), *(block.get("ci95") or [])]) for _, block in blocks
    ]
    ticks = [tick for tick in _ticks(0, min(max([*highest, 1]), 100)) if tick <= 100]
    box = _Box(
        left=6, top=8, width=WIDTH - 64, height=len(rows) * (24 + 17 * len(roles)), x=(0, ticks[-1]), y=(0, 1)
    )
    y, parts = box.top, []
    for tick in ticks:
        parts += [_rule(box.at_x(tick), box.top, box.at_x(tick), box.top + box.height)]
        parts += [_text(box.at_x(tick), box.top + box.height + 14, f"{tick:g}", "middle")]
    for name, path in rows:
        parts += [_text(box.left, y + 13, name, "start", "strong")]
        y += 20
        for role in roles:
            block = numbers.value(role, *path)
            score = "score" if path[0] == "tasks" else "mean"
            if not isinstance(block, Mapping) or score not in block:
                continue
            colour = LOOKS[role][0]
            parts += [
                Markup(
                    '<rect x="{}" y="{}" width="{:.1f}" height="12" fill="{}" fill-opacity="0.75"/>'
                ).format(box.left, y, max(box.at_x(block[score]) - box.left, 0), colour)
            ]
            if block.get("ci95"):
                low, high = block["ci95"]
                parts += [_whisker(box.at_x(low), box.at_x(high), y + 6)]
            place = {"x": WIDTH - 48, "y": y + 11, "fill": colour, "class": "strong"}
            parts += [numbers(role, *path, score, tag="text", attributes=place)]
            y += 17
        y += 4
    return _svg(parts, box.top + box.height + 20, "scores by task with 95 % intervals")


def reliability(found: Mapping[str, Mapping[str, Any]], title: str) -> Markup:
    """Confidence against the share that is right: on the diagonal a model is as sure as it should be.

    Args:
        found: by role, what `evaluation.calibration` returned.
        title: of the chart.
    """
    box = _Box(left=46, top=26, width=250, height=250, x=(0, 1), y=(0, 1))
    parts = [_text(0, 14, title, "start", "title")]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts += [_rule(box.left, box.at_y(tick), box.left + box.width, box.at_y(tick))]
        parts += [_text(box.left - 5, box.at_y(tick) + 4, f"{tick:.0%}", "end")]
        parts += [_text(box.at_x(tick), box.top + box.height + 16, f"{tick:.0%}", "middle")]
    parts += [_rule(box.at_x(0), box.at_y(0), box.at_x(1), box.at_y(1), "#999", dashed=True)]
    parts += [
        _text(box.left + box.width, box.top + box.height + 30, "confidence (up: share that is right)", "end")
    ]
    for role, each in found.items():
        places = [
            (box.at_x(b["confidence"]), box.at_y(b["accuracy"]), b["n"] / each["n"]) for b in each["bins"]
        ]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
        parts += [
            Markup(
                '<polyline points="{}" fill="none" stroke="{}" stroke-width="1.5" stroke-opacity="0.6"/>'
            ).format(line, LOOKS[role][0])
        ]
        parts += [_mark(role, x, y, 2 + 6 * math.sqrt(share)) for x, y, share in places]
    return _svg(parts, box.top + box.height + 36, title)


def layer_map(kept: Sequence[int], total: int, title: str) -> Markup:
    """The teacher's layers in a row, the student's below, and which came from which."""
    cell = min(44.0, (WIDTH - 8) / max(total, len(kept)))
    size = min(11.0, cell * 0.62)
    first = (WIDTH - cell * len(kept)) / 2
    above = (WIDTH - cell * total) / 2
    parts = [
        _text(0, 14, title, "start", "title"),
        _text(0, 34, "teacher", "start"),
        _text(0, 146, "student", "start"),
    ]
    for layer in range(total):
        parts += _cell(
            above + cell * layer, 40, cell, layer, size, LOOKS["teacher"][0] if layer in kept else None
        )
    for own, layer in enumerate(kept):
        x = first + cell * (own + 0.5)
        parts += [_rule(above + cell * (layer + 0.5), 64, x, 106, "#555")]
        parts += _cell(first + cell * own, 106, cell, own, size, LOOKS["student"][0])
    return _svg(parts, 152, title)


def legend(names: Iterable[tuple[str, str]]) -> Markup:
    """Colours and what has them."""
    return Markup('<p class="legend">{}</p>').format(
        Markup(" ").join(
            Markup('<span><i style="background:{}"></i>{}</span>').format(colour, name)
            for colour, name in names
        )
    )


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at_x(self, value: float) -> float:
        low, high = self.x
        return self.left + self.width * (value - low) / (high - low)

    def at_y(self, value: float) -> float:
        low, high = self.y
        return self.top + self.height * (high - value) / (high - low)


def _ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    high = high if high > low else low + 1
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    return [round(step * k, 12) for k in range(math.floor(low / step), math.ceil(high / step - 1e-9) + 1)]


def _svg(parts: Iterable[Markup], height: float, title: str) -> Markup:
    return Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, title, Markup("").join(parts)
    )


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(
        x, y, anchor, kind, text
    )


def _rule(
    x: float, y: float, right: float, bottom: float, colour: str = "#ddd", *, dashed: bool = False
) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="{}"{}/>').format(
        x, y, right, bottom, colour, Markup(' stroke-dasharray="4 3"') if dashed else ""
    )


def _whisker(low: float, high: float, y: float) -> Markup:
    return Markup(
        '<path d="M{0:.1f} {2:.1f}H{1:.1f}M{0:.1f} {3:.1f}v8M{1:.1f} {3:.1f}v8" stroke="#222" stroke-width="1.3" fill="none"/>'
    ).format(low, high, y, y - 4)


def _dot(x: float, y: float, radius: float, colour: str) -> Markup:
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:.1f}" fill="{}" fill-opacity="0.8"/>').format(
        x, y, radius, colour
    )


def _mark(role: str, x: float, y: float, size: float) -> Markup:
    """A dot, a square or a triangle: the roles can be told apart without their colours."""
    colour, shape, _ = LOOKS[role]
    if shape == "o":
        return _dot(x, y, size, colour)
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)] if shape == "s" else [(0, -1.1), (1.1, 1), (-1.1, 1)]
    places = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners)
    return Markup('<polygon points="{}" fill="{}" fill-opacity="0.8"/>').format(places, colour)


def _cell(x: float, y: float, width: float, number: int, size: float, colour: str | None) -> list[Markup]:
    fill, ink = (colour, "#fff") if colour else ("#fff", "#777")
    return [
        Markup('<rect x="{:.1f}" y="{}" width="{:.1f}" height="24" rx="3" fill="{}" stroke="{}"/>').format(
            x + 1, y, max(width - 2, 1), fill, colour or "#bbb"
        ),
        Markup(
            '<text x="{:.1f}" y="{}" text-anchor="middle" style="font-size:{:.1f}px" fill="{}">{}</text>'
        ).format(x + width / 2, y + 16, size, ink, number),
    ]
