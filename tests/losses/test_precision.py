"""float32, bfloat16 and float16 logits give what the same numbers give in float64, to 5e-5 of the value and 1e-6."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from distill.losses import MultiLevelTransport, Rows, Sinkhorn, SortedTransport

from .conftest import ROW_WISE

LOSSES = (*ROW_WISE, SortedTransport(), Sinkhorn(), Sinkhorn(memory="low"), MultiLevelTransport())
# Where the logits are larger, float32 is too coarse for what a loss is made of: a quotient of differences of
# probabilities that are all nearly 1; differences of the logits themselves; which of two classes weighs more.
REACH = {"adaptive_kl": 10, "mean_squared_logits": 10, "multi_level_transport": 1}


def rows_of(spread: float, nearness: float, shape: tuple[int, int], dtype: torch.dtype) -> Rows:
    generator = torch.Generator().manual_seed(4)
    student, teacher = spread * torch.randn(2, *shape, generator=generator)
    student = teacher + nearness * (student - teacher)
    label = torch.randint(shape[1], shape[:1], generator=generator)
    return Rows(student=student.to(dtype), teacher=teacher.to(dtype), label=label)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.kind} {getattr(loss, 'memory', '')}")
def test_values_are_those_of_the_same_numbers_in_float64(loss, dtype):
    # Logits of a few units to hundreds, of students next to their teachers to far away.
    for spread in (1.0, 5.0, 10.0, 80.0):
        if spread > REACH.get(loss.kind, math.inf):
            continue
        for nearness in (1e-3, 0.1, 1.0):
            for shape in ((50, 5), (10, 1000), (2, 32_000)):
                rows = rows_of(spread, nearness, shape, dtype)
                assert rows.teacher is not None
                exact = replace(rows, student=rows.student.double(), teacher=rows.teacher.double())
                values_N = loss(rows)
                assert values_N.dtype == torch.float32
                torch.testing.assert_close(values_N.double(), loss(exact), rtol=5e-5, atol=1e-6)
