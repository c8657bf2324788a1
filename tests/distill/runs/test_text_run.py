"""Runs on plain text: a decoder that predicts what follows, an encoder that predicts what is hidden."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from distill.engine.reading import bytes_of_tokens, reading_of
from distill.losses import ForwardKL, HiddenStates, Labels
from distill.models import Teacher
from distill.recipe import (
    DataRecipe,
    FromTeacher,
    OnPolicy,
    Recipe,
    StudentRecipe,
    TeacherRecipe,
    TrainRecipe,
    read_recipe,
    write_recipe,
)
from distill.run_folder import RunFolder, read_json
from distill.runs import run
from distill.tasks import PLAIN_TEXT, load_text, read_predictions

TRAIN = TrainRecipe(max_steps=4, learning_rate=1e-3, per_device_train_batch_size=8)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    lines = [
        f"The {a} cat sat on the {b} mat, and {a} it was.\n" for a in ("old", "sly") for b in ("red", "wet")
    ]
    (folder / "cats.txt").write_text("".join(lines * 40))
    return folder


def recipe(model: Path, corpus: Path, **changes: object) -> Recipe:
    whole = Recipe(
        name="text",
        architecture="decoder",
        data=DataRecipe(source="text", path=str(corpus), max_length=48),
        teacher=TeacherRecipe(model=str(model), train=TRAIN),
        student=StudentRecipe(from_teacher=FromTeacher(layers=2)),
        loss=0.5 * Labels() + 0.5 * ForwardKL() + 0.1 * HiddenStates(),
        train=TRAIN,
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_a_decoder_learns_from_a_decoder(tiny_llama: Path, corpus: Path, tmp_path: Path):
    report = run(recipe(tiny_llama, corpus), tmp_path / "run").data
    assert report["data"]["score_name"].startswith("Text")
    for role in ("teacher", "student", "baseline"):
        figures = report[role]["tasks"]["text"]["language"]
        assert figures["perplexity"] > 1
        assert report[role]["score"]["mean"] == pytest.approx(100 * 2 ** -figures["bits_per_byte"])
        assert 0 <= figures["agreement"] <= 1
    assert report["teacher"]["tasks"]["text"]["language"]["agreement"] == 1
    assert "agreement" in (tmp_path / "run" / "report.md").read_text()
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student" / "text", use_safetensors=True)


def test_a_student_learns_from_its_own_texts_and_its_baseline_does_not(
    tiny_llama: Path, corpus: Path, tmp_path: Path
):
    data = replace(TRAIN, logging_steps=1)
    own = replace(data, on_policy=OnPolicy(fraction=0.5, max_new_tokens=8, prompt_tokens=6))
    made = recipe(tiny_llama, corpus, train=own, loss=0.5 * Labels() + 0.5 * ForwardKL())
    (tmp_path / "recipe.yaml").write_text(write_recipe(made))
    assert read_recipe(tmp_path / "recipe.yaml") == made
    run(made, tmp_path / "own")
    logged = [json.loads(line) for line in (tmp_path / "own" / "metrics.jsonl").read_text().splitlines()]
    lengths = {line["fit"]: line["on_policy/length"] for line in logged if "on_policy/length" in line}
    assert lengths.keys() == {"student-text-seed0"}
    assert 1 <= lengths["student-text-seed0"] <= 8

    assert "wrote a part of its training texts itself" in (tmp_path / "own" / "report.md").read_text()

    run(replace(made, train=data), tmp_path / "data")
    assert "itself" not in (tmp_path / "data" / "report.md").read_text()
    fits = [RunFolder(tmp_path / name) for name in ("own", "data")]
    for name, same in (("teacher-text", True), ("baseline-text-seed0", True), ("student-text-seed0", False)):
        keys = [read_json(folder.fit(name))["key"] for folder in fits]
        answers = [folder.predictions(name, "text").read_bytes() for folder in fits]
        assert (keys[0] == keys[1]) == (answers[0] == answers[1]) == same, name


def test_an_encoder_learns_hidden_tokens(tiny_bert: Path, corpus: Path, tmp_path: Path):
    report = run(recipe(tiny_bert, corpus, architecture="encoder"), tmp_path / "run").data
    assert report["student"]["tasks"]["text"]["language"]["perplexity"] > 1
    AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "student" / "text", use_safetensors=True)


def test_the_perplexity_is_the_models(tiny_llama: Path, corpus: Path, tmp_path: Path):
    """Every token of a passage behind its start, one passage at a time, by transformers' own loss."""
    run(recipe(tiny_llama, corpus, baseline=False), tmp_path / "run")
    folder = tmp_path / "run" / "student" / "text"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = load_text(corpus, characters=144)
    nats, tokens = 0.0, 0
    for example in data.validation:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(example.texts[0][0])["input_ids"]]])[:, :48]
        with torch.no_grad():
            nats += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    stored = read_predictions(tmp_path / "run" / "predictions" / "student-text-seed0.text.jsonl")
    assert PLAIN_TEXT.beside(stored)["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)


def test_bytes_are_those_of_the_tokens(tiny_llama: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    text = "Überall 🙂 naïve\n\n  tabs\tהיי"
    made = tokenizer(text, return_offsets_mapping=True)
    assert sum(bytes_of_tokens(text, made["offset_mapping"])) == len(text.encode())


def test_a_cut_passage_counts_only_what_was_read(tiny_llama: Path, corpus: Path):
    teacher = Teacher(
        AutoModelForCausalLM.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    )
    data = load_text(corpus, characters=144, validation_examples=3)
    whole, cut = (
        reading_of("decoder", PLAIN_TEXT, max_length=length, batch_size=2).answer(data.validation, teacher)
        for length in (200, 20)
    )
    assert (whole.truncated, cut.truncated) == (0, 3)
    for answer, example in zip(whole.answers, data.validation, strict=True):
        assert answer.logits[2] == len(example.texts[0][0].encode())
    for answer in cut.answers:
        assert answer.logits[1] == 19
        assert 19 <= answer.logits[2] < 144


def test_a_language_model_is_scored_on_any_text(tiny_llama: Path, corpus: Path, tmp_path: Path):
    from distill import evaluate_model
    from distill.evaluate import score_predictions

    found = evaluate_model(
        str(tiny_llama),
        "text",
        data=str(corpus),
        architecture="decoder",
        max_length=48,
        predictions=tmp_path / "said.jsonl",
    )
    assert found["metrics"]["byte_probability"] == pytest.approx(2 ** -found["language"]["bits_per_byte"])
    assert score_predictions("text", tmp_path / "said.jsonl")["language"] == found["language"]
