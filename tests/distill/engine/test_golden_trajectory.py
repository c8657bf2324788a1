"""Fifty steps of training have the losses that are written down in golden/, to the precision of float32.

A change that was meant to change nothing is thus told from one that does. Where a change of the numbers is meant,

    DISTILL_GOLDEN=write pytest tests/distill/engine/test_golden_trajectory.py

writes the files anew, with the machine and the versions in their first lines; the difference belongs in the commit.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distill.engine import Engine
from distill.environment import describe_environment
from distill.losses import AttentionMaps, ForwardKL, HiddenStates, Labels, ReverseKL, Sinkhorn
from distill.models import NextTokens, Student, Teacher
from distill.recipe import TrainRecipe

GOLDEN = Path(__file__).parent / "golden"
STEPS = 50
# Relative to the loss. Processors round differently: without vector instructions (ATEN_CPU_CAPABILITY=default) the
# largest difference was 2.7e-7 and the mean, where roundings cancel and mistakes do not, 2.6e-8; with AVX2, 1.6e-7 and
# 1.1e-8. On the processor that wrote the files both are 0.
LARGEST, MEAN = 1e-6, 1e-7


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trajectory(student, loss, data, teacher, *, micro: int = 8, accumulation: int = 1) -> list[float]:
    train = TrainRecipe(
        max_steps=STEPS,
        learning_rate=2e-4,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        weight_decay=0.01,
        logging_steps=1,
        dropout=0.0,  # its masks depend on the shape of a forward pass
        precision="fp32",
    )
    lines: list[dict[str, float]] = []
    Engine(student, loss, data, train, teacher=teacher, seed=11, log=lines.append).run()
    return [line["loss"] for line in lines]


@pytest.fixture(params=["encoder", "decoder"])
def training(request, new_student, teacher, features, tiny_llama):
    """Name, function that makes the student, loss that may be split, its data and its teacher."""
    if request.param == "encoder":
        loss = 0.5 * Labels() + 0.5 * ForwardKL(temperature=2.0, scale="temperature_squared")
        return "encoder", new_student, loss + 0.1 * HiddenStates() + 0.1 * AttentionMaps(), features, teacher
    whole = Student.from_teacher(str(tiny_llama), layers=3, kind="causal_lm", labels=())
    cut = Student.from_teacher(str(tiny_llama), layers=2, kind="causal_lm", labels=())
    torch.manual_seed(5)
    torch.nn.init.normal_(whole.model.lm_head.weight)  # opinions to learn from
    draw = random.Random(5)
    texts = [[draw.randrange(2, 390) for _ in range(draw.randrange(4, 14))] for _ in range(64)]
    data = NextTokens(texts, None, whole.tokenizer)

    def make() -> Student:
        return Student(copy.deepcopy(cut.model), cut.tokenizer, cut.provenance)

    loss = 0.5 * Labels() + 0.3 * ForwardKL() + 0.2 * ReverseKL()
    return "decoder", make, loss, data, Teacher(whole.model, whole.tokenizer)


def residuals(found: list[float], expected: list[float]) -> list[float]:
    assert len(found) == len(expected)
    return [(one - other) / max(abs(other), 1e-3) for one, other in zip(found, expected, strict=True)]


def test_fifty_steps_have_the_losses_that_are_written_down(training):
    name, make, loss, data, teacher = training
    whole = loss + 0.2 * Sinkhorn() if name == "encoder" else loss
    found = trajectory(make(), whole, data, teacher)
    assert found[-1] < 0.99 * found[0]
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("DISTILL_GOLDEN") == "write":
        made = describe_environment()
        versions = ", ".join(
            f"{package} {made['packages'][package]}" for package in ("torch", "transformers")
        )
        machine = f"{made['processor']} ({torch.backends.cpu.get_cpu_capability()})"
        head = (
            f"# {machine}, one thread; {versions}. Steps 1 to {STEPS}: the loss, and its value in decimals.\n"
        )
        file.parent.mkdir(exist_ok=True)
        file.write_text(head + "".join(f"{value.hex()} {value!r}\n" for value in found))
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    difference = residuals(found, [float.fromhex(line.split()[0]) for line in lines])
    assert max(map(abs, difference)) <= LARGEST
    assert abs(sum(difference)) / STEPS <= MEAN


@pytest.mark.parametrize(("micro", "accumulation"), [(4, 2), (2, 4)])
def test_a_batch_in_pieces_has_the_same_losses(training, micro, accumulation):
    _, make, loss, data, teacher = training
    whole = trajectory(make(), loss, data, teacher)
    pieces = trajectory(make(), loss, data, teacher, micro=micro, accumulation=accumulation)
    assert max(map(abs, residuals(pieces, whole))) <= LARGEST
