"""A student that already is its teacher has nothing to learn from it: no loss, no gradient, no drift."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from distill.engine import Engine, predict
from distill.losses import (
    PKD,
    AttentionMaps,
    ForwardKL,
    HiddenStates,
    JensenShannon,
    MeanSquaredLogits,
    Relations,
    ReverseKL,
    Sinkhorn,
    SkewKL,
)
from distill.models import NextTokens, RememberedTeacher, Student, Teacher
from distill.recipe import TrainRecipe

LOSSES = [
    ForwardKL(),
    ForwardKL(temperature=4.0, scale="temperature_squared"),
    ReverseKL(),
    JensenShannon(),
    SkewKL(),
    MeanSquaredLogits(),
    Sinkhorn(),
    HiddenStates(projection="identity", embeddings=True),
    PKD(),
    AttentionMaps(),
    Relations(heads=4),
]


def training(steps: int) -> TrainRecipe:
    # Dropout would make the student another model than its teacher.
    return TrainRecipe(
        max_steps=steps,
        learning_rate=1e-3,
        per_device_train_batch_size=16,
        logging_steps=1,
        dropout=0.0,
        weight_decay=0.0,
        max_grad_norm=None,
    )


def copy_of(teacher: Teacher) -> Student:
    return Student(copy.deepcopy(teacher.model).requires_grad_(True), teacher.tokenizer)


def first_step(student, loss, data, teacher) -> dict[str, float]:
    lines: list[dict[str, float]] = []
    Engine(student, loss, data, training(1), teacher=teacher, log=lines.append).run()
    return lines[0]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
def test_a_classifier(teacher, features, loss):
    found = first_step(copy_of(teacher), loss, features, teacher)
    assert abs(found["loss"]) <= 1e-6
    assert found["gradient_norm"] <= 1e-5


def test_a_language_model(tiny_llama):
    whole = Student.from_teacher(str(tiny_llama), layers=3, kind="causal_lm", labels=())
    torch.nn.init.normal_(whole.model.lm_head.weight)
    teacher = Teacher(whole.model, whole.tokenizer)
    draw = random.Random(0)
    texts = [[draw.randrange(2, 390) for _ in range(draw.randrange(4, 12))] for _ in range(24)]
    data = NextTokens(texts, None, whole.tokenizer)
    found = first_step(copy_of(teacher), ForwardKL(), data, teacher)
    assert abs(found["loss"]) <= 1e-6
    assert found["gradient_norm"] <= 1e-5


def test_a_live_teachers_student_stays_bitwise_what_it_was(teacher, features, model_state):
    student, lines = copy_of(teacher), []
    before = model_state(student.model)["tensors"]
    Engine(student, ForwardKL(), features, training(30), teacher=teacher, log=lines.append).run()
    assert {line["loss"] for line in lines} == {line["gradient_norm"] for line in lines} == {0.0}
    assert model_state(student.model)["tensors"] == before


def test_a_remembered_teachers_student_stays_near_it(teacher, features):
    """What is remembered was said in other batches, so that it differs by rounding: Adam divides even that by its size."""
    said_NC = predict(teacher, features, batch_size=64)
    remembered = RememberedTeacher(said_NC)
    found = first_step(copy_of(teacher), ForwardKL(), features, remembered)
    assert abs(found["loss"]) <= 1e-6
    assert found["gradient_norm"] <= 1e-5
    student, lines = copy_of(teacher), []
    Engine(student, ForwardKL(), features, training(60), teacher=remembered, log=lines.append).run()
    assert max(line["loss"] for line in lines) <= 0.01
    now_NC = predict(student, features, batch_size=64)
    sure_N = (said_NC[:, 0] - said_NC[:, 1]).abs() > 0.2
    assert sure_N.sum() > 32
    assert torch.equal(now_NC.argmax(1)[sure_N], said_NC.argmax(1)[sure_N])
