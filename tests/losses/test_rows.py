"""Rows: shapes checked once, one mean, and non-finite numbers named."""

import pytest
import torch

from distill.errors import NumericsError
from distill.losses import (
    TAID,
    AdaptiveKL,
    ForwardKL,
    GhostTokenKL,
    JensenShannon,
    Labels,
    MeanSquaredLogits,
    ReverseKL,
    Rows,
    Sinkhorn,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
)

LOSSES = (
    ForwardKL(),
    ReverseKL(),
    JensenShannon(),
    Labels(),
    SkewKL(),
    SkewReverseKL(),
    TotalVariation(),
    AdaptiveKL(),
    TAID(),
    GhostTokenKL(kept=2),
    MeanSquaredLogits(),
    Sinkhorn(),
    Sinkhorn(debias=False, group_size=2),
)


def make(**changes) -> Rows:
    parts = {
        "student": torch.zeros(3, 4),
        "teacher": torch.zeros(3, 4),
        "label": torch.zeros(3, dtype=torch.long),
    }
    return Rows(**{**parts, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"student": torch.zeros(3)},
            ValueError,
            r"student logits must have shape \(N, V\), V >= 1, got \(3,\)",
        ),
        ({"student": torch.zeros(3, 0)}, ValueError, r"V >= 1, got \(3, 0\)"),
        (
            {"teacher": torch.zeros(3, 5)},
            ValueError,
            r"different vocabularies: expected \(3, 4\).*got \(3, 5\)",
        ),
        ({"teacher": torch.zeros(2, 4)}, ValueError, r"the student's shape \(3, 4\), got \(2, 4\)"),
        (
            {"label": torch.zeros(2, dtype=torch.long)},
            ValueError,
            r"label must have shape \(3,\).*got \(2,\)",
        ),
        ({"weight": torch.ones(3, 1)}, ValueError, r"weight must have shape \(3,\).*got \(3, 1\)"),
        ({"group": torch.zeros(3)}, TypeError, "group must hold integers, got torch.float32"),
        ({"label": torch.zeros(3)}, TypeError, "label must hold integers, got torch.float32"),
        (
            {"student": torch.zeros(3, 4, dtype=torch.long)},
            TypeError,
            "student logits must be floating-point",
        ),
        ({"student": [[0.0]]}, TypeError, "student must be a torch tensor, got list"),
        ({"weight": torch.ones(3, device="meta")}, ValueError, "weight is on meta, but student is on cpu"),
    ],
)
def test_what_does_not_belong_together_is_refused_with_both_shapes(changes, error, message):
    with pytest.raises(error, match=message):
        make(**changes)


def test_the_mean_weighs_rows():
    rows = make(weight=torch.tensor([1.0, 3.0, 0.0]))
    assert float(rows.mean(torch.tensor([2.0, 4.0, torch.nan]))) == 3.5
    assert float(make().mean(torch.tensor([2.0, 4.0, 6.0]))) == 4.0
    assert float(make(weight=torch.tensor([True, False, True])).mean(torch.tensor([2.0, 4.0, 6.0]))) == 4.0


@pytest.mark.parametrize(
    "total", [8.0, torch.tensor(8.0), torch.tensor(8.0, dtype=torch.float64), torch.tensor(8)]
)
def test_the_mean_takes_the_whole_batchs_weight(total):
    mean = make().mean(torch.tensor([2.0, 4.0, 6.0]), total_weight=total)
    assert float(mean) == 1.5
    assert mean.dtype == torch.float32


def test_the_mean_refuses_values_of_another_shape():
    with pytest.raises(ValueError, match=r"values must have shape \(3,\), one a row, got \(\)"):
        make().mean(torch.tensor(1.0))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("rows", [0, 3], ids=["no rows", "all masked"])
def test_a_mean_over_nothing_is_a_zero_with_a_gradient(loss, rows):
    student = torch.full((rows, 4), torch.nan, requires_grad=True)
    empty = Rows(
        student=student,
        teacher=torch.zeros(rows, 4),
        label=torch.full((rows,), -100),
        weight=torch.zeros(rows),
    )
    mean = empty.mean(loss(empty))
    mean.backward()
    assert float(mean.detach()) == 0
    assert student.grad is not None
    assert bool((student.grad == 0).all())


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_masked_row_of_nan_and_infinity_leaves_no_trace(loss):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, generator=generator)
    clean = make(student=logits[0], teacher=logits[1])
    student = torch.cat([logits[0], torch.tensor([[torch.nan, torch.inf, 0, 0]])]).requires_grad_()
    dirty = Rows(
        student=student,
        teacher=torch.cat([logits[1], torch.full((1, 4), -torch.inf)]),
        label=torch.tensor([0, 0, 0, -100]),
        weight=torch.tensor([1.0, 1.0, 1.0, 0.0]),
    )
    dirty.check_finite()
    mean = dirty.mean(loss(dirty))
    mean.backward()
    assert torch.equal(mean.detach(), clean.mean(loss(clean)))
    assert torch.equal(student.grad[3], torch.zeros(4))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["student", "teacher"])
def test_nan_and_infinity_are_named_by_tensor_and_row(name, poison):
    logits = torch.zeros(3, 4)
    logits[1, 2] = poison
    with pytest.raises(NumericsError, match=rf"^{name} logits: row 1 of 3: .* got {poison}"):
        make(**{name: logits}).check_finite()


def test_a_row_without_a_possible_class_is_named():
    logits = torch.zeros(3, 4)
    logits[2] = -torch.inf
    with pytest.raises(NumericsError, match="student logits: row 2 of 3"):
        make(student=logits).check_finite()


@pytest.mark.parametrize("weight", [torch.nan, -1.0, torch.inf])
def test_an_unusable_weight_is_named(weight):
    with pytest.raises(NumericsError, match="weight: row 1 of 3"):
        make(weight=torch.tensor([1.0, weight, 1.0])).check_finite()


def test_impossible_classes_are_finite_enough():
    logits = torch.zeros(3, 4)
    logits[:, 3] = -torch.inf
    make(student=logits, teacher=logits).check_finite()


@pytest.mark.parametrize("loss", LOSSES[:-1], ids=repr)
def test_a_nan_in_a_row_that_counts_shows_in_its_value(loss):
    student = torch.zeros(3, 4)
    student[1, 2] = torch.nan
    rows = make(student=student)
    assert bool(rows.mean(loss(rows)).isnan())
    if loss.additive:
        assert loss(rows).isnan().tolist() == [False, True, False]


def test_selected_rows_keep_what_belongs_to_them():
    rows = make(weight=torch.tensor([1.0, 2.0, 3.0]), group=torch.tensor([0, 1, 1]))
    part = rows.select(torch.tensor([2, 0]))
    assert part.weight.tolist() == [3.0, 1.0]
    assert part.group.tolist() == [1, 0]
    assert part.student.shape == (2, 4)
    assert Rows(student=torch.zeros(3, 4)).select(slice(1)).teacher is None


def test_losses_say_what_rows_lack():
    bare = Rows(student=torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"rows\.teacher is None"):
        ForwardKL()(bare)
    with pytest.raises(ValueError, match=r"rows\.label is None"):
        Labels()(bare)


def test_a_label_outside_the_classes_is_refused_where_it_counts():
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        Labels()(make(label=torch.tensor([0, 4, 0])))
