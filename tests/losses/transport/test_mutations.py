"""Transport losses with mistakes that published code has made: each is caught, by the law or the number named."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from distill.losses.laws import LAWS, LawBroken

from distill.losses import Rows, Sinkhorn, SortedTransport


def far_rows() -> Rows:
    generator = torch.Generator().manual_seed(1)
    student, teacher = 2 * torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    return Rows(student=student, teacher=teacher)


def shares(
    rows: Rows,
    softmax_axis: int = -1,
    last: str = "columns",
    detach: str = "",
    self_costs: float = 0.0,
    mass: float = 1.0,
    rounds: int = 20,
) -> torch.Tensor:
    """The plain batch-wise loss by its definition; arguments but the first and the last are mistakes."""
    kept = rows.weights > 0
    p, q = ((z[kept] / 2).softmax(softmax_axis) for z in (rows.student_logits(), rows.teacher_logits()))

    def move(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        weight = rows.weights[kept] / rows.weights[kept].sum() * mass
        cost = (source[:, None] - target[None]).abs().sum(-1)
        plan = torch.exp(-cost / 0.1) * weight[:, None] * weight[None, :]
        for _ in range(rounds):
            for side in ("rows", "columns") if last == "columns" else ("columns", "rows"):
                axis = 1 if side == "rows" else 0
                scale = weight / plan.sum(axis)
                plan = plan * (scale[:, None] if side == "rows" else scale[None, :])
        plan = plan.detach() if detach == "plan" else plan
        cost = cost.detach() if detach == "cost" else cost
        return (plan * cost).sum(1) / weight * mass

    if detach == "student":
        p = p.detach()
    values = move(p, q)
    if self_costs:
        values = values - self_costs * (move(p, p) + move(q, q))
    everywhere = values.new_zeros(len(rows)).index_copy(0, kept.nonzero().squeeze(-1), values)
    return everywhere + 0 * rows.student_logits()[:, 0]


def missing_mask(rows: Rows) -> torch.Tensor:
    return shares(Rows(student=rows.student, teacher=rows.teacher)) * (rows.weights > 0)


def unweighted_sorting(rows: Rows) -> torch.Tensor:
    p, q = rows.student_logits().softmax(-1), rows.teacher_logits().softmax(-1)
    return (p.sort(-1).values - q.sort(0).values).abs().sum(-1)


def unsorted_student(rows: Rows) -> torch.Tensor:
    p, q = rows.student_logits().softmax(-1), rows.teacher_logits().softmax(-1)
    return (p - q.sort(-1, descending=True).values).abs().sum(-1)


MISTAKES: list[tuple[str, Callable[[Rows], torch.Tensor], str]] = [
    ("softmax over rows", lambda rows: shares(rows, softmax_axis=0), "shift_invariance"),
    ("missing mask", missing_mask, "masked_rows"),
    ("detached student", lambda rows: shares(rows, detach="student"), "gradient_is_the_slope"),
    ("detached plan called exact", lambda rows: shares(rows, detach="plan"), "gradient_is_the_slope"),
    ("detached cost", lambda rows: shares(rows, detach="cost"), "gradient_is_the_slope"),
    ("no self-costs called debiased", lambda rows: shares(rows), "zero_at_equality"),
    ("self-costs once too often", lambda rows: shares(rows, self_costs=1.0), "zero_at_equality"),
    ("sorting over rows", unweighted_sorting, "split_invariance"),
    ("the student left unsorted", unsorted_student, "zero_at_equality"),
]


@pytest.mark.parametrize(
    ("mistaken", "law"), [entry[1:] for entry in MISTAKES], ids=[entry[0] for entry in MISTAKES]
)
def test_a_mistake_breaks_the_law_named(mistaken, law):
    with pytest.raises(LawBroken):
        LAWS[law](mistaken, far_rows())
    right = SortedTransport() if law == "split_invariance" else Sinkhorn()
    LAWS[law](right, far_rows())


def test_marginals_of_one_give_the_published_codes_number(golden_rows):
    def mean(**mistake) -> float:
        return float(golden_rows.mean(shares(golden_rows, **mistake)))

    assert mean() == pytest.approx(0.436322, abs=6e-7)
    assert mean(mass=4.0) == pytest.approx(1.745289, abs=6e-6)


def test_rows_and_columns_swapped_show_in_the_single_rows():
    rows = far_rows()
    once = Sinkhorn(debias=False, iterations=1)(rows)
    torch.testing.assert_close(once, shares(rows, rounds=1), rtol=1e-10, atol=1e-12)
    assert float((once - shares(rows, rounds=1, last="rows")).abs().amax()) > 1e-3
    values = Sinkhorn(debias=False)(rows)
    torch.testing.assert_close(values, shares(rows), rtol=1e-10, atol=1e-12)
    swapped = replace(rows, student=rows.teacher, teacher=rows.student)
    assert float((values - shares(swapped)).abs().amax()) > 1e-2
