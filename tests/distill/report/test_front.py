"""Several runs in one picture: which models no other beats, what may stand together, and that the files say the same."""

from __future__ import annotations

import csv
import json
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import DataError, MismatchError
from distill.recipe import read_recipe, write_recipe
from distill.report import write_front, write_report
from distill.report.pareto import pareto
from distill.report.published import PUBLISHED
from distill.run_folder import RunFolder
from distill.runs import measure_again, run
from distill.tasks import SUPERGLUE


@given(st.integers(1, 4).flatmap(lambda d: st.lists(st.tuples(*[st.integers(0, 4)] * d), max_size=12)))
def test_the_front_is_what_no_linear_walk_can_improve(points):
    """Against brute force by another definition: the maximal elements of the product order."""
    maximal = {p for p in points if all(any(q[k] < p[k] for k in range(len(p))) or q == p for q in points)}
    assert [point for point, best in zip(points, pareto(points), strict=True) if best] == [
        point for point in points if point in maximal
    ]


def test_every_point_off_the_front_is_beaten_by_one_on_it():
    points = [(1, 5), (2, 4), (2, 3), (3, 1), (1, 5), (0, 0), (3, 0.5)]
    assert pareto(points) == [True, True, False, True, True, False, False]
    assert pareto([]) == []


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Path:
    """A finished run of two tasks."""
    short = replace(recipe, data=replace(recipe.data, tasks=("cb", "copa")), seeds=(0,), name="runs-first")
    return run(short, tmp_path_factory.mktemp("runs") / "first").folder


@pytest.fixture
def another(finished, tmp_path):
    """Makes a run of its own of the finished one: another name, other answers, other figures."""

    def make(name: str, *, right: int | None = None, **measured: float) -> Path:
        folder = Path(shutil.copytree(finished, tmp_path / name))
        recipe = read_recipe(folder / "recipe.yaml", check_surroundings=False)
        (folder / "recipe.yaml").write_text(write_recipe(replace(recipe, name=f"runs-{name}")))
        if right is not None:  # so many of COPA's first answers become right, the others wrong
            path = folder / "predictions" / "student-copa-seed0.copa.jsonl"
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            for place, line in enumerate(lines):
                best = line["gold"] if place < right else 1 - line["gold"]
                line["prediction"] = best
                line["logits"] = [float(best == 0), float(best == 1)]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            record = json.loads((folder / "fits" / "student-copa-seed0.json").read_text())
            record.pop("sha256")
            RunFolder(folder).write_fit("student-copa-seed0", record)
        path = folder / "measurements.json"
        figures = json.loads(path.read_text())
        for key, value in measured.items():
            block, _, inner = key.partition("__")
            (figures["measured"] if block == "measured" else figures[block]["student"])[inner] = value
        path.write_text(json.dumps(figures))
        return folder

    return make


def test_the_files_say_what_the_reports_say(finished, another, tmp_path):
    best, slow = another("best", right=16), another("slow", right=2, throughput__examples_per_second=1.5)
    front = write_front([finished, best, slow], tmp_path / "front", baselines=True)
    data = json.loads((front.folder / "front.json").read_text())
    assert data == json.loads(json.dumps(front.data))
    rows = {row["name"]: row for row in csv.DictReader((front.folder / "front.csv").read_text().splitlines())}
    assert len(data["models"]) == 1 + 3 * 2  # one teacher for all
    for folder in (finished, best, slow):
        report = write_report(folder).data
        for role in ("teacher", "student", "baseline"):
            model = report[role]
            row = rows[model["name"]]
            assert float(row["score"]) == model["score"]["mean"]
            assert [float(row["score_low"]), float(row["score_high"])] == model["score"]["ci95"]
            assert int(row["parameters"]) == model["parameters"]
            assert int(row["bytes"]) == model["bytes"]
            assert float(row["flops_per_token"]) == model["flops"]["per_token"]
            assert int(row["peak_memory"]) == model["peak_memory"]["batch_32"]
            assert float(row["copa_accuracy"]) == model["tasks"]["copa"]["accuracy"]
            if role == "student":
                assert float(row["examples_per_second"]) == model["throughput"]["examples_per_second"]
                assert float(row["latency_ms_batch_1"]) == model["latency_ms"]["batch_1"]
    assert {"runs-best", "runs-slow", "runs-first"} < set(rows)
    assert "runs-best" in data["fronts"]["parameters"]
    assert "runs-slow" not in {name for names in data["fronts"].values() for name in names}
    assert {model["label"] for model in data["models"]} >= {"best", "slow", "first"}
    picture = ElementTree.fromstring((front.folder / "front.svg").read_text())  # noqa: S314 - our own
    assert picture.tag.endswith("svg")
    assert (front.folder / "front.png").read_bytes().startswith(b"\x89PNG")
    words = (front.folder / "front.md").read_text()
    for row in data["published"]:
        assert rows[row["name"]]["citation"] == row["citation"]
        assert row["citation"] in words
    human = next(row for row in data["published"] if row["name"] == "human")
    assert human["score"] == pytest.approx(((98.9 + 95.8) / 2 + 100) / 2)


def test_the_same_runs_give_the_same_bytes(finished, another, tmp_path):
    runs = [finished, another("best", right=12)]
    first, second = (write_front(runs, tmp_path / name).folder for name in ("one", "two"))
    for file in ("front.json", "front.csv", "front.md", "front.svg", "front.png"):
        assert (first / file).read_bytes() == (second / file).read_bytes()


def test_a_busier_machine_does_not_make_a_student_slower(finished, another, tmp_path):
    figures = json.loads((finished / "measurements.json").read_text())["throughput"]
    busy = another("busy", throughput__examples_per_second=figures["student"]["examples_per_second"] / 3)
    path = busy / "measurements.json"
    changed = json.loads(path.read_text())
    changed["throughput"]["teacher"]["examples_per_second"] /= 3
    path.write_text(json.dumps(changed))
    speeds = {m["name"]: m["speed"] for m in write_front([finished, busy], tmp_path / "front").data["models"]}
    assert speeds["runs-busy"] == pytest.approx(speeds["runs-first"], rel=1e-4)


def test_what_cannot_be_compared_is_refused_with_what_differs(finished, another, tmp_path):
    other_data = another("data")
    facts = json.loads((other_data / "data.json").read_text())
    facts["tasks"]["copa"] |= {"sha256": "0" * 64, "portion": "12 training examples", "partial": True}
    (other_data / "data.json").write_text(json.dumps(facts))
    other_machine = another("machine", measured__threads=64)
    other_tasks = another("tasks")
    recipe = read_recipe(other_tasks / "recipe.yaml", check_surroundings=False)
    recipe = replace(recipe, data=replace(recipe.data, tasks=("cb",)))
    (other_tasks / "recipe.yaml").write_text(write_recipe(recipe))
    with pytest.raises(MismatchError) as refused:
        write_front([finished, other_data, other_machine, other_tasks], tmp_path / "front")
    lines = str(refused.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(
        f"{other_data}: its data of COPA (12 training examples) is not that of {finished}"
    )
    assert (
        lines[1]
        == f"{other_machine}: was measured with threads 64, {finished} with 1; --measure measures both here"
    )
    assert lines[2] == f"{other_tasks}: its tasks are cb; those of {finished} are cb, copa"
    assert not (tmp_path / "front").exists()


def test_what_is_no_finished_run_is_left_out_and_said(finished, another, tmp_path):
    half, none = another("half"), tmp_path / "cache"
    (half / "measurements.json").unlink()
    none.mkdir()
    front = write_front([half, none, finished], tmp_path / "front")
    assert front.data["left_out"] == [
        f"{half}: is not finished, left out; `distill run` finishes it",
        f"{none}: is no run's folder, left out",
    ]
    assert "left out" in (front.folder / "front.md").read_text()
    with pytest.raises(DataError, match="none of these is a finished run"):
        write_front([half, none], tmp_path / "front")


def test_a_run_that_an_early_version_measured_is_measured_again(another, tmp_path):
    early = another("early")
    path = early / "measurements.json"
    figures = json.loads(path.read_text())
    path.write_text(json.dumps({key: figures[key] for key in ("latency_ms", "latency_task", "sharing")}))
    report = write_report(early)
    assert "flops" not in report.data["student"]
    assert "not measured yet" in report.to_markdown()
    with pytest.raises(DataError, match="measured without FLOPs, throughput and memory; add --measure"):
        write_front([early], tmp_path / "front")
    measure_again(early)
    assert json.loads(path.read_text())["flops"] == figures["flops"]
    assert json.loads(path.read_text())["peak_memory"] == figures["peak_memory"]
    assert len(write_front([early], tmp_path / "front").data["models"]) == 2


def test_labels_cover_neither_each_other_nor_the_points():
    """Forty points, many close together: every label that is written has a place of its own."""
    import random

    from matplotlib import pyplot

    from distill.report.front_plot import _text_box, label_points

    figure, axes = pyplot.subplots(figsize=(7, 6), dpi=100)
    drawn = random.Random(0)
    spots = [(f"student-{i}", drawn.gauss(0, 1), drawn.gauss(0, 1), 4.0, "black") for i in range(40)]
    axes.set(xlim=(-3, 3), ylim=(-3, 3))
    unnamed = label_points(axes, spots)
    renderer = figure.canvas.get_renderer()
    boxes = [_text_box(text, renderer) for text in axes.texts]
    assert len(boxes) + len(unnamed) == 40
    assert len(boxes) > 30
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        for _, x, y, _, _ in spots:
            assert not box.contains(*axes.transData.transform((x, y)))
    pyplot.close(figure)


def test_the_published_means_are_those_of_the_papers():
    means = {(row.name, row.split): row.score(SUPERGLUE) for row in PUBLISHED}
    assert means["human", "test"] == pytest.approx(89.8, abs=0.05)
    assert means["most frequent class", "dev"] == pytest.approx(47.7, abs=0.05)
    assert means["CBoW", "dev"] == pytest.approx(47.7, abs=0.05)
    assert means["BERT-large", "dev"] == pytest.approx(72.2, abs=0.05)
    assert means["BERT++", "dev"] == pytest.approx(74.6, abs=0.05)
    assert means["T5 v1.1 base", "dev"] == pytest.approx(69.47, abs=0.005)
