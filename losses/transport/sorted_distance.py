"""The L1 distance between two rows of probabilities once each is sorted.

It needs no shared vocabulary: the likeliest class meets the likeliest, whatever they are called. Sorting is nearly
all it costs, so the teacher is sorted by value alone, and the student in NumPy on the CPU, whose sort is vectorised.

N rows, V student's vocabulary, W teacher's vocabulary, K likeliest classes kept.
"""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor

from ..memory import empty
from ..precision import wide
from ..temperature import probability
from .softened import row_blocks, softmax


def sorted_distance(
    student_NV: Tensor, teacher_NW: Tensor, temperature: float = 1.0, kept: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return Σ_k |k-th largest p − k-th largest q| of each row, (N,) in [0, 2], and by how much it may be too small.

    p and q are the softmaxes of the student's logits, for which it is twice differentiable, and of the teacher's;
    the shorter is continued with zeros. With `kept`, the K likeliest classes of each are compared one by one and the
    rest as one number each, which can only be too small: by at most twice the smaller rest, the second result (N,).
    Without it that is 0.

    Raises:
        ValueError: numbers of rows that differ.
    """
    if student_NV.dim() != 2 or teacher_NW.dim() != 2 or len(student_NV) != len(teacher_NW):
        raise ValueError(
            f"student and teacher logits must have shapes (N, V) and (N, W), "
            f"got {tuple(student_NV.shape)} and {tuple(teacher_NW.shape)}"
        )
    if kept is not None and kept >= max(student_NV.shape[1], teacher_NW.shape[1]):
        kept = None
    done: tuple[Tensor, Tensor] = _SortedDistance.apply(  # type: ignore[no-untyped-call]
        student_NV, teacher_NW, temperature, kept
    )
    return done


class _SortedDistance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student_NV: Tensor, teacher_NW: Tensor, temperature: float, kept: int | None
    ) -> tuple[Tensor, Tensor]:
        ctx.temperature = temperature
        if kept is None:
            # The gradient for p is the sign of each difference, in the student's order of classes: a byte each.
            sign_NV = empty(student_NV.shape, student_NV, torch.int8)
            parts = []
            for rows in row_blocks(student_NV):
                p, q = softmax(student_NV[rows], temperature), softmax(teacher_NW[rows], temperature)
                parts.append(_distance_and_signs(p, q, sign_NV[rows]))
            values_N = torch.cat(parts) if parts else wide(student_NV.new_zeros(0))
            bound_N = torch.zeros_like(values_N)
            ctx.save_for_backward(student_NV, sign_NV)
        else:
            top_p_NK, rest_p_N, place_NK = _likeliest(student_NV, temperature, kept)
            top_q_NK, rest_q_N, _ = _likeliest(teacher_NW, temperature, kept)
            difference_NK, rest_N = top_p_NK - top_q_NK, rest_p_N - rest_q_N
            values_N = difference_NK.abs().sum(-1) + rest_N.abs()
            bound_N = 2 * torch.minimum(rest_p_N, rest_q_N)
            sign_NK = difference_NK.sign()[:, : place_NK.shape[1]].to(torch.int8)
            ctx.save_for_backward(student_NV, sign_NK, place_NK, rest_N.sign().to(torch.int8))
        ctx.mark_non_differentiable(bound_N)
        return values_N, bound_N

    @staticmethod
    def backward(ctx: Any, *pulls: Tensor) -> tuple[Tensor | None, ...]:
        student_NV, sign_NV, *kept = ctx.saved_tensors
        pull_N = pulls[0]
        if torch.is_grad_enabled():
            # create_graph: signs are constant, the softmax is not.
            p_NV = probability(wide(student_NV), ctx.temperature)
            pulled_NV = p_NV * _signs(slice(None), p_NV, sign_NV, *kept)
            gradient_NV = pulled_NV - p_NV * pulled_NV.sum(-1, keepdim=True)
            return (gradient_NV * pull_N[:, None] / ctx.temperature).to(student_NV.dtype), None, None, None
        gradient_NV = empty(student_NV.shape, student_NV)
        for rows in row_blocks(student_NV):
            p = softmax(student_NV[rows], ctx.temperature)
            pulled = _signs(rows, p, sign_NV, *kept).mul_(p)
            pulled.addcmul_(p, pulled.sum(-1, keepdim=True), value=-1)
            gradient_NV[rows] = pulled.mul_((pull_N[rows] / ctx.temperature)[:, None])
        return gradient_NV, None, None, None


def _distance_and_signs(p: Tensor, q: Tensor, sign: Tensor) -> Tensor:
    """Return the distances of some rows, (N,), and write the sign of each p − its partner into sign, (N, V)."""
    if p.device.type == "cpu":
        sorted_p, place = _sorted_in_numpy(p.numpy())
        ascending_p, order = torch.from_numpy(sorted_p), torch.from_numpy(place)
        ascending_q = torch.from_numpy(numpy.sort(q.numpy(), axis=-1))
    else:
        ascending_p, order = p.sort(-1)
        ascending_q = q.sort(-1).values
    shared = min(p.shape[1], q.shape[1])
    # What has no partner is the smaller end of the longer row, against 0.
    values = ascending_p[:, : p.shape[1] - shared].sum(-1) + ascending_q[:, : q.shape[1] - shared].sum(-1)
    ascending_p[:, p.shape[1] - shared :] -= ascending_q[:, q.shape[1] - shared :]
    values += ascending_p[:, p.shape[1] - shared :].abs().sum(-1)
    sign.scatter_(1, order, ascending_p.sign_().to(torch.int8))
    return values


def _sorted_in_numpy(p: Any) -> tuple[Any, Any]:
    """Return each row's values in ascending order and where they stood."""
    if p.dtype != numpy.float32:
        place = numpy.argsort(p, axis=-1)
        return numpy.take_along_axis(p, place, -1), place
    # A float32 that is not negative sorts like its bits. With its place in the lower half, one sort of whole
    # numbers gives values and places, in three quarters of an argsort's time.
    keys = p.view(numpy.uint32).astype(numpy.uint64)
    keys <<= numpy.uint64(32)
    keys |= numpy.arange(p.shape[-1], dtype=numpy.uint64)
    keys.sort(axis=-1)
    halves = keys.view(numpy.uint32).reshape(*p.shape, 2)
    low, high = (0, 1) if _LITTLE_ENDIAN else (1, 0)
    return halves[..., high].copy().view(numpy.float32), halves[..., low].astype(numpy.int64)


_LITTLE_ENDIAN = numpy.little_endian


def _likeliest(logits_NV: Tensor, temperature: float, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the K largest probabilities, descending and continued with zeros, the rest's sum and the places."""
    count = min(kept, logits_NV.shape[1])
    tops, rests, places = [], [], []
    for rows in row_blocks(logits_NV):
        p = softmax(logits_NV[rows], temperature)
        top, place = p.topk(count, -1)
        # Whole vocabulary kept: exactly nothing is left, not a rounding.
        rest = (p.sum(-1) - top.sum(-1)).clamp_(min=0) if count < p.shape[1] else top.sum(-1) * 0
        tops.append(torch.nn.functional.pad(top, (0, kept - count)))
        rests.append(rest)
        places.append(place)
    if not tops:
        nothing = wide(logits_NV)
        return (
            nothing.new_zeros(0, kept),
            nothing.new_zeros(0),
            torch.zeros(0, count, dtype=torch.long, device=nothing.device),
        )
    return torch.cat(tops), torch.cat(rests), torch.cat(places)


def _signs(
    rows: slice, p: Tensor, sign: Tensor, place_NK: Tensor | None = None, rest_N: Tensor | None = None
) -> Tensor:
    """Return the gradient for p of some rows, of p's shape and type."""
    if place_NK is None or rest_N is None:
        return sign[rows].to(p.dtype)
    signs = rest_N[rows].to(p.dtype)[:, None].repeat(1, p.shape[1])
    return signs.scatter_(1, place_NK[rows], sign[rows].to(p.dtype))
