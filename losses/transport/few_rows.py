"""The whole batch-wise cost of groups of few rows on a GPU, forward and backward, in five to seven launches.

What `softened.py`, `plan.py` and `batchwise.py` do for one group, done for all groups of one size at once: the softmax
of both sides, all distances, all rounds; backward their adjoint, and one pass to the logits.

K rows in all, G rows of one group, Q groups, V vocabulary or classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..precision import wide
from . import on_gpu
from .batchwise import is_plain

if TYPE_CHECKING:
    from .sinkhorn import Sinkhorn


class FewRows(torch.autograd.Function):
    """Each row's share of its group's cost, (K,), and the misplaced mass of its solves, (Q, T); see `Sinkhorn`."""

    @staticmethod
    def fit(loss: Sinkhorn, student_KV: Tensor, sizes: Sequence[int]) -> bool:
        """Whether this can do groups of these sizes."""
        return (
            len(set(sizes)) == 1
            and sizes[0] <= on_gpu.ROWS
            and on_gpu.runs(wide(student_KV[:0]))
            and is_plain(loss)
        )

    @staticmethod
    def forward(
        ctx: Any, student_KV: Tensor, teacher_KV: Tensor, mass_QG: Tensor | None, size: int, loss: Sinkhorn
    ) -> tuple[Tensor, Tensor]:
        """Solve all groups' problems: student to teacher and, to debias, either to itself.

        The masses of a group, of size rows, add up to 1; None is uniform.
        """
        ctx.loss = loss
        ctx.set_materialize_grads(False)  # zeros for the misplaced mass would be one more launch
        ctx.teacher_KV = teacher_KV  # made in inference mode, perhaps, which save_for_backward refuses
        kinds = 3 if loss.debias else 1
        p_KV, q_KV = on_gpu.softmaxes(student_KV, teacher_KV, loss.temperature)
        if mass_QG is None:
            mass_QG = p_KV.new_full((len(p_KV) // size, size), 1 / size)
        ctx.factor = 0.5 if loss.cost == "total_variation" else 1.0
        cost_RGG = on_gpu.all_pairs(p_KV, q_KV, groups=len(mass_QG), kinds=kinds, factor=ctx.factor)
        plan_RGG, *scalings, shares_RG, error_R = on_gpu.scale(
            cost_RGG, mass_QG, mass_QG, loss.epsilon, loss.iterations
        )
        ctx.save_for_backward(student_KV, mass_QG, p_KV, q_KV, cost_RGG, plan_RGG, *scalings)
        error_QT = error_R.view(len(mass_QG), kinds)
        ctx.mark_non_differentiable(error_QT)
        return shares_RG.view(len(mass_QG), kinds, size).sum(1).view(-1), error_QT

    @staticmethod
    def backward(ctx: Any, *pulls: Tensor) -> tuple[Tensor | None, ...]:
        """Pull the shares' gradient back to the student's logits."""
        student_KV, mass_QG, p_KV, q_KV, *solved = ctx.saved_tensors
        loss, nothing = ctx.loss, (None,) * 4
        if torch.is_grad_enabled():
            # create_graph: the same shares by the general way, which autograd can differentiate twice.
            size = mass_QG.shape[1]
            shares = [
                loss.transport(*group)[0]
                for group in zip(student_KV.split(size), ctx.teacher_KV.split(size), mass_QG, strict=True)
            ]
            (gradient_KV,) = torch.autograd.grad(torch.cat(shares), student_KV, pulls[0], create_graph=True)
            return gradient_KV, *nothing
        cost_RGG, plan_RGG, rows_RKG, columns_RKG = solved
        pull_QTGG = on_gpu.debiased_shares_adjoint(
            pulls[0], cost_RGG, mass_QG, plan_RGG, rows_RKG, columns_RKG, loss.epsilon, ctx.factor
        )
        return on_gpu.logits_pull(pull_QTGG, p_KV, q_KV, loss.temperature, student_KV.dtype), *nothing
