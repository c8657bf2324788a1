"""Losses of hidden states and output matrices: the logits exist a few rows at a time and never all at once.

For each block of rows: two matrix products make the logits, the loss's definition turns the student's logits into
their derivative in place, and two more products carry it to the hidden states and the output matrix. All gradients are
done when the forward pass is.

N rows, H hidden, V vocabulary, K rows that count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..memory import empty
from ..precision import wide
from ..ranges import positive
from ..rows import Rows
from ..sparse import SparseTeacher
from ..total import Total
from .dense import fill, row_values

if TYPE_CHECKING:
    from ..row_wise import RowWise

BUFFER_BYTES = 64 << 20
"""The default for what both sides' logits of one block take."""


@dataclass(frozen=True, eq=False)
class Projection:
    """What a language model's logits are made of: scale · (hidden @ weight.T + bias), softly capped.

    Shapes:
        hidden: (N, H). weight: (V, H), the output matrix as `torch.nn.Linear` and tied embeddings hold it.
        bias: (V,) or None.

    Attributes:
        scale: multiplies the logits, as Cohere's and Granite's configurations say.
        softcap: c in c · tanh(logits / c), as Gemma 2's does; None for no cap.

    Raises:
        ValueError: shapes that do not belong together, a scale or softcap that is not positive.
        TypeError: tensors of different precision, or float16, whose range does not hold the derivatives of logits.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        positive("scale", self.scale)
        if self.softcap is not None:
            positive("softcap", self.softcap)
        if self.hidden.dim() != 2 or self.weight.dim() != 2 or self.hidden.shape[1] != self.weight.shape[1]:
            raise ValueError(
                "hidden must have shape (N, H) and weight (V, H), got "
                f"{tuple(self.hidden.shape)} and {tuple(self.weight.shape)}"
            )
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ValueError(f"bias must have shape ({self.weight.shape[0]},), got {tuple(self.bias.shape)}")
        found = {part.dtype for part in (self.hidden, self.weight, self.bias) if part is not None}
        if len(found) > 1:
            raise TypeError(f"hidden, weight and bias must have one precision, got {sorted(map(str, found))}")
        if torch.float16 in found:
            raise TypeError("float16 does not hold small derivatives of logits; use bfloat16 or float32")

    def to(self, dtype: torch.dtype) -> Projection:
        """Return the same in another precision, differentiably."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return replace(self, hidden=self.hidden.to(dtype), weight=self.weight.to(dtype), bias=bias)

    def logits(self) -> Tensor:
        """Return all logits, (N, V), differentiably."""
        logits_NV = torch.nn.functional.linear(self.hidden, self.weight, self.bias)
        if self.scale != 1:
            logits_NV = self.scale * logits_NV
        return logits_NV if self.softcap is None else self.softcap * (logits_NV / self.softcap).tanh()

    def write_logits(self, place: slice | Tensor, out_NV: Tensor) -> Tensor:
        """Write the logits of the rows at `place`; return their hidden states."""
        hidden_NH = self.hidden.detach()[place]
        weight_HV = self.weight.detach().T
        if self.bias is None:
            torch.mm(hidden_NH, weight_HV, out=out_NV)
        else:
            torch.addmm(self.bias.detach(), hidden_NH, weight_HV, out=out_NV)
        factor = self.scale if self.softcap is None else self.scale / self.softcap
        if factor != 1:
            out_NV.mul_(factor)
        if self.softcap is not None:
            out_NV.tanh_().mul_(self.softcap)
        return hidden_NH

    def pull_to_products(self, derivative_NV: Tensor, capped_NV: Tensor | None) -> None:
        """Turn derivatives for the logits into those for hidden @ weight.T + bias, in place."""
        if capped_NV is not None and self.softcap is not None:
            # (1 − tanh²), from the capped logits, whose place the derivatives did not take.
            derivative_NV.addcmul_(derivative_NV * capped_NV, capped_NV, value=-(self.softcap**-2))
        if self.scale != 1:
            derivative_NV.mul_(self.scale)


def fused_linear_mean(
    loss: RowWise | Total,
    student: Projection,
    teacher: Projection | SparseTeacher | None = None,
    *,
    label: Tensor | None = None,
    weight: Tensor | None = None,
    total_weight: float | Tensor | None = None,
    buffer_bytes: int = BUFFER_BYTES,
) -> Tensor:
    """Return `rows.mean(loss(rows), total_weight)` of the rows whose logits the projections would make.

    Gradients reach the student's hidden states, matrix and bias. Beyond them (the matrix's is kept in float32) this
    holds buffer_bytes and a few megabytes. Rows of weight 0 are dropped before any product. Under autocast the
    products are done in its precision. A second derivative, or a second pass through a retained graph, computes
    everything again, the former with the logits of all rows at once.

    Args:
        loss: a row-wise loss, or a `Total` of such.
        student: N rows.
        teacher: N rows of the same vocabulary (slice the longer of two padded matrices), the part of a teacher that a
            cache kept, or None for losses without a teacher.
        label: (N,) for `Labels`.
        weight: (N,) as in `Rows`.
        total_weight: as in `Rows.mean`.
        buffer_bytes: room for the logits of one block, both sides together.

    Raises:
        TypeError: a term of the loss is not row-wise.
        ValueError: shapes that do not belong together.

    Example:
        >>> import torch
        >>> from distill.losses import ForwardKL
        >>> from distill.losses.kernels.fused_linear import Projection, fused_linear_mean
        >>> student = Projection(torch.eye(2, requires_grad=True), torch.zeros(3, 2))
        >>> teacher = Projection(torch.eye(2, 4), torch.eye(3, 4))
        >>> mean = fused_linear_mean(ForwardKL(), student, teacher)
        >>> mean.detach()
        tensor(0.1233)
    """
    if not isinstance(loss, Total):
        loss = Total((loss,))
    device = student.hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        student = student.to(dtype)
        teacher = teacher.to(dtype) if isinstance(teacher, Projection) else teacher
    _check(student, teacher, label, weight)
    work = _Work(loss, teacher, label, weight, total_weight, buffer_bytes)
    with torch.autocast(device, enabled=False):
        mean: Tensor = _FusedLinearMean.apply(  # type: ignore[no-untyped-call]
            student.hidden, student.weight, student.bias, student, work
        )
    return mean


def _check(
    student: Projection,
    teacher: Projection | SparseTeacher | None,
    label: Tensor | None,
    weight: Tensor | None,
) -> None:
    rows = len(student.hidden)
    if isinstance(teacher, Projection):
        found = (len(teacher.hidden), teacher.weight.shape[0])
        if found != (rows, student.weight.shape[0]):
            raise ValueError(
                f"teacher and student must have the same rows and vocabulary, got {found} and "
                f"{(rows, student.weight.shape[0])}"
            )
    elif teacher is not None and len(teacher) != rows:
        raise ValueError(f"the teacher has {len(teacher)} rows, the student {rows}")
    for name, part_N in (("label", label), ("weight", weight)):
        if part_N is not None and part_N.shape != (rows,):
            raise ValueError(f"{name} must have shape ({rows},), got {tuple(part_N.shape)}")


@dataclass(frozen=True, eq=False)
class _Work:
    """All that is constant to the gradient."""

    loss: Total
    teacher: Projection | SparseTeacher | None
    label: Tensor | None
    weight: Tensor | None
    total_weight: float | Tensor | None
    buffer_bytes: int

    def whole(self, student: Projection) -> Tensor:
        """The mean with all logits at once, differentiable any number of times."""
        teacher_NV = None
        if isinstance(self.teacher, Projection):
            with torch.no_grad():
                teacher_NV = self.teacher.logits()
        rows = Rows(student.logits(), teacher_NV, self.label, self.weight, sparse=self._sparse)
        return rows.mean(row_values(self.loss, rows), self.total_weight)

    @property
    def _sparse(self) -> SparseTeacher | None:
        return self.teacher if isinstance(self.teacher, SparseTeacher) else None

    def in_blocks(self, student: Projection, gradients: _Gradients | None) -> Tensor:
        """The mean, a block of rows at a time; its derivatives, times the total weight, go into `gradients`."""
        rows, classes = len(student.hidden), student.weight.shape[0]
        exact = wide(student.hidden[:0]).dtype
        weight_N = (
            student.hidden.new_ones(rows, dtype=exact) if self.weight is None else self.weight.to(exact)
        )
        counted_K = None if self.weight is None else (self.weight > 0).nonzero().squeeze(-1)
        count = rows if counted_K is None else len(counted_K)
        capped = student.softcap is not None and gradients is not None
        buffers = 3 if capped else 2
        step = max(self.buffer_bytes // (buffers * classes * student.hidden.element_size()), 1)
        # Held, not made anew for each block: fresh memory costs a page fault every few kilobytes.
        shape = (min(step, count), classes)
        logits_NV = empty(shape, student.hidden)
        teacher_NV = None
        if isinstance(self.teacher, Projection):
            teacher_NV = empty(shape, self.teacher.hidden)
        # The derivatives take the logits' place, unless these are needed once more.
        derivative_NV = empty(shape, logits_NV) if capped else logits_NV
        sum_ = weight_N.new_zeros(())
        for start in range(0, count, step):
            size = min(step, count - start)
            part = slice(start, start + size)
            place = part if counted_K is None else counted_K[part]
            hidden_NH = student.write_logits(place, logits_NV[:size])
            if isinstance(self.teacher, Projection) and teacher_NV is not None:
                self.teacher.write_logits(place, teacher_NV[:size])
            block = Rows(
                student=logits_NV[:size],
                teacher=None if teacher_NV is None else teacher_NV[:size],
                label=None if self.label is None else self.label[place],
                sparse=None if self._sparse is None else self._sparse.select(place),
            )
            part_NV = None if gradients is None else derivative_NV[:size]
            sum_ += (fill(self.loss, block, part_NV) * weight_N[place]).sum()
            if gradients is not None and part_NV is not None:
                if self.weight is not None:
                    part_NV.mul_(weight_N[place].unsqueeze(-1))
                student.pull_to_products(part_NV, logits_NV[:size] if capped else None)
                gradients.add(place, part_NV, hidden_NH, student.weight)
        return sum_

    def total(self, rows: int, like: Tensor) -> Tensor:
        """Return what the sum is divided by."""
        if self.total_weight is not None:
            total = like.new_zeros(()) + self.total_weight
        else:
            total = like.new_tensor(float(rows)) if self.weight is None else self.weight.to(like.dtype).sum()
        return total.to(like.dtype).where(total > 0, 1.0)


class _Gradients:
    """Sums of derivatives, for those inputs that want them; of matrix and bias in float32 at least."""

    def __init__(self, student: Projection, wanted: tuple[bool, bool, bool]):
        exact = wide(student.weight[:0]).dtype
        self.hidden_NH = torch.zeros_like(student.hidden) if wanted[0] else None
        self.weight_VH = empty(student.weight.shape, student.weight, exact).zero_() if wanted[1] else None
        self.bias_V = (
            torch.zeros_like(student.bias, dtype=exact) if wanted[2] and student.bias is not None else None
        )

    def add(self, place: slice | Tensor, derivative_NV: Tensor, hidden_NH: Tensor, weight_VH: Tensor) -> None:
        if self.hidden_NH is not None:
            self.hidden_NH[place] = derivative_NV @ weight_VH.detach()
        if self.weight_VH is not None:
            if self.weight_VH.dtype == hidden_NH.dtype:
                self.weight_VH.addmm_(derivative_NV.T, hidden_NH)
            else:
                self.weight_VH.add_(derivative_NV.T @ hidden_NH)
        if self.bias_V is not None:
            self.bias_V.add_(derivative_NV.sum(0, dtype=self.bias_V.dtype))

    def times(self, factor: Tensor, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Multiply by factor, in place, and return them in the inputs' precision."""
        parts = (self.hidden_NH, self.weight_VH, self.bias_V)
        hidden, weight, bias = (None if part is None else part.mul_(factor).to(dtype) for part in parts)
        return hidden, weight, bias


class _FusedLinearMean(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        student: Projection,
        work: _Work,
    ) -> Tensor:
        ctx.work, ctx.dtype = work, hidden_NH.dtype
        ctx.scale, ctx.softcap = student.scale, student.softcap
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V)
        wanted = ctx.needs_input_grad[:3]
        ctx.gradients = _Gradients(student, wanted) if any(wanted) else None
        sum_ = work.in_blocks(student, ctx.gradients)
        ctx.total = work.total(len(hidden_NH), sum_)
        return sum_ / ctx.total

    @staticmethod
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        # Taken, not copied: the pull is multiplied into them. A second pass finds nothing and computes them anew.
        gradients, ctx.gradients = ctx.gradients, None
        student = None
        if gradients is None or torch.is_grad_enabled():
            student = Projection(*ctx.saved_tensors, ctx.scale, ctx.softcap)
        if torch.is_grad_enabled() and student is not None:
            parts = (student.hidden, student.weight, student.bias)
            wanted = [part for part, want in zip(parts, ctx.needs_input_grad[:3], strict=True) if want]
            found = iter(torch.autograd.grad(ctx.work.whole(student), wanted, pull, create_graph=True))
            return *(next(found) if want else None for want in ctx.needs_input_grad[:3]), None, None
        if student is not None:
            gradients = _Gradients(student, ctx.needs_input_grad[:3])
            ctx.work.in_blocks(student, gradients)
        return *gradients.times(pull / ctx.total, ctx.dtype), None, None
