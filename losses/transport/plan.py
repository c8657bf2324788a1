"""The plan after some rounds, differentiable by the rounds' exact adjoint.

N source rows, M target rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import on_gpu
from .problem import TransportProblem
from .rounds import (
    LARGEST_EXPONENT,
    NUMPY_ROWS,
    implicit_adjoint,
    log_scale,
    log_scale_adjoint,
    scale,
    scale_adjoint,
)


def plan_of_rounds(problem: TransportProblem, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the plan (N, M) and φ (N,) and γ (M,), its potentials over ε and without the marginals.

    The plan's derivative for the cost is that of these very rounds. Under create_graph, and for marginals that want
    a gradient, autograd differentiates the rounds themselves.
    """
    cost_NM, source_N, target_M = problem.cost_NM, problem.source_N, problem.target_M
    if torch.is_grad_enabled() and (source_N.requires_grad or target_M.requires_grad):
        plan_NM, rows, columns = log_scale(-cost_NM / problem.epsilon, source_N.log(), target_M.log(), rounds)
        return plan_NM, rows[-1].detach(), columns[-1].detach()
    done: tuple[Tensor, Tensor, Tensor] = _Plan.apply(  # type: ignore[no-untyped-call]
        cost_NM, source_N, target_M, problem.epsilon, rounds, fits_scaling(problem)
    )
    return done


def fits_scaling(problem: TransportProblem) -> bool:
    """Whether the rounds can be done without logarithms. Reads the costs only on the CPU, where it is free."""
    largest = problem.largest_cost
    if largest is None:
        if problem.cost_NM.device.type != "cpu" or not problem.cost_NM.numel():
            return False
        low, high = problem.cost_NM.detach().aminmax()
        largest = max(-float(low), float(high))
    return largest <= problem.epsilon * LARGEST_EXPONENT.get(problem.cost_NM.dtype, 0.0)


class _Plan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        cost_NM: Tensor,
        source_N: Tensor,
        target_M: Tensor,
        epsilon: float,
        rounds: int,
        scaling: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.epsilon, ctx.rounds, ctx.scaling = epsilon, rounds, scaling
        ctx.numpy = scaling and cost_NM.device.type == "cpu" and max(cost_NM.shape) <= NUMPY_ROWS
        ctx.on_gpu = (
            scaling and on_gpu.runs(cost_NM, source_N, target_M) and max(cost_NM.shape) <= on_gpu.ROWS
        )
        if ctx.on_gpu:
            plan_1NM, ctx.rows, ctx.columns, _, _ = on_gpu.scale(
                cost_NM[None], source_N[None], target_M[None], epsilon, rounds
            )
            plan_NM, row_N, column_M = plan_1NM[0], ctx.rows[0, -1].log(), ctx.columns[0, -1].log()
            ctx.save_for_backward(cost_NM, source_N, target_M, plan_NM)
            ctx.mark_non_differentiable(row_N, column_M)
            return plan_NM, row_N, column_M
        with torch.autocast(cost_NM.device.type, enabled=False):
            if scaling:
                parts: Any = ((-cost_NM / epsilon).exp_(), source_N, target_M)
                if ctx.numpy:
                    parts = tuple(part.numpy() for part in parts)
            else:
                parts = (-cost_NM / epsilon, source_N.log(), target_M.log())
            do_rounds: Any = scale if scaling else log_scale
            plan_NM, ctx.rows, ctx.columns = do_rounds(*parts, rounds)
        ctx.parts = parts
        last: Any = (ctx.rows[-1], ctx.columns[-1])
        if ctx.numpy:
            plan_NM, *last = (torch.from_numpy(part) for part in (plan_NM, *last))
        row_N, column_M = (part.log() for part in last) if scaling else last
        ctx.save_for_backward(cost_NM, source_N, target_M, plan_NM)
        ctx.mark_non_differentiable(row_N, column_M)
        return plan_NM, row_N, column_M

    @staticmethod
    def backward(ctx: Any, *pulls: Tensor) -> tuple[Tensor | None, ...]:
        cost_NM, source_N, target_M, plan_NM = ctx.saved_tensors
        pull_NM, nothing = pulls[0], (None,) * 5
        if torch.is_grad_enabled():
            # create_graph: the adjoint must itself be differentiable, so the same rounds are done under autograd.
            again_NM, _, _ = log_scale(-cost_NM / ctx.epsilon, source_N.log(), target_M.log(), ctx.rounds)
            (cost_pull_NM,) = torch.autograd.grad(again_NM, cost_NM, pull_NM, create_graph=True)
            return cost_pull_NM, *nothing
        if ctx.on_gpu:
            solved = (cost_NM[None], source_N[None], target_M[None], plan_NM[None], ctx.rows, ctx.columns)
            return on_gpu.scale_adjoint(pull_NM[None], *solved, ctx.epsilon)[0], *nothing
        parts: Any = (pull_NM, plan_NM)
        if ctx.numpy:
            parts = (pull_NM.numpy(), plan_NM.numpy())
        adjoint: Any = scale_adjoint if ctx.scaling else log_scale_adjoint
        with torch.autocast(cost_NM.device.type, enabled=False):
            scaled_NM = adjoint(*parts, *ctx.parts, ctx.rows, ctx.columns)
        return (torch.from_numpy(scaled_NM) if ctx.numpy else scaled_NM).div_(ctx.epsilon), *nothing


def implicit_plan(cost_NM: Tensor, plan_NM: Tensor, epsilon: float) -> Tensor:
    """Return a plan that some solver found, differentiable for the cost as a converged plan is."""
    attached_NM: Tensor = _Implicit.apply(cost_NM, plan_NM, epsilon)  # type: ignore[no-untyped-call]
    return attached_NM


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cost_NM: Tensor, plan_NM: Tensor, epsilon: float) -> Tensor:
        ctx.epsilon = epsilon
        ctx.save_for_backward(plan_NM)
        return plan_NM.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *pulls: Tensor) -> tuple[Tensor | None, ...]:
        (plan_NM,) = ctx.saved_tensors
        return implicit_adjoint(pulls[0], plan_NM) / ctx.epsilon, None, None
