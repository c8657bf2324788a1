"""Compression against score, in one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.disk import whole

# Colour-blind safe (Okabe and Ito 2008), and told apart by shape as well.
LOOKS = {
    "teacher": ("#0072B2", "s", "teacher"),
    "student": ("#D55E00", "o", "student"),
    "baseline": ("#666666", "^", "student alone"),
}


def plot_compression(report: Mapping[str, Any], path: Path) -> None:
    """Draw compression ratio (x, log) against score (y) with 95 % intervals and the majority row, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure, axes = pyplot.subplots(figsize=(7.2, 4.4), dpi=150)
    teacher = report["teacher"]
    ratios = {role: teacher["parameters"] / report[role]["parameters"] for role in LOOKS if role in report}
    # Student and baseline have the same size: set a little apart, so that both intervals can be read.
    apart = {"teacher": 1.0, "student": 1.012, "baseline": 0.988}
    for role, ratio in ratios.items():
        colour, marker, label = LOOKS[role]
        score = report[role]["score"]
        low, high = score["ci95"]
        x = ratio * (apart[role] if "baseline" in ratios else 1.0)
        mean = score["mean"]
        axes.errorbar(
            [x],
            [mean],
            yerr=[[max(mean - low, 0)], [max(high - mean, 0)]],
            color=colour,
            marker=marker,
            markersize=8,
            capsize=4,
            linewidth=1.4,
            linestyle="none",
            label=f"{label}: {mean:.1f} at {ratio:.2f}×",
        )
    majority = report["majority"]["score"]
    axes.axhline(majority, color="#999999", linestyle="--", linewidth=1, label=f"majority: {majority:.1f}")
    axes.set_xscale("log")
    largest = max(ratios.values())
    ticks = _ticks(largest * 1.15)
    axes.set_xlim(0.9, largest * 1.15)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("compression: teacher's parameters ÷ model's parameters (log scale)")
    axes.set_ylabel("score, mean over tasks (points)")
    axes.set_title(f"{report['name']}\n{_wrapped(report['data']['score_name'])}", fontsize=10)
    axes.grid(visible=True, alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="best")
    figure.tight_layout()
    try:
        with whole(path) as aside:
            figure.savefig(aside, format="png")
    finally:
        pyplot.close(figure)


def _ticks(largest: float) -> list[float]:
    steps = (1, 1.1, 1.2, 1.3, 1.5, 1.75, 2, 2.5, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100, 200, 500, 1000)
    inside = [step for step in steps if step <= largest]
    # Few ticks, evenly picked, always starting at the teacher's 1×.
    return inside if len(inside) <= 7 else [inside[round(i * (len(inside) - 1) / 6)] for i in range(7)]


def _wrapped(text: str, width: int = 80) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
