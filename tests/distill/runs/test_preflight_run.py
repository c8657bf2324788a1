"""The look ahead of a run and of `check --preflight`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill.errors import DataError
from distill.losses import ForwardKL, Labels
from distill.models import Student
from distill.progress import Silent
from distill.recipe import (
    DataRecipe,
    FromTeacher,
    Recipe,
    StudentRecipe,
    TeacherRecipe,
    TrainRecipe,
    write_recipe,
)
from distill.runs import run
from distill.runs.dry_run import dry_run


@pytest.fixture
def rte(recipe: Recipe) -> Recipe:
    """RTE alone, one seed, and a term that hardly counts."""
    return replace(
        recipe,
        data=replace(recipe.data, tasks=("rte",)),
        seeds=(0,),
        loss=Labels() + 1e-6 * ForwardKL(temperature=2.0),
    )


class Listening(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_a_run_looks_ahead_once_and_its_report_warns(rte, tmp_path):
    told = Listening()
    report = run(rte, tmp_path / "run", progress=told).data
    kept = json.loads((tmp_path / "run" / "preflight.json").read_text())
    (line,) = (line for line in kept["rte"]["warnings"] if "forward_kl" in line)
    assert line.startswith("preflight: student-rte: forward_kl makes ")
    assert line in report["warnings"]
    assert line in told.lines
    assert kept["rte"]["scores"]["examples"] == 24
    assert kept["rte"]["tokens"]["same"]
    assert kept["rte"]["seconds"]["steps"] == 10
    said = [line for line in told.lines if line.strip().startswith("memory")]
    assert len(said) == 1  # not before the baseline too

    again = Listening()
    assert run(rte, tmp_path / "run", progress=again).data["warnings"] == report["warnings"]
    assert not any(line.strip().startswith("memory") for line in again.lines)

    off = replace(rte, preflight=False)
    without = run(off, tmp_path / "without").data
    assert not (tmp_path / "without" / "preflight.json").exists()
    assert not any("preflight" in line for line in without["warnings"])
    assert without["recipe_sha256"] == report["recipe_sha256"]
    weights = [
        load_file(tmp_path / name / "student" / "rte" / "model.safetensors") for name in ("run", "without")
    ]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_the_teachers_score_stands_beside_the_students(rte, tiny_bert, tmp_path):
    """A teacher that is taken as it is is asked; one that is trained by the run is not."""
    found = dry_run(rte)["rte"]
    assert found.scores is None
    assert "trains the teacher first" in found.notes[0]

    Student.load(str(tiny_bert), kind="classification", labels=("entailment", "not_entailment")).save(
        tmp_path / "tuned"
    )
    asked = dry_run(replace(rte, teacher=TeacherRecipe(model=str(tmp_path / "tuned"))))["rte"]
    assert asked.scores is not None
    assert asked.scores.examples == 24
    assert asked.notes == ()
    assert 0 <= asked.scores.teacher <= 100


def text_recipe(model: Path, corpus: Path, **changes: object) -> Recipe:
    train = TrainRecipe(max_steps=3, learning_rate=1e-3, per_device_train_batch_size=4)
    whole = Recipe(
        name="text",
        architecture="decoder",
        data=DataRecipe(source="text", path=str(corpus), max_length=48),
        teacher=TeacherRecipe(model=str(model)),
        student=StudentRecipe(from_teacher=FromTeacher(layers=2)),
        loss=0.5 * Labels() + 0.5 * ForwardKL(),
        train=train,
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_a_decoder_is_tried_on_text(tiny_llama, tmp_path):
    (tmp_path / "cats.txt").write_text("The old cat sat on the red mat, and so it was.\n" * 100)
    found = dry_run(text_recipe(tiny_llama, tmp_path / "cats.txt"))["text"]
    assert found.tokens is not None
    assert found.tokens.same
    assert found.tokens.student.head == found.tokens.teacher.head == 400
    assert found.supervision.share > 0.9
    assert found.scores is not None
    assert list(found.gradient.shares) == ["labels", "forward_kl"]


@pytest.fixture
def nothing_to_learn(tiny_bert, tmp_path) -> Recipe:
    """An encoder that knows no token of its text: none can be hidden from it."""
    (tmp_path / "snow.txt").write_text("☃☃☃☃ ☃☃☃ ☃☃\n" * 100)
    trained = TeacherRecipe(model=str(tiny_bert), train=TrainRecipe(max_steps=1))
    return text_recipe(tiny_bert, tmp_path / "snow.txt", architecture="encoder", teacher=trained)


def test_a_run_stops_where_nothing_is_to_be_learnt(nothing_to_learn):
    with pytest.raises(
        DataError, match=r"^preflight: student-text: none of \d+ training examples has a super"
    ):
        dry_run(nothing_to_learn)


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """`distill check RECIPE --preflight …` as a function: its exit code, output and error output."""
    from distill.cli import main

    def call(recipe: Recipe, *options: str) -> tuple[int, str, str]:
        path = tmp_path / "recipe.yaml"
        path.write_text(write_recipe(recipe))
        monkeypatch.setattr(sys, "argv", ["distill", "check", str(path), "--preflight", *options])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return call


def test_check_preflight_prints_the_plan_and_the_look_ahead(rte, check):
    code, said, _ = check(rte, "--json")
    assert code == 0
    plain = json.loads(said)
    assert plain["tasks"]["rte"]["student_steps"] == plain["preflight"]["rte"]["seconds"]["steps"] == 10
    assert not Path(rte.folder).exists()

    code, said, _ = check(rte)
    assert code == 0
    assert said.startswith("small: the recipe is fine")
    assert "preflight: student-rte\n  tokens" in said
    assert "\npreflight: student-rte: forward_kl makes" in said


def test_check_preflight_stops_with_one_line(nothing_to_learn, check):
    code, said, failed = check(nothing_to_learn)
    assert (code, said) == (2, "")
    assert failed.splitlines()[-1].startswith("distill: preflight: student-text: none of ")
