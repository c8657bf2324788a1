"""What is the same when the two sides, or the rows, change places."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.losses import (
    ForwardKL,
    JensenShannon,
    ReverseKL,
    Rows,
    Sinkhorn,
    SkewKL,
    SkewReverseKL,
    SortedTransport,
    TotalVariation,
)

from .conftest import ROW_WISE

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=DTYPES, ids=str)
def many_rows(request) -> list[Rows]:
    """Four hundred rows in four batches: of one class to many, flat to very sharp, alike to far apart."""
    generator = torch.Generator().manual_seed(11)
    batches = []
    for classes in (1, 2, 5, 33):
        spread_N1 = 10 ** torch.linspace(-2, 2, 100, dtype=torch.float64)[:, None]
        student, teacher = spread_N1 * torch.randn(2, 100, classes, generator=generator, dtype=torch.float64)
        student[::3] = teacher[::3] + 1e-2 * student[::3]
        label = torch.randint(classes, (100,), generator=generator)
        batches.append(
            Rows(student=student.to(request.param), teacher=teacher.to(request.param), label=label)
        )
    return batches


def swapped(rows: Rows) -> Rows:
    assert rows.teacher is not None
    return replace(rows, student=rows.teacher, teacher=rows.student)


MIRRORED = [
    (ForwardKL(temperature=2.0), ReverseKL(temperature=2.0)),
    (SkewKL(skew=0.3), SkewReverseKL(skew=0.3)),
    (JensenShannon(), JensenShannon()),
    (JensenShannon(beta=0.2), JensenShannon(beta=0.8)),
    (TotalVariation(), TotalVariation()),
    (SortedTransport(), SortedTransport()),
]


@pytest.mark.parametrize(("loss", "mirror"), MIRRORED, ids=[f"{a.kind} {b.kind}" for a, b in MIRRORED])
def test_a_loss_is_its_mirror_with_the_two_sides_swapped(loss, mirror, many_rows):
    for rows in many_rows:
        found, expected = loss(rows), mirror(swapped(rows))
        digits = 1e-12 if found.dtype == torch.float64 else 2e-6
        torch.testing.assert_close(found, expected, rtol=digits, atol=digits / 10)


def test_the_jensen_shannon_divergence_is_at_most_ln_2(many_rows):
    for rows in many_rows:
        values_N = JensenShannon()(rows)
        assert bool((values_N <= math.log(2) * (1 + 2e-7)).all())
        assert bool((values_N >= 0).all())


@pytest.mark.parametrize("loss", [*ROW_WISE, SortedTransport()], ids=lambda loss: loss.kind)
def test_a_row_has_its_value_wherever_it_stands_and_whatever_stands_beside_it(loss, many_rows):
    for rows in many_rows:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(2))
        values_N = loss(rows)
        # Not to the last bit: a processor takes the logarithms of several rows at once, and of the last few one by one.
        digits = (
            {"rtol": 1e-13, "atol": 1e-16}
            if values_N.dtype == torch.float64
            else {"rtol": 1e-6, "atol": 1e-8}
        )
        torch.testing.assert_close(loss(rows.select(order)), values_N[order], **digits)
        for row in range(0, len(rows), 9):
            torch.testing.assert_close(
                loss(rows.select(slice(row, row + 1))), values_N[row : row + 1], **digits
            )


@pytest.mark.parametrize("cost", ["l1", "total_variation", "squared_euclidean", "cosine"])
def test_the_debiased_transport_cost_is_symmetric_never_negative_and_0_between_equal_clouds(cost):
    # Until the rounds come to rest.
    loss = Sinkhorn(cost=cost, epsilon=0.5, iterations=200)

    @settings(max_examples=75, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**31), st.integers(1, 6), st.integers(2, 5))
    def holds(seed: int, count: int, classes: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        student, teacher = 2 * torch.randn(2, count, classes, generator=generator, dtype=torch.float64)
        rows = Rows(student=student, teacher=teacher)
        mean, back = rows.mean(loss(rows)), rows.mean(loss(swapped(rows)))
        assert float(mean) == pytest.approx(float(back), abs=1e-9)
        assert float(mean) >= -1e-9
        same = replace(rows, teacher=rows.student[torch.randperm(count, generator=generator)])
        assert abs(float(same.mean(loss(same)))) <= 1e-9

    holds()
