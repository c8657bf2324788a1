"""Runs whose students are cut out of the teacher in more than depth."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from distill.losses import ForwardKL, HiddenStates, Labels, Relations
from distill.models import needed_tokens
from distill.recipe import FromTeacher, Recipe, StudentRecipe, read_recipe
from distill.runs import run

WORDS = "bert.embeddings.word_embeddings.weight"


def with_student(recipe: Recipe, tasks: tuple[str, ...], **from_teacher) -> Recipe:
    """The recipe with another student, on some tasks with one seed and no dropout."""
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, tasks=tasks, diagnostics=False),
        student=StudentRecipe(from_teacher=FromTeacher(layers=2, **from_teacher)),
        train=dataclasses.replace(recipe.train, dropout=0.0),
        seeds=(0,),
    )


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize(
    ("task", "loss"),
    [
        ("rte", 0.5 * Labels() + 0.5 * ForwardKL(temperature=2.0)),
        ("copa", 0.5 * ForwardKL() + 0.1 * HiddenStates() + 0.1 * Relations(heads=4)),
    ],
    ids=["remembered teacher", "running teacher"],
)
def test_training_with_a_trimmed_vocabulary_is_training_with_the_whole(recipe, tmp_path, task, loss):
    """The training texts are inside the vocabulary, so that only rows that are never read are gone.

    A teacher's row beside the wrong example, or a wrong token of either model, would train another student.
    """
    both = {}
    for vocabulary in ("teacher", "corpus"):
        one = dataclasses.replace(with_student(recipe, (task,), vocabulary=vocabulary), loss=loss)
        finished = run(one, tmp_path / vocabulary)
        weights = load_file(finished.folder / "student" / task / "model.safetensors")
        both[vocabulary] = finished, weights, losses(finished.folder)
    (_, whole, whole_losses), (finished, trimmed, trimmed_losses) = both["teacher"], both["corpus"]
    provenance = json.loads((finished.folder / "student" / task / "provenance.json").read_text())
    tokens = provenance["tokens"]
    assert len(trimmed[WORDS]) == len(tokens) < 300
    torch.testing.assert_close(torch.tensor(trimmed_losses), torch.tensor(whole_losses), rtol=1e-4, atol=1e-5)
    for name, tensor in trimmed.items():
        expected = whole[name][tokens] if name == WORDS else whole[name]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-4)
    assert f"layers 0, 3 and {len(tokens):,} tokens of" in (finished.folder / "report.md").read_text()
    assert read_recipe(finished.folder / "recipe.yaml").student.from_teacher.vocabulary == "corpus"


def test_the_training_texts_of_all_tasks_decide_and_no_validation_text(
    recipe, tmp_path, official_folder, tokenizer
):
    finished = run(with_student(recipe, ("copa", "rte"), vocabulary="corpus"), tmp_path / "run")
    kept = {
        task: json.loads((finished.folder / "student" / task / "provenance.json").read_text())["tokens"]
        for task in ("copa", "rte")
    }
    assert kept["copa"] == kept["rte"]
    texts = []
    for title in ("COPA", "RTE"):
        for line in (official_folder / title / "train.jsonl").read_text().splitlines():
            texts += [value for value in json.loads(line).values() if isinstance(value, str)]
    texts += ["What happened as a result?", "What was the cause of this?"]
    read = {token for ids in tokenizer(texts)["input_ids"] for token in ids}
    assert set(kept["rte"]) <= set(needed_tokens(tokenizer, read))
    assert set(
        tokenizer("wet dry I saw the horse by the road", add_special_tokens=False)["input_ids"]
    ) <= set(kept["rte"])
    only_validated = tokenizer.convert_tokens_to_ids(
        "45"
    )  # COPA's validation counts on to 45, training to 39
    assert only_validated != tokenizer.unk_token_id
    assert only_validated not in kept["rte"]
    assert finished.data["student"]["parameters"] == finished.data["baseline"]["parameters"]
    assert finished.data["sharing"]["common"] > 0
