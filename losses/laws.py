"""What every distillation loss must obey, as functions that also test somebody else's loss.

A law takes a loss (anything that is called on `Rows` and returns one value a row) and ordinary rows with student,
teacher and label, and raises `LawBroken` with what it saw. A loss says through its attributes which laws it does not
claim (`additive`, `random`, `needs_teacher`, `zero_at_equality`, `exact_gradient`, `bound`); a loss without such
attributes is held to all of them. `accuracy` is the relative rounding error of a loss that computes in float32 whatever its logits
are (0 without it: float64 logits are computed in float64).

    for name, law in laws_of(loss).items():
        law(loss, rows)

N rows, V vocabulary or classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .rows import Rows

LossFunction = Callable[[Rows], Tensor]
Law = Callable[[LossFunction, Rows], None]


class LawBroken(AssertionError):
    """A loss that does not do what the law says; the message holds the numbers."""


def law_one_value_a_row(loss: LossFunction, rows: Rows) -> None:
    """Values have shape (N,) and are float32, or float64 for float64 logits."""
    values_N = loss(rows)
    if values_N.shape != (len(rows),):
        raise LawBroken(f"expected one value for each of {len(rows)} rows, got shape {tuple(values_N.shape)}")
    expected = torch.float64 if rows.student.dtype == torch.float64 else torch.float32
    if values_N.dtype != expected:
        raise LawBroken(f"expected {expected} values for {rows.student.dtype} logits, got {values_N.dtype}")


def law_zero_at_equality(loss: LossFunction, rows: Rows) -> None:
    """A student that equals its teacher costs nothing."""
    values_N = loss(replace(rows, teacher=rows.student.detach()))
    limit = 1e-12 if values_N.dtype == torch.float64 else 1e-6
    if not bool((values_N.abs() <= limit).all()):
        raise LawBroken(f"student = teacher costs up to {float(values_N.abs().amax()):.4g}, not 0")


def law_never_negative(loss: LossFunction, rows: Rows) -> None:
    """No row's value is negative; of a batch-wise loss, the mean is not (up to its solver's rounding)."""
    values_N = loss(rows)
    if getattr(loss, "additive", True):
        smallest, limit = float(values_N.amin()) if len(rows) else 0.0, 0.0
    else:
        smallest, limit = float(rows.mean(values_N)), 1e-6
    if not smallest >= -limit:
        raise LawBroken(f"expected nothing below 0, got {smallest:.3g}")


def law_bounded(loss: LossFunction, rows: Rows) -> None:
    """No value (of a batch-wise loss: no mean) exceeds the bound that the loss states, if it states one."""
    bound = getattr(loss, "bound", math.inf) * getattr(loss, "weight", 1.0)
    values_N = loss(rows)
    largest = float(values_N.amax()) if getattr(loss, "additive", True) else float(rows.mean(values_N))
    if not largest <= bound * (1 + 1e-5) + 1e-6:
        raise LawBroken(f"expected at most {bound}, got {largest}")


def law_shift_invariance(loss: LossFunction, rows: Rows) -> None:
    """A constant added to a row's logits changes nothing: softmax runs over classes, not over rows."""
    rows = in_double(rows)
    student_N1 = torch.linspace(-3, 5, len(rows), dtype=torch.float64, device=rows.student.device)[:, None]
    shifted = replace(rows, student=rows.student + student_N1)
    if rows.teacher is not None:
        shifted = replace(shifted, teacher=rows.teacher - student_N1.flip(0))
    expect_close(loss, "values after a shift of each row's logits", loss(shifted), loss(rows), 1e-7)


def law_relabelled_classes(loss: LossFunction, rows: Rows) -> None:
    """Renumbering the classes on both sides changes nothing."""
    rows = in_double(rows)
    order_V = torch.randperm(rows.student.shape[1], generator=_generator()).to(rows.student.device)
    renumbered = replace(
        rows,
        student=rows.student[:, order_V],
        teacher=None if rows.teacher is None else rows.teacher[:, order_V],
        label=None if rows.label is None else order_V.argsort()[rows.label],
    )
    expect_close(loss, "values after renumbering the classes", loss(renumbered), loss(rows), 1e-7)


def law_impossible_class(loss: LossFunction, rows: Rows) -> None:
    """A class that neither side can produce (−inf, as in padded vocabularies) changes nothing."""
    rows = in_double(rows)
    wider = replace(
        rows,
        student=with_class(rows.student, -math.inf),
        teacher=None if rows.teacher is None else with_class(rows.teacher, -math.inf),
    )
    expect_close(loss, "values with a class nobody can produce", loss(wider), loss(rows), 1e-7)


def law_row_order(loss: LossFunction, rows: Rows) -> None:
    """Values follow their rows when the rows change places."""
    rows = in_double(rows)
    order_N = torch.randperm(len(rows), generator=_generator()).to(rows.student.device)
    expect_close(
        loss, "values of rows in another order", loss(rows.select(order_N)), loss(rows)[order_N], 1e-7
    )


def law_masked_rows(loss: LossFunction, rows: Rows) -> None:
    """Rows of weight 0 contribute exactly nothing to the mean and get a gradient of 0, whatever they hold."""
    rows = in_double(rows)
    wild_2V = rows.student.new_full((2, rows.student.shape[1]), math.nan)
    wild_2V[1] = math.inf
    padded = Rows(
        student=torch.cat([rows.student, wild_2V]),
        teacher=None if rows.teacher is None else torch.cat([rows.teacher, wild_2V]),
        label=None if rows.label is None else torch.cat([rows.label, rows.label.new_full((2,), -100)]),
        weight=torch.cat([rows.weights, rows.weights.new_zeros(2)]),
        group=None if rows.group is None else torch.cat([rows.group, rows.group[-1:].expand(2)]),
    )
    mean, gradient_NV = mean_and_gradient(loss, rows)
    padded_mean, padded_gradient_NV = mean_and_gradient(loss, padded)
    expect_close(loss, "mean beside rows of weight 0", padded_mean, mean, 1e-12)
    expect_close(
        loss, "gradient beside rows of weight 0", padded_gradient_NV[: len(rows)], gradient_NV, 1e-12
    )
    if not bool((padded_gradient_NV[len(rows) :] == 0).all()):
        largest = float(padded_gradient_NV[len(rows) :].abs().amax())
        raise LawBroken(f"rows of weight 0 get a gradient, up to {largest:.3g}")


def law_weight_counts_rows(loss: LossFunction, rows: Rows) -> None:
    """A row of weight 2 counts like the same row twice."""
    rows = in_double(rows)
    twice = rows.select(torch.cat([torch.arange(len(rows)), torch.zeros(1, dtype=torch.long)]))
    weight_N = rows.weights.clone()
    weight_N[0] *= 2
    heavier = replace(rows, weight=weight_N)
    expect_close(loss, "mean of a doubled row", twice.mean(loss(twice)), heavier.mean(loss(heavier)), 1e-7)


def law_split_invariance(loss: LossFunction, rows: Rows) -> None:
    """Micro-batches add up to the batch: mean and gradient do not depend on where it is cut."""
    rows = in_double(rows)
    total = rows.weights.sum()
    whole, gradient_NV = mean_and_gradient(loss, rows)
    for size in {1, 2, (len(rows) + 1) // 2}:
        student_NV = rows.student.detach().requires_grad_()
        live = replace(rows, student=student_NV)
        pieces = [live.select(slice(start, start + size)) for start in range(0, len(rows), size)]
        added = torch.stack([piece.mean(loss(piece), total_weight=total) for piece in pieces]).sum()
        expect_close(loss, f"mean from micro-batches of {size}", added, whole, 1e-10)
        expect_close(
            loss, f"gradient from micro-batches of {size}", _gradient(added, student_NV), gradient_NV, 1e-10
        )


def law_finite_at_extremes(loss: LossFunction, rows: Rows) -> None:
    """Values and gradients stay finite for ±6e4 logits, −inf classes, one-hot teachers, one class and no rows."""
    for case, extreme in extremes(rows).items():
        expect_finite(loss, case, extreme)


def extremes(rows: Rows) -> dict[str, Rows]:
    """Return rows like these at the edges of what logits, classes, weights and batches can be, by name."""
    count, classes = rows.student.shape
    place_N = torch.arange(count, device=rows.student.device) % classes
    hot_NV = torch.nn.functional.one_hot(place_N, classes).bool()
    huge_NV = torch.full_like(rows.student, -6e4).masked_fill(hot_NV, 6e4)
    certain_NV = torch.full_like(rows.student, -math.inf).masked_fill(hot_NV, 0.0)
    label_N = None if rows.label is None else rows.label[:0]
    # Everything is impossible but one class, on one side or on both, equal or not.
    return {
        "±6e4 student logits": replace(rows, student=huge_NV),
        "±6e4 teacher logits": _with_teacher(rows, huge_NV),
        "±6e4 logits that disagree": _with_teacher(replace(rows, student=huge_NV), -huge_NV),
        "a one-hot teacher": _with_teacher(rows, certain_NV),
        "a one-hot student": replace(rows, student=certain_NV),
        "one-hot teacher and student": _with_teacher(replace(rows, student=certain_NV), certain_NV),
        "one class": Rows(
            student=rows.student[:, :1],
            teacher=None if rows.teacher is None else rows.teacher[:, :1],
            label=None if rows.label is None else torch.zeros_like(rows.label),
            weight=rows.weight,
            group=rows.group,
        ),
        "no rows": replace(rows.select(slice(0)), label=label_N),
        "every row masked": replace(rows, weight=torch.zeros_like(rows.weights)),
    }


def expect_finite(loss: LossFunction, case: str, rows: Rows) -> None:
    """Raise LawBroken unless the mean and its gradient are finite, and 0 where nothing counts."""
    mean, gradient_NV = mean_and_gradient(loss, rows)
    if not bool(mean.isfinite()) or not bool(gradient_NV.isfinite().all()):
        wrong = int((~gradient_NV.isfinite()).sum())
        raise LawBroken(
            f"{case}: mean {float(mean):.4g}, {wrong} of {gradient_NV.numel()} gradient entries not finite"
        )
    if not bool((rows.weights > 0).any()) and float(mean) != 0:
        raise LawBroken(f"{case}: expected a mean of 0, got {float(mean)}")


def law_nan_shows(loss: LossFunction, rows: Rows) -> None:
    """A NaN logit in a row that counts makes the mean NaN: it is not silently passed over."""
    heaviest = int(rows.weights.argmax())
    student_NV = rows.student.detach().clone()
    student_NV[heaviest, -1] = math.nan
    spoilt = replace(rows, student=student_NV)
    mean = spoilt.mean(loss(spoilt))
    if not bool(mean.isnan()):
        raise LawBroken(f"a NaN student logit in row {heaviest} left a mean of {float(mean)}")


def law_teacher_gets_no_gradient(loss: LossFunction, rows: Rows) -> None:
    """Nothing flows back into the teacher, even from logits that would take it."""
    if rows.teacher is None:
        return
    teacher_NV = rows.teacher.detach().requires_grad_()
    live = replace(rows, student=rows.student.detach().requires_grad_(), teacher=teacher_NV)
    mean = live.mean(loss(live))
    if mean.requires_grad:
        mean.backward()  # type: ignore[no-untyped-call]
    if teacher_NV.grad is not None and bool((teacher_NV.grad != 0).any()):
        raise LawBroken(
            f"the teacher's logits got a gradient, up to {float(teacher_NV.grad.abs().amax()):.3g}"
        )


def law_gradient_is_the_slope(loss: LossFunction, rows: Rows) -> None:
    """The student's gradient is the derivative of the mean, by finite differences."""
    rows = in_double(rows)
    noise_NV, direction_NV = torch.randn(
        2, *rows.student.shape, dtype=torch.float64, generator=_generator()
    ).to(rows.student.device)
    # Beside the rows given, not at them: where student and teacher coincide, an L1 cost has a kink and no slope.
    rows = replace(rows, student=rows.student + 0.1 * noise_NV)
    _, gradient_NV = mean_and_gradient(loss, rows)
    # A difference of two float32 numbers keeps its digits only over a longer step, which the curve then bends on.
    step, relative = (1e-6, 1e-5) if _accuracy(loss) == 0 else (1e-2, 1e-2)
    ahead = replace(rows, student=rows.student + step * direction_NV)
    behind = replace(rows, student=rows.student - step * direction_NV)
    slope = (ahead.mean(loss(ahead)) - behind.mean(loss(behind))) / (2 * step)
    expect_close(loss, "derivative along a direction", (gradient_NV * direction_NV).sum(), slope, relative)


def law_half_precision(loss: LossFunction, rows: Rows) -> None:
    """bfloat16 logits give what the same numbers give in float64."""
    coarse = replace(
        rows,
        student=rows.student.bfloat16(),
        teacher=None if rows.teacher is None else rows.teacher.bfloat16(),
    )
    expect_close(
        loss, "values of bfloat16 logits", loss(coarse).double(), loss(in_double(coarse)), 5e-5, 1e-6
    )


LAWS: dict[str, Law] = {
    "one_value_a_row": law_one_value_a_row,
    "zero_at_equality": law_zero_at_equality,
    "never_negative": law_never_negative,
    "bounded": law_bounded,
    "shift_invariance": law_shift_invariance,
    "relabelled_classes": law_relabelled_classes,
    "impossible_class": law_impossible_class,
    "row_order": law_row_order,
    "masked_rows": law_masked_rows,
    "weight_counts_rows": law_weight_counts_rows,
    "split_invariance": law_split_invariance,
    "finite_at_extremes": law_finite_at_extremes,
    "nan_shows": law_nan_shows,
    "teacher_gets_no_gradient": law_teacher_gets_no_gradient,
    "gradient_is_the_slope": law_gradient_is_the_slope,
    "half_precision": law_half_precision,
}
"""Every law by name."""

_OF_ONE_DRAW = {
    "one_value_a_row",
    "never_negative",
    "bounded",
    "finite_at_extremes",
    "nan_shows",
    "teacher_gets_no_gradient",
}
"""Those that do not compare two evaluations, of which a random loss makes two different ones."""


def laws_of(loss: LossFunction) -> dict[str, Law]:
    """Return the laws that the loss claims to obey."""
    if getattr(loss, "random", False):
        return {name: law for name, law in LAWS.items() if name in _OF_ONE_DRAW}
    claimed = {
        "zero_at_equality": getattr(loss, "zero_at_equality", True),
        "split_invariance": getattr(loss, "additive", True),
        "gradient_is_the_slope": getattr(loss, "exact_gradient", True),
    }
    return {name: law for name, law in LAWS.items() if claimed.get(name, True)}


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def in_double(rows: Rows) -> Rows:
    """Return the same rows in float64, where a law of algebra holds to many digits."""
    return replace(
        rows,
        student=rows.student.detach().double(),
        teacher=None if rows.teacher is None else rows.teacher.detach().double(),
    )


def _with_teacher(rows: Rows, teacher_NV: Tensor) -> Rows:
    return rows if rows.teacher is None else replace(rows, teacher=teacher_NV.to(rows.teacher.dtype))


def with_class(logits_NV: Tensor, number: float) -> Tensor:
    """Return the logits beside one more class, whose logit is `number`."""
    return torch.cat([logits_NV, logits_NV.new_full((logits_NV.shape[0], 1), number)], dim=1)


def _gradient(mean: Tensor, student_NV: Tensor) -> Tensor:
    if not mean.requires_grad:
        raise LawBroken("the mean does not depend on the student's logits: nothing can be trained on it")
    (gradient_NV,) = torch.autograd.grad(mean, student_NV)
    return gradient_NV


def mean_and_gradient(loss: LossFunction, rows: Rows) -> tuple[Tensor, Tensor]:
    """Return the rows' mean, detached, and its derivative for the student's logits, (N, V)."""
    student_NV = rows.student.detach().requires_grad_()
    live = replace(rows, student=student_NV)
    mean = live.mean(loss(live))
    return mean.detach(), _gradient(mean, student_NV)


def _accuracy(loss: LossFunction) -> float:
    return float(getattr(loss, "accuracy", 0.0))


def expect_close(
    loss: LossFunction,
    what: str,
    actual: Tensor,
    expected: Tensor,
    relative: float,
    absolute: float | None = None,
) -> None:
    """Compare at the scale of the largest expected number: small entries carry the large ones' rounding."""
    relative = max(relative, _accuracy(loss))
    if actual.shape != expected.shape:
        raise LawBroken(f"{what}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}")
    if expected.numel() == 0:
        return
    actual, expected = actual.detach(), expected.detach()
    allowed = relative * float(expected.abs().amax()) + (relative if absolute is None else absolute)
    worst = float((actual - expected).abs().amax())
    if not worst <= allowed:
        raise LawBroken(f"{what}: off by {worst:.3g}, allowed {allowed:.3g}")
