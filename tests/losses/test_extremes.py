"""The largest numbers, vocabularies and temperatures that can come, all at once: values and gradients stay finite."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distill.errors import NumericsError
from distill.losses import Loss, MultiLevelTransport, Rows, SampledTargets, Sinkhorn, SortedTransport

from .conftest import ROW_WISE

REAL, PADDED = 151_936, 152_064
LARGEST = {torch.float16: 6e4, torch.bfloat16: 3e38, torch.float32: 3e38}
LOSSES = (
    *ROW_WISE,
    SampledTargets(samples=8),
    Sinkhorn(iterations=5),
    Sinkhorn(iterations=5, memory="low"),
    SortedTransport(),
    MultiLevelTransport(iterations=5),
)


def large_rows(dtype: torch.dtype) -> Rows:
    """A vocabulary with padded columns, in which an ordinary row, one of the largest numbers and a certain teacher meet."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = 5 * torch.randn(2, 3, PADDED, generator=generator)
    student[1, :2] = torch.tensor([LARGEST[dtype], -LARGEST[dtype]])
    teacher[1, :2] = torch.tensor([-LARGEST[dtype], LARGEST[dtype]])
    teacher[2] = -math.inf
    teacher[2, 7] = 0.0
    for logits in (student, teacher):
        logits[:, REAL:] = -math.inf
    return Rows(student=student.to(dtype), teacher=teacher.to(dtype), label=torch.tensor([0, 1, REAL - 1]))


def at_temperature(loss: Loss, temperature: float) -> Loss:
    return replace(loss, temperature=temperature) if hasattr(loss, "temperature") else loss


def value_and_gradient(loss: Loss, rows: Rows) -> tuple[Tensor, Tensor]:
    live = replace(rows, student=rows.student.detach().clone().requires_grad_())
    mean = live.mean(loss(live))
    mean.backward()
    assert live.student.grad is not None
    return mean.detach(), live.student.grad


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dtype", LARGEST, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
def test_a_large_vocabulary_of_extreme_numbers_gives_finite_values_and_gradients(loss, dtype, temperature):
    rows = large_rows(dtype)
    # Below temperature 1 a true gradient can exceed what float16 holds.
    if temperature < 1:
        rows = replace(rows, student=rows.student.float())
    mean, gradient_NV = value_and_gradient(at_temperature(loss, temperature), rows)
    assert bool(mean.isfinite())
    assert bool(gradient_NV.isfinite().all())
    assert bool((gradient_NV[:, REAL:] == 0).all())


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_one_nan_among_many_numbers_is_named(whose):
    rows = large_rows(torch.float32)
    logits = getattr(rows, whose).clone()
    logits[1, 100_000] = math.nan
    with pytest.raises(NumericsError, match=rf"^{whose} logits: row 1 of 3"):
        replace(rows, **{whose: logits}).check_finite()
