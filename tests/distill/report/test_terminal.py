"""What a terminal shows of a run and of a front: whole, and what report.json says."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from distill.report.front import fronts_of
from distill.report.terminal import show


def table(text: str) -> dict[str, list[str]]:
    """The first table's rows by their first cell; one that was broken over two lines would give another cell."""
    lines = text[: text.index("└")].splitlines()
    cells = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines]
    return {first: rest for first, *rest in cells if rest}


@pytest.mark.parametrize("width", [80, 120])
def test_the_models_table_is_whole_and_says_what_the_report_says(finished, width):
    console = Console(width=width, file=io.StringIO())
    show(finished, console)
    text = console.file.getvalue()
    assert "…" not in text[: text.index("└")]
    rows, data = table(text), finished.data
    roles = [data[role] for role in ("teacher", "student", "baseline")]
    assert rows[""] == ["teacher", "student", "student alone", "majority"]
    assert rows["score"] == [
        f"{each['score']['mean']:.1f}" for each in (*roles, {"score": {"mean": data["majority"]["score"]}})
    ]
    assert rows["95 % interval"][:3] == ["{:.1f} to {:.1f}".format(*each["score"]["ci95"]) for each in roles]
    assert rows["peak memory"][:3] == [f"{each['peak_memory']['batch_32'] / 1e6:.0f} MB" for each in roles]
    assert rows["examples/s"][:3] == [f"{each['throughput']['examples_per_second']:.1f}" for each in roles]


def test_the_fronts_of_a_model_are_named_or_all():
    axes = ("bytes", "non_embedding_parameters", "score_speed_memory")
    data: dict = {"fronts": {axis: [] for axis in axes}}
    assert fronts_of({"fronts": [*data["fronts"]]}, data) == "all"
    named = {"fronts": ["non_embedding_parameters", "score_speed_memory"]}
    assert fronts_of(named, data) == "parameters without embeddings, speed and memory"
    assert fronts_of({"fronts": []}, data) == ""
