"""The log says how much each term pulls at the student's logits, and the training is the same as without a log."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from distill.engine import Engine
from distill.losses import ForwardKL, HiddenStates, Labels, Sinkhorn
from distill.recipe import TrainRecipe

LOSS = 0.5 * Labels() + 0.4 * ForwardKL(temperature=2.0)


def shares(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name.startswith("gradient_share/")}


@pytest.mark.parametrize(("micro", "accumulation"), [(32, 1), (8, 4)])
def test_the_shares_are_those_of_the_whole_batch_by_the_formulas(
    new_student, teacher, features, micro, accumulation
):
    train = TrainRecipe(
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        logging_steps=1,
        dropout=0.0,
    )
    index = list(range(32))
    batch = features.batch(index)
    student = new_student()
    with torch.no_grad():
        logits, taught = student.model.eval()(**batch.inputs).logits, teacher(batch).logits_NC
    engine = Engine(student, LOSS, features, train, teacher=teacher, log=lambda figures: None)
    engine.step(index)

    gold = torch.nn.functional.one_hot(torch.tensor(features.labels[:32]), 2)
    labels = 0.5 * (logits.softmax(1) - gold) / 32
    kl = 0.4 * ((logits / 2).softmax(1) - (taught / 2).softmax(1)) / 2 / 32
    expected = labels.norm() / (labels.norm() + kl.norm())
    found = shares(engine.figures.taken(engine.processes.gather, engine.loss))
    assert found["gradient_share/labels"] == pytest.approx(float(expected), rel=1e-4)
    assert math.isclose(sum(found.values()), 1)
    assert len(found) == 2


def test_what_is_logged_changes_no_weight(new_student, teacher, features):
    loss = LOSS + 0.1 * Sinkhorn()
    train = TrainRecipe(max_steps=6, learning_rate=1e-3, per_device_train_batch_size=16, logging_steps=1)
    lines: list[dict[str, float]] = []
    logged = Engine(new_student(), loss, features, train, teacher=teacher, log=lines.append).run()
    silent = Engine(new_student(), loss, features, train, teacher=teacher).run()
    assert [len(shares(line)) for line in lines] == [3] * 6
    assert lines[0] != lines[5]
    for (name, one), other in zip(
        logged.model.state_dict().items(), silent.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    "loss", [Labels(), Labels() + HiddenStates()], ids=["one term", "hidden states are no logits"]
)
def test_where_terms_do_not_pull_at_one_tensor_no_share_is_logged(new_student, teacher, features, loss):
    train = TrainRecipe(max_steps=2, logging_steps=1)
    lines: list[dict[str, float]] = []
    Engine(new_student(), loss, features, train, teacher=teacher, log=lines.append).run()
    assert len(lines) == 2
    assert not any(map(shares, lines))


def test_only_steps_that_are_logged_are_measured(new_student, teacher, features, monkeypatch):
    asked = []
    whole = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *given: asked.append(1) or whole(*given))
    train = TrainRecipe(max_steps=7, logging_steps=3, per_device_train_batch_size=8)
    Engine(new_student(), LOSS, features, train, teacher=teacher, log=lambda figures: None).run()
    measured = len(asked)
    Engine(new_student(), LOSS, features, replace(train, logging_steps=100), teacher=teacher).run()
    assert measured == 3 * 2  # of two terms: steps 3, 6 and the last
    assert len(asked) == measured
