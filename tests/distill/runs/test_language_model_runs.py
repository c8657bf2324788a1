"""Tasks answered by decoders, which choose the likeliest answer, and by encoder–decoders, which write it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    T5Config,
    T5ForConditionalGeneration,
)

from distill import evaluate_model
from distill.engine.reading import reading_of
from distill.errors import ModelError
from distill.losses import ForwardKL, HiddenStates, Labels
from distill.models import Teacher
from distill.recipe import DataRecipe, FromTeacher, Recipe, StudentRecipe, TeacherRecipe, TrainRecipe
from distill.recipe.wording import FieldMistakes
from distill.runs import run
from distill.tasks import TASKS, load_task, read_predictions

TRAIN = TrainRecipe(max_steps=3, learning_rate=1e-3, per_device_train_batch_size=8)


def recipe(model: Path, architecture: str, *tasks: str) -> Recipe:
    return Recipe(
        name="lm",
        architecture=architecture,  # type: ignore[arg-type]
        data=DataRecipe(tasks=tasks, train_examples=16, validation_examples=8, max_length=200),  # type: ignore[arg-type]
        teacher=TeacherRecipe(model=str(model), train=TRAIN),
        student=StudentRecipe(from_teacher=FromTeacher(layers=2)),
        loss=0.5 * Labels() + 0.5 * ForwardKL() + 0.1 * HiddenStates(),
        train=TRAIN,
    )


@pytest.fixture(scope="module")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-t5"
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.add_special_tokens({"pad_token": "<s>"})
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_decoder_learns_tasks_from_a_decoder(tiny_llama: Path, tmp_path: Path):
    report = run(recipe(tiny_llama, "decoder", "cb", "copa", "multirc", "record"), tmp_path).data
    assert set(report["student"]["tasks"]) == {"cb", "copa", "multirc", "record"}
    folder = tmp_path / "student" / "cb"
    AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    answers = read_predictions(tmp_path / "predictions" / "student-cb-seed0.cb.jsonl")
    assert all(len(answer.logits) == 3 and max(answer.logits) < 0 for answer in answers)
    scored = evaluate_model(str(folder), "cb", architecture="decoder", max_length=200)
    assert 0 <= scored["metrics"]["accuracy"] <= 1


def test_an_answers_logit_is_the_models_log_probability_of_it(tiny_llama: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    data = load_task("copa", source="demo", validation_examples=3)
    said = reading_of("decoder", TASKS["copa"], max_length=200, batch_size=4).answer(
        data.validation, Teacher(model, tokenizer)
    )
    for example, answer in zip(data.validation, said.answers, strict=True):
        completion = TASKS["copa"].completion(example)
        for choice, found in zip(completion.answers, answer.logits, strict=True):
            prompt = tokenizer(completion.prompt.text)["input_ids"]
            ids = torch.tensor([tokenizer(completion.prompt.text + choice)["input_ids"]])
            with torch.no_grad():
                log_p = model(ids).logits.log_softmax(-1)
            at = range(len(prompt), ids.shape[1])
            assert ids[0, : len(prompt)].tolist() == prompt
            expected = sum(float(log_p[0, k - 1, ids[0, k]]) for k in at)
            assert found == pytest.approx(expected, rel=1e-4)


def test_an_encoder_decoder_writes_its_answers(tiny_t5: Path, tmp_path: Path):
    plain = recipe(tiny_t5, "encoder_decoder", "cb", "wsc")
    student = StudentRecipe(model=str(tiny_t5))
    report = run(replace(plain, student=student, loss=0.5 * Labels() + 0.5 * ForwardKL()), tmp_path).data
    assert set(report["student"]["tasks"]) == {"cb", "wsc"}
    answers = read_predictions(tmp_path / "predictions" / "student-cb-seed0.cb.jsonl")
    assert all(answer.text is not None and answer.logits == () for answer in answers)
    AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "student" / "cb", use_safetensors=True)


def test_an_encoder_decoder_learns_to_write(tiny_t5: Path):
    """Trained to write one label, it writes that label."""
    from distill.engine import Engine
    from distill.models import Student

    task = TASKS["rte"]
    examples = [replace(e, label=1) for e in load_task("rte", source="demo", train_examples=8).train]
    student = Student.load(str(tiny_t5), kind="seq2seq_lm", labels=task.labels)
    reading = reading_of("encoder_decoder", task, max_length=200, batch_size=4)
    train = TrainRecipe(max_steps=120, learning_rate=1e-2, per_device_train_batch_size=8)
    Engine(student, Labels(), reading.examples(examples, student), train).run()
    said = reading.answer(examples, student).answers
    assert {answer.text for answer in said} == {task.labels[1]}
    assert task.score(said)["accuracy"] == 1


def test_a_config_without_a_start_is_refused(tiny_llama: Path):
    reader = Teacher(
        AutoModelForCausalLM.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    )
    reading = reading_of("encoder_decoder", TASKS["rte"], max_length=200, batch_size=4)
    with pytest.raises(ModelError, match="decoder_start_token_id"):
        reading.examples(load_task("rte", source="demo", train_examples=2).train, reader)


@pytest.mark.parametrize(
    ("architecture", "data", "message"),
    [
        ("encoder", DataRecipe(chat=True), "data.chat|only for tasks with architecture decoder"),
        ("decoder", DataRecipe(source="text", path="x", chat=True), "only for tasks"),
        ("encoder_decoder", DataRecipe(source="text", path="x"), "must be encoder or decoder"),
    ],
)
def test_what_an_architecture_cannot_do_is_said(architecture, data, message):
    with pytest.raises(FieldMistakes, match=message):
        Recipe(
            name="x",
            architecture=architecture,
            data=data,
            teacher=TeacherRecipe(model="x", train=TRAIN),
            student=StudentRecipe(from_teacher=FromTeacher(layers=2)),
            loss=Labels(),
        )
