"""Multi-level transport against plain loops, term by term."""

import math
from dataclasses import replace

import pytest
import torch

from distill.losses import MultiLevelTransport, Rows, Sinkhorn


def random_rows(rows: int, classes: int, seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return Rows(student=student, teacher=teacher)


def kept_probabilities(logits: list[list[float]], kept: int) -> list[list[float]]:
    rows = []
    for z in logits:
        total = sum(map(math.exp, z))
        rows.append([math.exp(x) / total for x in z])
    mass = [sum(column) for column in zip(*rows, strict=True)]
    order = sorted(range(len(mass)), key=lambda k: -mass[k])[:kept]
    return [[row[k] for k in order] for row in rows]


def by_loops(rows: Rows, kept: int, logarithmic: float, sequence: float) -> float:
    """The mean over one group of equal weights, without debiasing."""
    p = kept_probabilities(rows.teacher.tolist(), kept)
    q = kept_probabilities(rows.student.tolist(), kept)
    count = len(p)
    difference = sum(
        abs(a - b) for row_p, row_q in zip(p, q, strict=True) for a, b in zip(row_p, row_q, strict=True)
    )
    entropy = sum(
        a * math.log(a / b) - a + b
        for row_p, row_q in zip(p, q, strict=True)
        for a, b in zip(row_p, row_q, strict=True)
    )
    cost = [[sum(abs(a - b) for a, b in zip(row_q, row_p, strict=True)) for row_p in p] for row_q in q]
    plan = [[math.exp(-c / 0.1) for c in row] for row in cost]
    for _ in range(10):
        plan = [[x / sum(row) / count for x in row] for row in plan]
        sums = [sum(column) * count for column in zip(*plan, strict=True)]
        plan = [[x / total for x, total in zip(row, sums, strict=True)] for row in plan]
    moved = sum(x * c for row, costs in zip(plan, cost, strict=True) for x, c in zip(row, costs, strict=True))
    return (difference + logarithmic * entropy) / count + sequence * moved


@pytest.mark.parametrize("kept", [1, 4, 9, 50])
@pytest.mark.parametrize(("logarithmic", "sequence"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.1), (0.3, 2.0)])
def test_its_mean_over_a_group_is_the_plain_loops(kept, logarithmic, sequence):
    rows = random_rows(5, 9)
    loss = MultiLevelTransport(kept=kept, logarithmic=logarithmic, sequence=sequence, debias=False)
    assert float(rows.mean(loss(rows))) == pytest.approx(
        by_loops(rows, kept, logarithmic, sequence), rel=1e-11
    )


def test_its_sequence_term_over_all_classes_is_sinkhorn_where_both_sort_alike():
    generator = torch.Generator().manual_seed(1)
    # A steep slope over the classes, so that both sides' order is 0, 1, 2, ….
    slope = -3 * torch.arange(6).double()
    rows = Rows(
        student=slope + torch.rand(4, 6, generator=generator).double(),
        teacher=slope + torch.rand(4, 6, generator=generator).double(),
    )
    with_it, without = (MultiLevelTransport(sequence=s, kept=6) for s in (1.0, 0.0))
    found = with_it(rows) - without(rows)
    expected = Sinkhorn(temperature=1.0, iterations=10)(rows)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_a_teacher_whose_classes_have_other_names_costs_nothing():
    rows = random_rows(6, 12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    renamed = replace(rows, teacher=rows.student[:, order])
    values = MultiLevelTransport(kept=8)(renamed)
    torch.testing.assert_close(values, torch.zeros(6).double(), rtol=0, atol=1e-12)


def test_classes_are_sorted_once_for_a_group_not_once_a_row():
    # The teacher says the same class twice, the student two different ones, as surely: row by row they look alike.
    student = torch.tensor([[3.0, 0.0, 1.0], [0.0, 3.0, 1.0]]).double()
    teacher = torch.tensor([[3.0, 0.0, 1.0], [3.0, 0.0, 1.0]]).double()
    together = Rows(student=student, teacher=teacher)
    apart = replace(together, group=torch.tensor([0, 1]))
    loss = MultiLevelTransport(logarithmic=0.0, sequence=0.0)
    assert float(apart.mean(loss(apart))) == pytest.approx(0, abs=1e-12)
    assert float(together.mean(loss(together))) == pytest.approx(by_loops(together, 3, 0, 0))
    assert float(together.mean(loss(together))) > 0.5


def test_groups_are_separate_and_say_how_they_went():
    rows = replace(random_rows(7, 30), group=torch.tensor([5, 2, 5, 2, 2, 5, 9]))
    loss = MultiLevelTransport(kept=5)
    values, diagnostics = loss.evaluate(rows)
    for group in (2, 5, 9):
        torch.testing.assert_close(values[rows.group == group], loss(rows.select(rows.group == group)))
    assert set(diagnostics) == {"marginal_error", "converged", "kept_mass"}
    assert 0 < float(diagnostics["kept_mass"]) < 1
    assert float(MultiLevelTransport().evaluate(rows)[1]["kept_mass"]) == pytest.approx(1)
    hasty = MultiLevelTransport(epsilon=0.02, iterations=1).evaluate(random_rows(12, 2))[1]
    assert float(hasty["marginal_error"]) > 0.01
    assert float(hasty["converged"]) < 1
