"""The front as a picture: score against parameters; score, speed and memory together, as MOROCCO draws them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.disk import whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

# Told apart by lightness and shape, so that grey print and any kind of colour vision will do.
FRONT, DOMINATED, TEACHER, QUIET = "#0B4F8A", "#B4B4B4", "#C2500A", "#6B6B6B"
MARKERS = {"teacher": "s", "student": "o", "baseline": "^"}
LARGEST = 620.0  # square points of the bubble that stands for the most memory
DISTANCES, ANGLES = (9, 14, 20, 28, 38, 50), tuple(range(0, 360, 30))


def plot_front(data: Mapping[str, Any], folder: Path) -> None:
    """Draw front.png and front.svg: the same bytes for the same data."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from distill.report.front import footnotes

    with matplotlib.rc_context({"svg.hashsalt": "distill", "font.size": 9, "text.parse_math": False}):
        figure, (size, cost) = pyplot.subplots(
            1, 2, figsize=(12.4, 6.4), dpi=150, sharey=True, gridspec_kw={"wspace": 0.06}
        )
        low, high = _score_range(data)
        size.set_ylim(low, high)
        outside = _reference_lines(data, (size, cost), low, high)
        _draw_sizes(data, size)
        _draw_costs(data, cost)
        for axes in (size, cost):
            axes.grid(visible=True, color="#ECECEC", linewidth=0.8)
            axes.set_axisbelow(True)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        figure.suptitle(
            f"Pareto front, {data['score_name']}",
            x=0.05,
            y=0.975,
            ha="left",
            fontsize=12,
            fontweight="bold",
        )
        size.set_ylabel("score (points, with 95 % interval)")
        notes = footnotes(data)
        if outside:
            notes.append(f"Beyond the picture: {', '.join(outside)}.")
        lines = [line for note in notes for line in textwrap.wrap(note, 190)]
        bottom = 0.118 + 0.0215 * len(lines)
        figure.subplots_adjust(left=0.05, right=0.895, top=0.885, bottom=bottom)
        figure.text(
            0.05, 0.02, "\n".join(lines), fontsize=7.5, color=QUIET, va="bottom", ha="left", linespacing=1.35
        )
        unnamed = set(label_points(size, _spots(data, "parameters", fronts=("parameters",))))
        unnamed |= set(label_points(cost, _spots(data, "speed", fronts=("score_speed_memory",))))
        if unnamed:
            figure.text(0.98, 0.02, f"{len(unnamed)} names in front.csv only", fontsize=7.5, ha="right")
        for kind, extra in (("png", {"Software": None}), ("svg", {"Date": None})):
            with whole(folder / f"front.{kind}") as aside:
                figure.savefig(aside, format=kind, metadata=extra)
        pyplot.close(figure)


def _score_range(data: Mapping[str, Any]) -> tuple[float, float]:
    lows = [model["score"]["ci95"][0] for model in data["models"]]
    highs = [model["score"]["ci95"][1] for model in data["models"]]
    room = 0.12 * max(max(highs) - min(lows), 4.0)
    return min(lows) - room, max(highs) + room


def _reference_lines(data: Mapping[str, Any], panels: Sequence[Axes], low: float, high: float) -> list[str]:
    """Majority and published rows as dotted lines, named at the right; those beyond the picture are returned as text."""
    rows = [("majority", data["majority"])]
    rows += [(row["name"], row["score"]) for row in data["published"] if row["name"] != "most frequent class"]
    inside = sorted(((score, name) for name, score in rows if low < score < high), reverse=True)
    height = 0.034 * (high - low)
    place = math.inf
    for score, name in inside:
        for axes in panels:
            axes.axhline(score, color="#8C8C8C", linewidth=1, linestyle=(0, (1, 2)), zorder=1)
        place = min(score, place - height)
        panels[-1].annotate(
            f"{name} {score:.1f}",
            (1.0, score),
            (1.012, place),
            xycoords=("axes fraction", "data"),
            textcoords=("axes fraction", "data"),
            fontsize=8,
            color=QUIET,
            va="center",
            annotation_clip=False,
        )
    return [f"{name} {score:.1f}" for name, score in rows if not low < score < high]


def _draw_sizes(data: Mapping[str, Any], axes: Axes) -> None:
    """Score against parameters, with the front as the staircase of what a budget buys."""
    models = data["models"]
    on_front = set(data["fronts"]["parameters"])
    for model in models:
        _interval(axes, model, model["parameters"] / 1e6, model["name"] in on_front)
        axes.plot(
            model["parameters"] / 1e6,
            model["score"]["mean"],
            marker=MARKERS[model["role"]],
            markersize=7.5,
            **_look(model, model["name"] in on_front),
        )
    stairs = sorted(
        (model["parameters"] / 1e6, model["score"]["mean"]) for model in models if model["name"] in on_front
    )
    axes.plot(
        *zip(*stairs, strict=True), color=FRONT, drawstyle="steps-post", linewidth=1.4, alpha=0.55, zorder=2
    )
    _log_axis(axes, [model["parameters"] / 1e6 for model in models])
    axes.set_xlabel("parameters (millions, log scale): fewer is better")
    axes.set_title("Score against size", loc="left", fontsize=10)


def _draw_costs(data: Mapping[str, Any], axes: Axes) -> None:
    """Score against speed, the area of a point being its memory (MOROCCO, arXiv:2104.14314)."""
    models = data["models"]
    on_front = set(data["fronts"]["score_speed_memory"])
    most = max(model["peak_memory"] for model in models)
    for model in sorted(models, key=lambda each: -each["peak_memory"]):
        first = model["name"] in on_front
        _interval(axes, model, model["speed"], first)
        look = _look(model, first)
        axes.scatter(
            model["speed"],
            model["score"]["mean"],
            s=LARGEST * model["peak_memory"] / most,
            marker=MARKERS[model["role"]],
            facecolor=look["markerfacecolor"],
            edgecolor="white" if first else "#8C8C8C",
            linewidth=0.9,
            alpha=0.82,
            zorder=look["zorder"],
        )
    _log_axis(axes, [model["speed"] for model in models])
    axes.set_xlabel("speed (examples a second at batch 32, log scale): more is better")
    axes.set_title("Score against speed, memory as area", loc="left", fontsize=10)
    axes.tick_params(labelleft=False)
    for megabytes in _round_sizes(most / 1e6):
        axes.scatter(
            [], [], s=LARGEST * megabytes * 1e6 / most, facecolor="none", edgecolor=QUIET, label=f"{megabytes:g} MB"
        )  # fmt: skip
    axes.legend(
        frameon=False,
        fontsize=8,
        ncols=3,
        loc="lower right",
        bbox_to_anchor=(1.14, 1.005),
        handletextpad=1.0,
        columnspacing=2.2,
        labelcolor=QUIET,
    )


def _interval(axes: Axes, model: Mapping[str, Any], x: float, first: bool) -> None:
    low, high = model["score"]["ci95"]
    axes.plot(
        [x, x], [low, high], color=_colour(model, first), linewidth=1.1, alpha=0.6, zorder=2 if first else 1
    )


def _colour(model: Mapping[str, Any], first: bool) -> str:
    if not first:
        return DOMINATED
    return TEACHER if model["role"] == "teacher" else FRONT


def _look(model: Mapping[str, Any], first: bool) -> dict[str, Any]:
    return {
        "markerfacecolor": _colour(model, first),
        "markeredgecolor": "white" if first else "#8C8C8C",
        "linestyle": "none",
        "zorder": 4 if first else 3,
    }


def _log_axis(axes: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    low, high = min(values), max(values)
    room = max((high / low) ** 0.12, 1.12)
    axes.set_xscale("log")
    axes.set_xlim(low / room, high * room)
    steps = [m * 10.0**e for e in range(-3, 7) for m in (1, 1.5, 2, 3, 5, 7)]
    axes.set_xticks([step for step in steps if low / room <= step <= high * room])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)


def _round_sizes(most: float) -> list[float]:
    """Three round sizes up to the largest, for the legend of areas."""
    steps = [m * 10.0**e for e in range(-2, 7) for m in (1, 2, 5)]
    return [step for step in steps if step <= most][-3:]


def _spots(
    data: Mapping[str, Any], axis: str, fronts: Sequence[str]
) -> list[tuple[str, float, float, float, str]]:
    """Label, x, y, radius in points and colour of each point, those of the front first."""
    most = max(model["peak_memory"] for model in data["models"])
    scale = 1e6 if axis == "parameters" else 1.0
    spots = []
    for model in sorted(data["models"], key=lambda each: not set(fronts) & set(each["fronts"])):
        first = bool(set(fronts) & set(model["fronts"]))
        area = 56.0 if axis == "parameters" else LARGEST * model["peak_memory"] / most
        colour = _colour(model, True) if first else QUIET
        spots.append(
            (model["label"], model[axis] / scale, model["score"]["mean"], math.sqrt(area) / 2, colour)
        )
    return spots


def label_points(axes: Axes, spots: Sequence[tuple[str, float, float, float, str]]) -> list[str]:
    """Write each label near its point so that it covers no other label and no point; those without a place are returned.

    Where there is room it covers no line either.

    Args:
        axes: with its limits and place in the figure settled.
        spots: label, x, y, radius of the point in typographic points, colour; the first choose first.
    """
    from matplotlib.transforms import Bbox

    figure = axes.get_figure()
    assert figure is not None  # noqa: S101 - these axes have one
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]  # Agg's has one
    dot = figure.dpi / 72
    centres = [axes.transData.transform((x, y)) for _, x, y, _, _ in spots]
    circles = [
        Bbox.from_extents(cx - r * dot, cy - r * dot, cx + r * dot, cy + r * dot)
        for (cx, cy), (_, _, _, r, _) in zip(centres, spots, strict=True)
    ]
    inside = axes.get_window_extent(renderer)
    lines = _line_boxes(axes)
    taken: list[Bbox] = []
    unnamed = []
    for label, x, y, radius, colour in spots:
        for distance, angle, around in (
            (d, a, [*circles, *taken, *more]) for more in (lines, ()) for d in DISTANCES for a in ANGLES
        ):
            across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            text = axes.annotate(
                label,
                (x, y),
                ((radius + distance - 5) * across, (radius + distance - 5) * up),
                textcoords="offset points",
                ha="left" if across > 0.3 else "right" if across < -0.3 else "center",
                va="bottom" if up > 0.3 else "top" if up < -0.3 else "center",
                fontsize=8.5,
                color=colour,
                zorder=6,
                arrowprops={
                    "arrowstyle": "-",
                    "color": colour,
                    "linewidth": 0.6,
                    "shrinkA": 0,
                    "shrinkB": radius,
                }
                if distance > DISTANCES[1]
                else None,
            )
            box = _text_box(text, renderer)
            if _free(box, around, inside):
                taken.append(box)
                break
            text.remove()
        else:
            unnamed.append(label)
    return unnamed


def _line_boxes(axes: Axes) -> list[Bbox]:
    """Where intervals and stairs run, each straight piece as a box; dotted lines across the picture are left out."""
    from matplotlib.transforms import Bbox

    boxes = []
    for line in axes.lines:
        path = line.get_path()
        if line.get_marker() in ("", "None") and line.get_transform() == axes.transData:
            corners = axes.transData.transform(path.vertices)
            boxes += [
                Bbox.from_extents(
                    min(a[0], b[0]) - 1, min(a[1], b[1]) - 1, max(a[0], b[0]) + 1, max(a[1], b[1]) + 1
                )
                for a, b in pairwise(corners)
            ]
    return boxes


def _text_box(text: Any, renderer: Any) -> Bbox:
    """Where the words stand, without the line to their point."""
    from matplotlib.text import Text

    text.update_positions(renderer)
    return Text.get_window_extent(text, renderer).padded(2)


def _free(box: Bbox, taken: Iterable[Bbox], inside: Bbox) -> bool:
    whole = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
    return whole and not any(box.overlaps(other) for other in taken)
