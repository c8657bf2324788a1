"""Runs with several teachers, and teachers that start from nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.losses import Ensemble, ForwardKL, JensenShannon, Labels
from distill.recipe import (
    DataRecipe,
    FromTeacher,
    MemberRecipe,
    NewTokenizer,
    Recipe,
    StudentRecipe,
    TeacherRecipe,
    TrainRecipe,
)
from distill.recipe.wording import FieldMistakes
from distill.runs import run
from distill.tasks import read_predictions

TRAIN = TrainRecipe(max_steps=3, learning_rate=1e-3, per_device_train_batch_size=8)
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def new(seed: int) -> MemberRecipe:
    return MemberRecipe(config=LLAMA, tokenizer=NewTokenizer(train=300), train=TRAIN, seed=seed)


def test_the_ensembles_answers_are_its_members_mean(tiny_bert: Path, tmp_path: Path):
    recipe = Recipe(
        name="two",
        data=DataRecipe(tasks=("rte",), train_examples=24, validation_examples=16),
        teacher=TeacherRecipe(
            members=tuple(MemberRecipe(model=str(tiny_bert), train=TRAIN, seed=seed) for seed in (0, 1)),
            weights=(1.0, 3.0),
        ),
        student=StudentRecipe(from_teacher=FromTeacher(layers=1)),
        loss=0.5 * Labels() + 0.5 * ForwardKL(temperature=2.0),
        train=TRAIN,
    )
    report = run(recipe, tmp_path).data

    def stored(name: str) -> torch.Tensor:
        return torch.tensor(
            [answer.logits for answer in read_predictions(tmp_path / "predictions" / f"{name}.rte.jsonl")]
        )

    members = [stored("teacher0-rte"), stored("teacher1-rte")]
    assert not torch.equal(*members)
    mean = Ensemble(weights=(1, 3), temperature=2.0)
    torch.testing.assert_close(stored("teacher-rte"), mean(members), rtol=1e-5, atol=1e-5)
    one = report["student"]["parameters"]
    assert report["teacher"]["parameters"] > 2 * one * 0.9
    assert (tmp_path / "teacher1" / "rte" / "model.safetensors").is_file()


def test_teachers_from_nothing_teach_a_language_model(tmp_path: Path):
    corpus = tmp_path / "text.txt"
    corpus.write_text("The cat sat on the mat, and the dog sat on the log.\n" * 100)
    recipe = Recipe(
        name="baby",
        architecture="decoder",
        data=DataRecipe(source="text", path=str(corpus), max_length=32),
        teacher=TeacherRecipe(members=(new(0), new(1)), mean="logits"),
        student=StudentRecipe(config=LLAMA),
        loss=0.5 * Labels() + 0.5 * ForwardKL(),
        train=TRAIN,
    )
    report = run(recipe, tmp_path / "run").data
    assert report["teacher"]["name"] == "a new llama + a new llama"
    assert report["student"]["tasks"]["text"]["language"]["agreement"] >= 0
    again = run(recipe, tmp_path / "run").data
    assert again == report


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "one of model, config and members"),
        ({"members": (new(0), new(1)), "model": "x"}, "stands beside members"),
        ({"members": (new(0), new(1)), "weights": (1.0,)}, "one number for each of 2 members"),
        ({"members": (new(0), new(1)), "weights": (0.0, 0.0)}, "not all be 0"),
        ({"model": "x", "weights": (1.0,)}, "only for members"),
        ({"config": LLAMA, "tokenizer": "x"}, "is missing; a teacher given by config needs it"),
        ({"config": {"hidden_size": 8}, "tokenizer": "x", "train": TRAIN}, "model_type"),
        ({"model": "x", "tokenizer": "y"}, "only for a teacher given by config"),
    ],
)
def test_what_does_not_go_together_is_said(fields, message):
    with pytest.raises(FieldMistakes, match=message):
        TeacherRecipe(**fields)


def test_a_mean_of_probabilities_has_one_temperature():
    with pytest.raises(FieldMistakes, match=r"must be logits where .* found 1 and 2"):
        Recipe(
            name="two",
            teacher=TeacherRecipe(
                members=tuple(MemberRecipe(model="x", train=TRAIN, seed=s) for s in (0, 1))
            ),
            student=StudentRecipe(from_teacher=FromTeacher(layers=1)),
            loss=ForwardKL(temperature=2.0) + JensenShannon(),
        )


def test_a_teacher_from_nothing_has_no_pretrained_weights():
    with pytest.raises(FieldMistakes, match="must be fine_tuned"):
        Recipe(
            name="one",
            teacher=TeacherRecipe(config=LLAMA, tokenizer="x", train=TRAIN),
            student=StudentRecipe(from_teacher=FromTeacher(layers=1)),
            loss=Labels(),
        )
