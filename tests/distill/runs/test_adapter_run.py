"""Runs whose students train an adapter of peft."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("peft", reason="peft is not installed")

from transformers import AutoModelForSequenceClassification

from distill.errors import ModelError
from distill.losses import ForwardKL, Labels
from distill.models import Teacher
from distill.progress import Silent
from distill.recipe import FromTeacher, StudentRecipe, read_recipe, surroundings
from distill.recipe.wording import FieldMistakes
from distill.runs import run

LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["query", "value"], "rank_pattern": {"query": 2}}


def with_adapter(recipe, adapter):
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, tasks=("cb",), diagnostics=False),
        student=StudentRecipe(from_teacher=FromTeacher(layers=2), adapter=adapter),
        teacher=dataclasses.replace(recipe.teacher, precision="bf16"),
        loss=(Labels(), ForwardKL()),
        seeds=(0,),
    )


class Killed(Exception): ...


class Killer(Silent):
    """Stops the student's training after a checkpoint."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        self.what = what

    def advance(self, done: int, figures: str = "") -> None:
        if self.what.startswith("student") and done == 6:
            raise Killed


def test_a_lora_run_cut_off_and_continued_exports_the_same_plain_model(recipe, tmp_path):
    one = with_adapter(recipe, LORA)
    with pytest.raises(Killed):
        run(one, tmp_path / "cut", progress=Killer())
    folders = [run(one, tmp_path / name).folder for name in ("cut", "whole")]
    cut, whole = (load_file(folder / "student" / "cb" / "model.safetensors") for folder in folders)
    assert cut.keys() == whole.keys()
    assert all(torch.equal(cut[name], tensor) for name, tensor in whole.items())
    _, loading = AutoModelForSequenceClassification.from_pretrained(
        folders[1] / "student" / "cb", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    report = json.loads((folders[1] / "report.json").read_text())
    assert report["student"]["parameters"] == sum(tensor.numel() for tensor in whole.values())
    assert report["student"]["parameters"] == report["baseline"]["parameters"]
    adapter = report["training"]["student_start"]["adapter"]
    assert adapter["trainable_parameters"] < report["student"]["parameters"] < adapter["training_parameters"]
    said = f"a LORA adapter was trained, {adapter['trainable_parameters']:,} of {adapter['training_parameters']:,}"
    assert said in (folders[1] / "report.md").read_text()
    assert read_recipe(folders[1] / "recipe.yaml").student.adapter == LORA
    assert not list((folders[1] / "student" / "cb").glob("adapter*"))


def test_a_prompt_tuning_run_exports_the_adapter_and_its_base(recipe, tmp_path):
    finished = run(
        with_adapter(recipe, {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}), tmp_path / "run"
    )
    folder = finished.folder / "student" / "cb"
    assert (folder / "adapter_model.safetensors").is_file()
    Teacher.load(str(folder), kind="classification", labels=("entailment", "contradiction", "neutral"))
    weights = sum(f.stat().st_size for f in folder.rglob("*.safetensors"))
    assert finished.data["student"]["bytes"] == weights
    again = run(
        with_adapter(recipe, {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}), tmp_path / "run"
    )
    assert again.data["student"]["parameters"] == finished.data["student"]["parameters"]


def test_without_peft_the_recipe_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    student = StudentRecipe(from_teacher=FromTeacher(layers=2), adapter=LORA)
    (mistake,) = surroundings.student_mistakes(student)
    assert mistake == (
        ("student", "adapter"),
        'needs peft, which is not installed; type: pip install "distill[peft]"',
    )


def test_adapter_settings_that_no_recipe_may_have(recipe):
    with pytest.raises(FieldMistakes, match="must have the peft_type of an adapter of peft, such as LORA"):
        StudentRecipe(from_teacher=FromTeacher(layers=2), adapter={"r": 4})
    frozen = dataclasses.replace(recipe.train, freeze_embeddings=True)
    with pytest.raises(FieldMistakes, match=r"is what student\.adapter does anyway"):
        dataclasses.replace(with_adapter(recipe, LORA), train=frozen)


def test_a_wrong_adapter_stops_the_run_before_the_teacher_is_trained(recipe, tmp_path):
    with pytest.raises(ModelError, match=r"^student\.adapter\.rr: is no key of LoraConfig"):
        run(with_adapter(recipe, {**LORA, "rr": 1}), tmp_path / "run")
    assert not list((tmp_path / "run").glob("fits/*"))
