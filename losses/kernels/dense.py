"""Losses of materialised logits: the gradient is computed in the forward pass, and nothing else is kept of it.

Rows go through the loss's definition a few at a time, so that what it computes on the way stays in the processor's
cache. That is most of the speed: written for whole matrices, a divergence spends over half of its time on the first
touch of fresh memory.

N rows, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..memory import empty
from ..rows import Rows
from ..sparse import SparseTeacher
from .availability import triton_runs_on


class Definition(Protocol):
    """What the loops drive: a `RowWise` loss, or a `Total` of such losses."""

    def differentiate(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return values, (N,), and their derivative for the student's logits, (N, V)."""


_BUFFER_BYTES = {"cpu": 1 << 20}
"""What one step of the loop reads of one side: about a second-level cache on a CPU, `_LARGE` elsewhere."""
_LARGE = 1 << 28
_FREED_BYTES = 16 << 20


def row_values(loss: Definition, rows: Rows, *, overwrite: bool = False) -> Tensor:
    """Return one value a row, (N,), as `loss.values` does (of a `Total`: the weighted sum).

    Rows of weight 0 are skipped: value 0, gradient 0.

    Beyond the logits this holds one matrix like the student's logits: their derivative (in float32 for float16
    logits, whose range does not hold a small one). A second derivative, or a second pass through a retained graph,
    runs the definition again.

    Args:
        loss: the definition.
        rows: what it compares.
        overwrite: put the derivative where the student's logits are, and hold nothing beyond them. **The logits are
            gone afterwards**; autograd notices and refuses where an operation before the loss still needs them (a
            softcap's tanh, say). Allows one backward pass and no second derivative. Logits that need no gradient are
            left alone.

    Raises:
        ValueError: overwrite, and the logits are a leaf of the graph (a parameter, an input), share memory with each
            other or with the teacher's, or are float16.

    Example:
        >>> import torch
        >>> from distill.losses import ForwardKL, Rows
        >>> from distill.losses.kernels.dense import row_values
        >>> hidden = torch.eye(2, requires_grad=True)
        >>> rows = Rows(student=hidden @ torch.tensor([[1.0, 0.0], [0.0, 0.0]]), teacher=torch.eye(2))
        >>> row_values(ForwardKL(), rows, overwrite=True).detach()
        tensor([0.0000, 0.1109])
        >>> rows.student.detach()
        tensor([[ 0.0000,  0.0000],
                [ 0.2311, -0.2311]])
    """
    if overwrite and rows.student.requires_grad:
        _refuse_harm(rows)
    values_N: Tensor = _RowValues.apply(rows.student, loss, rows, overwrite)  # type: ignore[no-untyped-call]
    return values_N


def fill(loss: Definition, rows: Rows, gradient_NV: Tensor | None) -> Tensor:
    """Return the values, (N,), and write their derivative to gradient_NV, which may be rows.student itself."""
    if triton_runs_on(rows.student.device):
        from . import triton_rows

        of_kernel_N = triton_rows.fill(loss, rows, gradient_NV)
        if of_kernel_N is not None:
            return of_kernel_N
    values_N = torch.zeros_like(rows.weights)
    if gradient_NV is not None and rows.weight is not None:
        gradient_NV.masked_fill_((rows.weight <= 0).unsqueeze(-1), 0)
    counted = replace(rows, weight=None)
    if rows.student.device.type == "cpu":
        # glibc gives memory that is freed back to the system beyond twice the largest block it has seen freed, and
        # the loop's buffers would be page faults again and again. A large block, freed untouched, sets that limit;
        # where memory is too short for it, the loop itself may still do with less.
        with contextlib.suppress(RuntimeError):
            torch.empty(_FREED_BYTES, dtype=torch.uint8)
    for place in _places(rows):
        part_N, part_NV = loss.differentiate(counted.select(place))
        values_N[place] = part_N
        if gradient_NV is not None:
            gradient_NV[place] = part_NV.to(gradient_NV.dtype)
    return values_N


def _places(rows: Rows) -> Iterator[slice | Tensor]:
    """Cut the rows that count into parts of one buffer each."""
    row_bytes = rows.student.shape[1] * max(rows.student.element_size(), 4)
    room = _BUFFER_BYTES.get(rows.student.device.type, _LARGE)
    # Where there is one side, a step has room for two steps' rows.
    step = max((2 * room if rows.teacher is None else room) // row_bytes, 1)
    counted_K = None if rows.weight is None else (rows.weight > 0).nonzero().squeeze(-1)
    for start in range(0, len(rows) if counted_K is None else len(counted_K), step):
        part = slice(start, start + step)
        yield part if counted_K is None else counted_K[part]


class _RowValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_NV: Tensor, loss: Definition, rows: Rows, overwrite: bool) -> Tensor:
        rows = replace(rows, student=student_NV)
        ctx.loss, ctx.overwrite, ctx.dtype, ctx.gradient_NV = loss, overwrite, student_NV.dtype, None
        if ctx.needs_input_grad[0]:
            ctx.gradient_NV = student_NV.detach() if overwrite else _room_for_gradient(student_NV)
        values_N = fill(loss, rows, ctx.gradient_NV)
        if not overwrite:
            _keep(ctx, rows)
        return values_N

    @staticmethod
    def backward(ctx: Any, pull_N: Tensor) -> tuple[Tensor, None, None, None]:
        # Taken, not copied: the pull is multiplied into it. A second pass finds nothing here and computes it anew.
        gradient_NV, ctx.gradient_NV = ctx.gradient_NV, None
        again = torch.is_grad_enabled()
        if ctx.overwrite and (again or gradient_NV is None):
            raise RuntimeError(
                "logits that were overwritten by their gradient allow one backward pass and no second derivative; "
                "use overwrite=False"
            )
        if again or gradient_NV is None:
            rows = _kept(ctx)
            if again:
                _, gradient_NV = ctx.loss.differentiate(rows)
                return (gradient_NV * pull_N.unsqueeze(-1)).to(ctx.dtype), None, None, None
            gradient_NV = _room_for_gradient(rows.student)
            fill(ctx.loss, rows, gradient_NV)
        return gradient_NV.mul_(pull_N.unsqueeze(-1)).to(ctx.dtype), None, None, None


def _keep(ctx: Any, rows: Rows) -> None:
    """Keep the rows for another pass; what autograd keeps, it lets go of when the graph is used up."""
    sparse = (None, None) if rows.sparse is None else (rows.sparse.index, rows.sparse.probability)
    tensors = (rows.student, rows.teacher, rows.label, rows.weight, *sparse)
    # Autograd refuses tensors made in inference mode, as a teacher's logits mostly are.
    refused = [tensor is not None and tensor.is_inference() for tensor in tensors]
    ctx.inference = [tensor if no else None for tensor, no in zip(tensors, refused, strict=True)]
    ctx.save_for_backward(*(None if no else tensor for tensor, no in zip(tensors, refused, strict=True)))


def _kept(ctx: Any) -> Rows:
    student_NV, teacher_NV, label_N, weight_N, index_NK, probability_NK = (
        saved if other is None else other.clone()
        for saved, other in zip(ctx.saved_tensors, ctx.inference, strict=True)
    )
    sparse = None if index_NK is None else SparseTeacher(index_NK, probability_NK)
    return Rows(student_NV, teacher_NV, label_N, weight_N, sparse=sparse)


def _room_for_gradient(student_NV: Tensor) -> Tensor:
    dtype = torch.float32 if student_NV.dtype == torch.float16 else student_NV.dtype
    return empty(student_NV.shape, student_NV, dtype)


def _refuse_harm(rows: Rows) -> None:
    student_NV = rows.student
    if student_NV.is_leaf:
        raise ValueError("overwrite: the student's logits are a leaf of the graph, not the output of a model")
    if student_NV.dtype == torch.float16:
        raise ValueError("overwrite: float16 does not hold small derivatives; use bfloat16 or float32 logits")
    rows_apart = len(rows) < 2 or student_NV.stride(0) >= student_NV.shape[1]
    if not rows_apart or (student_NV.shape[1] > 1 and student_NV.stride(1) != 1):
        raise ValueError(
            f"overwrite: the student's rows are not apart in memory, strides {student_NV.stride()}"
        )
    if rows.teacher is not None and (
        rows.teacher.untyped_storage().data_ptr() == student_NV.untyped_storage().data_ptr()
    ):
        raise ValueError("overwrite: the student's and the teacher's logits share memory")
