"""What `distill report` says of a run that is not finished."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from distill.errors import CheckpointError, RecipeError
from distill.report import so_far
from distill.runs import run


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """A run of two tasks and one seed: six fits."""
    wanted = dataclasses.replace(recipe.data, tasks=("cb", "copa"))
    small = dataclasses.replace(recipe, data=wanted, seeds=(0,), preflight=False)
    return run(small, tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture
def unfinished(finished, tmp_path) -> Path:
    """The same run, stopped in the student of COPA: three fits and a teacher are there."""
    folder = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    for name in ("student-copa-seed0", "baseline-copa-seed0"):
        (folder / "fits" / f"{name}.json").unlink()
        (folder / "predictions" / f"{name}.copa.jsonl").unlink()
    for file in ("report.json", "report.md", "compression.png", "measurements.json"):
        (folder / file).unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["fit"] != "baseline-copa-seed0"]
    (folder / "metrics.jsonl").write_text("\n".join(kept) + '\n{"fit": "student-copa-seed0", "st')
    return folder


def test_an_unfinished_run_shows_what_is_there(finished, unfinished):
    before = {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}
    found = so_far(unfinished)
    assert found["fits"] == {"done": 4, "of": 6}
    assert [(row["fit"], row["done"]) for row in found["rows"]] == [
        ("teacher-cb", True),
        ("student-cb-seed0", True),
        ("baseline-cb-seed0", True),
        ("teacher-copa", True),
        ("student-copa-seed0", False),
        ("baseline-copa-seed0", False),
    ]
    for row in found["rows"][:4]:
        block = finished.data[row["role"]]["tasks"][row["task"]]
        assert row["score"] == pytest.approx(block["score"])
        assert row["metrics"] == {name: pytest.approx(block[name]) for name in row["metrics"]}
    logged = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    last = [each for each in logged if each["fit"] == "student-copa-seed0" and "loss" in each][-1]
    assert found["rows"][4]["figures"] == {key: value for key, value in last.items() if key != "fit"}
    assert "figures" not in found["rows"][5]
    assert {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()} == before


def test_the_command_prints_it_and_ends_well(unfinished, capsys, monkeypatch):
    import sys

    from distill.cli import main

    monkeypatch.setattr(sys, "argv", ["distill", "report", str(unfinished)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert "small: unfinished, 4 of 6 fits" in said
    assert re.search(r"student-copa-seed0 +│ under way", said)
    assert re.search(r"labels \d\.\d{4}, forward_kl \d\.\d{4}, sinkhorn", said)
    assert "No verdict: the other fits are missing" in said
    assert not (unfinished / "report.json").exists()


def test_a_run_is_finished_when_its_models_are_measured(finished, unfinished):
    assert so_far(finished.folder) is None
    shutil.copytree(finished.folder, unfinished, dirs_exist_ok=True)
    (unfinished / "measurements.json").unlink()
    assert so_far(unfinished)["fits"] == {"done": 6, "of": 6}


def test_a_run_that_has_only_begun_and_a_folder_without_one(unfinished, tmp_path):
    for name in ("fits", "predictions"):
        shutil.rmtree(unfinished / name)
    for name in ("metrics.jsonl", "data.json"):
        (unfinished / name).unlink()
    found = so_far(unfinished)
    assert found["fits"] == {"done": 0, "of": 6}
    assert found["tasks"] == {"cb": {}, "copa": {}}
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        so_far(tmp_path / "nothing")


def test_damaged_answers_are_not_shown_as_a_score(unfinished):
    path = unfinished / "predictions" / "teacher-cb.cb.jsonl"
    path.write_text(path.read_text().replace("1", "2", 1))
    with pytest.raises(CheckpointError, match=r"teacher-cb\.cb\.jsonl: is damaged"):
        so_far(unfinished)
