"""L1 distances between softened predictions, straight from the logits.

Of softmaxes the distance is 2 − 2 · Σ min(p, q), and a softmax's gradient does not see a constant added to all
classes: both save a pass. Where nothing is to be stored, the softmaxes are made again, a few columns at a time.

N student rows, M teacher rows, V vocabulary or classes, U classes that some teacher row can produce, L entries: all
teacher rows' own classes, one row's after the other's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..memory import empty
from ..precision import wide
from ..temperature import probability
from .manhattan import distance_pull, manhattan, mass, overlap, self_overlap

_BLOCK = {"cpu": 2**18, "cuda": 2**26}  # numbers of a softmax that are made at once when none is stored
_SPARSE = 1024  # classes from which on looking for those that no teacher row can produce pays
_APART = 8  # times as many classes as one row's, which all rows can produce together, from which on rows differ enough


def softened_distances(
    student_NV: Tensor, teacher_MV: Tensor, temperature: float, *, with_self: bool, streamed: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the L1 distances student to teacher (N, M) and, with_self, student to student and teacher to teacher.

    Logits of any floating dtype in, float32 (float64 for float64 logits) out, differentiable for the student's.
    streamed: keep no softmax for the backward pass, nor make a whole one; a third less memory or better, half as
    much time again. Values are good to about 1e-7. The classes that no teacher row can produce (probability 0, as
    when a teacher's top logits are all there is) enter the distances to the teacher without being looked at.
    """
    distances: tuple[Tensor, Tensor | None, Tensor | None] = _Softened.apply(  # type: ignore[no-untyped-call]
        student_NV, teacher_MV, temperature, with_self, streamed
    )
    return distances


@dataclass(frozen=True, eq=False)
class _Softmax:
    """softmax(logits / temperature) by columns, with no more kept than two numbers a row."""

    logits_NV: Tensor
    temperature: float
    largest_N1: Tensor
    normaliser_N1: Tensor

    @classmethod
    def of(cls, logits_NV: Tensor, temperature: float) -> _Softmax:
        largest_N1 = wide(logits_NV.amax(-1, keepdim=True))
        softmax = cls(logits_NV, temperature, largest_N1, torch.ones_like(largest_N1))
        parts = [softmax.at(columns).sum(-1, keepdim=True) for columns in _columns(logits_NV)]
        return cls(logits_NV, temperature, largest_N1, torch.stack(parts).sum(0).reciprocal())

    def at(self, columns: slice) -> Tensor:
        # Shifted before the temperature divides, which may take ±3e38 beyond what a float holds.
        shifted = wide(self.logits_NV[:, columns]) - self.largest_N1
        return shifted.div_(self.temperature).exp_().mul_(self.normaliser_N1)


def softmax(logits_NV: Tensor, temperature: float) -> Tensor:
    """Return the softmax of logits / temperature, made with temporaries of a few rows. Not differentiable."""
    p_NV = empty(logits_NV.shape, wide(logits_NV[:0]))
    for rows in row_blocks(logits_NV):
        part = wide(logits_NV[rows])
        part = (part - part.amax(-1, keepdim=True)).div_(temperature)
        torch.softmax(part, -1, out=p_NV[rows])
    return p_NV


def _distances(mass_N: Tensor, mass_M: Tensor, shared_NM: Tensor, dtype: torch.dtype) -> Tensor:
    mass_N, mass_M = mass_N.to(shared_NM.dtype), mass_M.to(shared_NM.dtype)
    distances_NM = shared_NM.mul_(-2).add_(mass_N[:, None]).add_(mass_M[None, :]).clamp_(min=0)
    return distances_NM.to(dtype)


class _Softened(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student_NV: Tensor, teacher_MV: Tensor, temperature: float, with_self: bool, streamed: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        ctx.temperature, ctx.with_self, ctx.streamed = temperature, with_self, streamed
        ctx.set_materialize_grads(False)
        ctx.teacher_MV = teacher_MV  # made in inference mode, perhaps, which save_for_backward refuses
        entries = None
        if streamed:
            ctx.save_for_backward(student_NV)
            student, teacher = _Softmax.of(student_NV, temperature), _Softmax.of(teacher_MV, temperature)
            ctx.softmaxes = (
                (student.largest_N1, student.normaliser_N1),
                (teacher.largest_N1, teacher.normaliser_N1),
            )
            blocks: Iterator[tuple[slice, Tensor, Tensor, Tensor | None]] = _streamed_blocks(student, teacher)
        else:
            p_NV, q_MV = softmax(student_NV, temperature), softmax(teacher_MV, temperature)
            used_U = _used_classes(q_MV)
            if used_U is not None:
                q_MV = _at(q_MV, used_U)  # all there is of it
                entries = _entries(q_MV)
            ctx.save_for_backward(student_NV, p_NV, q_MV, used_U, *(entries or ()))
            blocks = iter([(slice(None), p_NV, q_MV, used_U)])
        sums: list[Any] = []
        for _, p, q, used_U in blocks:
            if used_U is not None and entries is not None:
                shared = _overlap_of_entries(p, q, used_U, *entries)
            else:
                shared = overlap(p if used_U is None else _at(p, used_U), q)
            parts = [mass(p), mass(q), shared]
            if with_self:
                parts += [self_overlap(p), self_overlap(q)]
            sums = [old.add_(new) for old, new in zip(sums, parts, strict=True)] if sums else parts
        mass_N, mass_M, shared_NM, *shared_selves = sums
        dtype = wide(student_NV[:0]).dtype
        cross_NM = _distances(mass_N, mass_M, shared_NM, dtype)
        if not with_self:
            return cross_NM, None, None
        shared_NN, shared_MM = shared_selves
        teacher_MM = _distances(mass_M, mass_M, shared_MM, dtype)
        ctx.mark_non_differentiable(teacher_MM)
        return cross_NM, _distances(mass_N, mass_N, shared_NN, dtype), teacher_MM

    @staticmethod
    def backward(ctx: Any, *pulls: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            return _Softened._pull(ctx, *pulls)

    @staticmethod
    def _pull(ctx: Any, *pulls: Tensor | None) -> tuple[Tensor | None, ...]:
        student_NV, *stored = ctx.saved_tensors
        teacher_MV = ctx.teacher_MV
        pull_NM, pull_NN, _ = pulls
        nothing = (None,) * 4
        if torch.is_grad_enabled():
            # create_graph: the same distances from parts that autograd can differentiate twice.
            p_NV = probability(wide(student_NV), ctx.temperature)
            outputs = [
                manhattan(p_NV, probability(wide(teacher_MV), ctx.temperature)),
                manhattan(p_NV, p_NV),
            ]
            wanted = [
                (out, pull) for out, pull in zip(outputs, (pull_NM, pull_NN), strict=True) if pull is not None
            ]
            (gradient_NV,) = torch.autograd.grad(
                [out for out, _ in wanted], student_NV, [pull for _, pull in wanted], create_graph=True
            )
            return gradient_NV, *nothing
        # A student row stands on both sides of its self-distances.
        both_NN = None if pull_NN is None else pull_NN + pull_NN.T
        if ctx.streamed:
            student, teacher = (
                _Softmax(logits, ctx.temperature, *numbers)
                for logits, numbers in zip((student_NV, teacher_MV), ctx.softmaxes, strict=True)
            )
            # In small pages: here memory is dearer than time.
            gradient_NV = student.largest_N1.new_empty(student_NV.shape)
            total_N1: Any = 0
            for there, p, q, _ in _streamed_blocks(student, teacher):
                part = _pull_to_probabilities(pull_NM, both_NN, p, q, None).mul_(p)
                total_N1 += part.sum(-1, keepdim=True)
                gradient_NV[:, there] = part
            for there in _columns(student_NV):
                gradient_NV[:, there].addcmul_(student.at(there), total_N1, value=-1).div_(ctx.temperature)
        else:
            p_NV, q_MV, used_U, *entries = stored
            if entries and pull_NM is not None and both_NN is None:
                row_L, place_L = entries
                gradient_NV = _pull_of_entries(pull_NM, p_NV, q_MV, used_U, row_L, place_L, ctx.temperature)
                return gradient_NV.to(student_NV.dtype), *nothing
            if used_U is not None and pull_NM is not None and both_NN is None:
                return _sparse_pull(pull_NM, p_NV, q_MV, used_U, ctx.temperature).to(
                    student_NV.dtype
                ), *nothing
            gradient_NV = _pull_to_probabilities(pull_NM, both_NN, p_NV, q_MV, used_U)
            for rows in row_blocks(student_NV):
                part, p = gradient_NV[rows].mul_(p_NV[rows]), p_NV[rows]
                part.addcmul_(p, part.sum(-1, keepdim=True), value=-1).div_(ctx.temperature)
        return gradient_NV.to(student_NV.dtype), *nothing


def _used_classes(q_MV: Tensor) -> Tensor | None:
    """Return the classes that some teacher row can produce, (U,), if they are at most half of all.

    On the CPU only: elsewhere the count would have to be waited for.
    """
    if q_MV.device.type != "cpu" or q_MV.shape[1] < _SPARSE or not len(q_MV):
        return None
    used_V = ~(q_MV.amax(0) == 0)  # NaN counts as used
    if 2 * int(used_V.sum()) > len(used_V):
        return None
    return used_V.nonzero().squeeze(-1)


def _entries(q_MU: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return teacher row and place among the used classes, (L,) each, of all that is not 0.

    Unless the rows' classes are much the same: then all pairs of rows over all used classes are quicker.
    """
    row_L, place_L = q_MU.nonzero().unbind(1)
    if _APART * len(row_L) > q_MU.numel():
        return None
    return row_L, place_L


def _entry_blocks(p_NV: Tensor, used_U: Tensor, place_L: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield so many student rows that an entry of each stays in a cache, and their used classes, (U, rows).

    One class of all rows together in memory: it is classes that are picked.
    """
    height = max(1, 4 * _BLOCK["cpu"] // max(1, len(place_L)))
    for row in range(0, len(p_NV), height):
        rows = slice(row, row + height)
        yield rows, _at(p_NV[rows], used_U).T.contiguous()


def _overlap_of_entries(p_NV: Tensor, q_MU: Tensor, used_U: Tensor, row_L: Tensor, place_L: Tensor) -> Tensor:
    """Do `overlap`, looking at each teacher row's own classes alone: a minimum with 0 is 0."""
    q_L1 = q_MU[row_L, place_L][:, None]
    shared_MN = p_NV.new_zeros(len(q_MU), len(p_NV), dtype=torch.float64)
    for rows, p_U in _entry_blocks(p_NV, used_U, place_L):
        shared_MN[:, rows].index_add_(0, row_L, torch.minimum(p_U.index_select(0, place_L), q_L1).double())
    return shared_MN.T.contiguous()


def _pull_of_entries(
    pull_NM: Tensor,
    p_NV: Tensor,
    q_MU: Tensor,
    used_U: Tensor,
    row_L: Tensor,
    place_L: Tensor,
    temperature: float,
) -> Tensor:
    """Do `_sparse_pull`, looking at each teacher row's own classes alone."""
    q_L1 = q_MU[row_L, place_L][:, None]
    gradient_NV = empty(p_NV.shape, p_NV)
    for rows, p_U in _entry_blocks(p_NV, used_U, place_L):
        # Where q is 0 the sign is 1, whose part of the gradient a softmax does not see: it is taken off everywhere.
        signs_L = (p_U.index_select(0, place_L) - q_L1).sign_().sub_(1)
        signs_L.mul_(pull_NM[rows].T.contiguous().index_select(0, row_L))
        pulled_U = torch.zeros_like(p_U).index_add_(0, place_L, signs_L).mul_(p_U).div_(temperature)
        torch.mul(p_NV[rows], -pulled_U.sum(0)[:, None], out=gradient_NV[rows])
        gradient_NV[rows].index_add_(1, used_U, pulled_U.T)
    return gradient_NV


def row_blocks(logits_NV: Tensor) -> Iterator[slice]:
    """Yield slices of so many rows that their softmax stays in a CPU's cache."""
    height = max(1, _BLOCK.get(logits_NV.device.type, 2**18) // max(1, logits_NV.shape[1]))
    for row in range(0, len(logits_NV), height):
        yield slice(row, row + height)


def _at(p_NV: Tensor, used_U: Tensor) -> Tensor:
    return p_NV.index_select(1, used_U)  # a tenth of the time of p_NV[:, used_U]


def _columns(logits_NV: Tensor) -> Iterator[slice]:
    width = max(1, _BLOCK.get(logits_NV.device.type, 2**18) // max(1, len(logits_NV)))
    for column in range(0, logits_NV.shape[1], width):
        yield slice(column, column + width)


def _streamed_blocks(student: _Softmax, teacher: _Softmax) -> Iterator[tuple[slice, Tensor, Tensor, None]]:
    for there in _columns(student.logits_NV):
        yield there, student.at(there), teacher.at(there), None


def _sparse_pull(pull_NM: Tensor, p_NV: Tensor, q_MU: Tensor, used_U: Tensor, temperature: float) -> Tensor:
    """Return the logits' gradient where it comes from the classes used alone: all others only share its mean."""
    p_NU = _at(p_NV, used_U)
    # Elsewhere q is 0, and the gradient for p is Σ_m pull_nm, which a softmax does not see: it is taken off.
    pulled_NU = distance_pull(pull_NM, p_NU, q_MU).sub_(pull_NM.sum(1, keepdim=True))
    pulled_NU.mul_(p_NU).div_(temperature)
    gradient_NV = p_NV * -pulled_NU.sum(-1, keepdim=True)
    return gradient_NV.index_add_(1, used_U, pulled_NU)


def _pull_to_probabilities(
    pull_NM: Tensor | None, both_NN: Tensor | None, p: Tensor, q: Tensor, used_U: Tensor | None
) -> Tensor:
    """Return the gradient for p, up to a constant a row, which a softmax does not see; q at the used classes only."""
    pulled = None
    if pull_NM is not None:
        if used_U is None:
            pulled = distance_pull(pull_NM, p, q)
        else:
            # Elsewhere q is 0, and the gradient Σ_m pull_nm: the constant.
            pulled = torch.zeros_like(p)
            near = distance_pull(pull_NM, _at(p, used_U), q) - pull_NM.sum(1, keepdim=True)
            pulled.index_copy_(1, used_U, near)
    if both_NN is not None:
        own = distance_pull(both_NN, p, p)
        pulled = own if pulled is None else pulled.add_(own)
    return torch.zeros_like(p) if pulled is None else pulled
