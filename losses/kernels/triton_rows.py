"""The divergences of materialised logits as one Triton kernel: a program a row, which it reads three times.

1. The largest logit of either side and the sum of the exponentials.
2. The terms of the value, and of the sum that the softmax takes from every class's slope.
3. The derivative, which may go where the student's logits are.

What it computes of a class is compiled from the lines that torch runs, see `divergences.divergence.ClassWise`. All
arithmetic is float32.

N rows, V vocabulary.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, TypeGuard

import torch
import triton
import triton.language as tl

from ..divergences.divergence import ClassWise, Divergence
from ..divergences.forward_kl import forward_kl
from ..divergences.jensen_shannon import jensen_shannon
from ..divergences.reverse_kl import reverse_kl
from ..divergences.skew_kl import skew_kl
from ..divergences.skew_reverse_kl import skew_reverse_kl
from ..divergences.total_variation import total_variation
from ..temperature import FLOOR
from ..total import Total
from .triton_steps import Softmax, compiled_for_triton

if TYPE_CHECKING:
    from torch import Tensor

    from ..rows import Rows
    from .dense import Definition

COMPARISONS = {
    function: compiled_for_triton(function)
    for function in (forward_kl, reverse_kl, jensen_shannon, skew_kl, skew_reverse_kl, total_variation)
}
"""The functions of which there are kernels, and what Triton made of them."""

BLOCK = 2048
"""Classes at a time: eight for each thread of eight warps."""
# Fused, q − p of equal sides would be the rounding of one product instead of 0, and so would its sign.
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}
"""How the kernel is compiled."""
_works = True
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_FLOOR = tl.constexpr(FLOOR)
_LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


def fill(loss: Definition, rows: Rows, gradient_NV: Tensor | None) -> Tensor | None:
    """Do as `dense.fill` does, without waiting for the device; return None, having done nothing, where it cannot.

    It can where the loss is one divergence with a function in `COMPARISONS` (or a `Total` of one such term), the
    logits are at most float32, and the classes of a row are neighbours in memory. Where Triton does not compile the
    kernel, a warning says so, once.

    Raises:
        ValueError: rows.teacher is None.
    """
    global _works
    term, weight = (
        (loss.terms[0], loss.terms[0].weight) if isinstance(loss, Total) and len(loss) == 1 else (loss, 1.0)
    )
    if not _works or not _is_class_wise(term):
        return None
    comparison, number = term.comparison()
    student_NV, teacher_NV = rows.student.detach(), rows.detached_teacher()
    matrices = [student_NV, teacher_NV] + ([] if gradient_NV is None else [gradient_NV])
    if comparison not in COMPARISONS or not all(map(_is_readable, matrices)):
        return None
    values_N = torch.empty_like(rows.weights)
    if len(rows) == 0:
        return values_N
    try:
        with torch.cuda.device_of(student_NV):  # type: ignore[no-untyped-call]
            _compare_rows[(len(rows),)](
                student_NV,
                teacher_NV,
                None if rows.weight is None else rows.weight > 0,
                values_N,
                gradient_NV,
                student_NV.stride(0),
                teacher_NV.stride(0),
                0 if gradient_NV is None else gradient_NV.stride(0),
                student_NV.shape[1],
                # Triton compiles anew, and another division, for a whole number.
                float(term.temperature),
                float(weight * term.factor),
                float(weight * term.factor / term.temperature),
                COMPARISON=COMPARISONS[comparison],
                NUMBER=number,
                BLOCK=min(BLOCK, triton.next_power_of_2(student_NV.shape[1])),
                **OPTIONS,
            )
    # A Triton that is too new for the kernel, or too old for the GPU, shows only now, and nothing has run yet.
    except Exception as error:  # noqa: BLE001 (every version of Triton fails in its own way)
        _works = False
        warnings.warn(
            f"no Triton kernel for the divergences, torch goes on computing them: {type(error).__name__}: {error}",
            stacklevel=2,
        )
        return None
    return values_N


def _is_class_wise(loss: object) -> TypeGuard[ClassWise]:
    """Whether the value and derivative of the loss are those of its comparison, and no subclass's own."""
    if not isinstance(loss, ClassWise):
        return False
    kind = type(loss)
    return (
        kind.compare is ClassWise.compare
        and kind.differentiate is Divergence.differentiate
        and kind.scaled is Divergence.scaled
    )


def _is_readable(matrix_NV: Tensor) -> bool:
    return matrix_NV.dtype in _DTYPES and (matrix_NV.shape[1] == 1 or matrix_NV.stride(1) == 1)


@triton.jit
def _compare_rows(
    student_NV: tl.tensor,
    teacher_NV: tl.tensor,
    counts_N: tl.tensor,
    values_N: tl.tensor,
    gradient_NV: tl.tensor,
    student_stride: tl.tensor,
    teacher_stride: tl.tensor,
    gradient_stride: tl.tensor,
    classes: tl.tensor,
    temperature: tl.tensor,
    value_factor: tl.tensor,
    slope_factor: tl.tensor,
    COMPARISON: tl.constexpr,
    NUMBER: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    # Matrices hold more than 2³¹ logits.
    row = tl.program_id(0).to(tl.int64)
    student_V = student_NV + row * student_stride
    teacher_V = teacher_NV + row * teacher_stride
    place_V = tl.arange(0, BLOCK)
    if counts_N is not None:  # noqa: SIM102 (decided when compiling, the other when running)
        if tl.load(counts_N + row) == 0:
            tl.store(values_N + row, 0.0)
            if gradient_NV is not None:
                for start in range(0, classes, BLOCK):
                    at_V = start + place_V
                    tl.store(gradient_NV + row * gradient_stride + at_V, 0.0, mask=at_V < classes)
            return
    student_top, student_largest = _normalisers(student_V, classes, temperature, BLOCK)
    teacher_top, teacher_largest = _normalisers(teacher_V, classes, temperature, BLOCK)

    terms_V = tl.zeros((BLOCK,), tl.float32)
    slopes_V = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, classes, BLOCK):
        at_V = start + place_V
        student = _softmax(student_V + at_V, at_V < classes, student_top, student_largest, temperature)
        teacher = _softmax(teacher_V + at_V, at_V < classes, teacher_top, teacher_largest, temperature)
        term_V, slope_V = _compare(COMPARISON, NUMBER, teacher, student)
        terms_V += term_V
        slopes_V += slope_V
    value = tl.sum(terms_V)
    tl.store(values_N + row, value_factor * value)

    if gradient_NV is not None:
        slope_sum = (
            tl.sum(slopes_V) + 0 * value
        )  # NaN where the value is: a row of nothing but −inf has finite slopes
        gradient_V = gradient_NV + row * gradient_stride
        for start in range(0, classes, BLOCK):
            at_V = start + place_V
            student = _softmax(student_V + at_V, at_V < classes, student_top, student_largest, temperature)
            teacher = _softmax(teacher_V + at_V, at_V < classes, teacher_top, teacher_largest, temperature)
            _, slope_V = _compare(COMPARISON, NUMBER, teacher, student)
            derivative_V = slope_factor * (slope_V - student.probability_NV * slope_sum)
            tl.store(gradient_V + at_V, derivative_V.to(gradient_V.dtype.element_ty), mask=at_V < classes)


@triton.jit
def _normalisers(
    logits_V: tl.tensor, classes: tl.tensor, temperature: tl.tensor, BLOCK: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Return the largest logit and the largest probability, which is 1 / Σ exp((logit − largest)/temperature)."""
    place_V = tl.arange(0, BLOCK)
    # Each lane has a maximum and a sum of its own. They start from the lowest number, as −inf less itself is NaN.
    top_V = tl.full((BLOCK,), _LOWEST, tl.float32)
    sum_V = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, classes, BLOCK):
        at_V = start + place_V
        logit_V = tl.load(logits_V + at_V, mask=at_V < classes, other=-math.inf).to(tl.float32)
        step_V = logit_V - top_V
        # Of the two exponentials of an online softmax one is always that of 0.
        decay_V = tl.exp(-tl.abs(step_V) / temperature)
        sum_V = tl.where(step_V > 0, sum_V * decay_V + 1, sum_V + decay_V)
        top_V = tl.maximum(top_V, logit_V)
    top = tl.max(top_V)
    return top, 1 / tl.sum(sum_V * tl.exp((top_V - top) / temperature))


@triton.jit
def _softmax(
    logits_V: tl.tensor, mask_V: tl.tensor, top: tl.tensor, largest: tl.tensor, temperature: tl.tensor
) -> Softmax:
    """Return the softmax of one block. Beyond the last class, and of −inf, the probability is 0 and its logarithm finite."""
    logit_V = tl.load(logits_V, mask=mask_V, other=-math.inf).to(tl.float32)
    shifted_V = tl.math.div_rn(logit_V - top, temperature)
    # Not by `maximum`, which would make a number of NaN.
    shifted_V = tl.where(shifted_V < _FLOOR, _FLOOR, shifted_V)
    return Softmax(shifted_V, tl.exp(shifted_V) * largest, largest, tl.log(largest))


@triton.jit
def _compare(
    COMPARISON: tl.constexpr, NUMBER: tl.constexpr, teacher: tl.tensor, student: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Return what the comparison says of one block."""
    if NUMBER is None:
        term_V, slope_V = COMPARISON(teacher, student)
    else:
        term_V, slope_V = COMPARISON(teacher, student, NUMBER)
    return term_V, slope_V
