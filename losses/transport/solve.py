"""Solvers: a transport problem in, a result that says how good it is out.

N source rows, M target rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .problem import TransportProblem


@dataclass(frozen=True, eq=False)
class TransportResult:
    """A plan and what is known about it.

    Attributes:
        cost: <plan, cost matrix>, a differentiable scalar. The entropy is not part of it.
        plan: (N, M), how much goes from where to where; columns add up to the target's mass.
        potentials: (N,) and (M,), the dual variables in the cost's unit.
        iterations: rounds of updates done (for the exact solver: the limit it was given).
        error: Σ |row sums − source| + Σ |column sums − target|, a detached scalar: the mass that is misplaced.
        converged: error <= tolerance, a bool scalar on the plan's device; reading it waits for the device.
    """

    cost: Tensor
    plan: Tensor
    potentials: tuple[Tensor, Tensor]
    iterations: int
    error: Tensor
    converged: Tensor


def solve(
    problem: TransportProblem, *, iterations: int = 20, tolerance: float = 1e-2, solver: str = "distill"
) -> TransportResult:
    """Solve a problem.

    "distill" does exactly `iterations` rounds of Sinkhorn's updates on logarithms, rows then columns, and autograd
    differentiates through them: the gradient is that of the cost returned, converged or not. "pot" does the same
    rounds in POT, or with epsilon 0 finds the exact plan. "geomloss" anneals epsilon and averages the two updates;
    it needs more rounds for the same error. These two return a constant plan, so that only the cost matrix carries
    gradient: the derivative of the entropic objective at its optimum (for epsilon 0, of the cost itself), not that
    of an unconverged cost.

    Raises:
        ValueError: epsilon 0 without POT, or an unknown solver.
    """
    if problem.epsilon == 0 and solver != "pot":
        raise ValueError(f"epsilon 0 (the exact assignment) needs solver 'pot', got {solver!r}")
    if solver == "distill":
        plan_NM, potentials = _sinkhorn(problem, iterations)
    else:
        with torch.no_grad():
            if not bool(problem.cost_NM.isfinite().all()):
                # The other solvers make a plan even of NaN, or fail on it far from where it came from.
                plan_NM = torch.full_like(problem.cost_NM, torch.nan)
                potentials = (plan_NM.sum(1), plan_NM.sum(0))
            elif solver == "pot":
                plan_NM, potentials = _pot(problem, iterations) if problem.epsilon else _exact(problem)
            elif solver == "geomloss":
                plan_NM, potentials = _geomloss(problem, iterations)
            else:
                raise ValueError(f"solver must be one of 'distill', 'pot', 'geomloss', got {solver!r}")
    with torch.no_grad():
        error = (plan_NM.sum(1) - problem.source_N).abs().sum() + (
            plan_NM.sum(0) - problem.target_M
        ).abs().sum()
    return TransportResult(
        cost=(plan_NM * problem.cost_NM).sum(),
        plan=plan_NM,
        potentials=potentials,
        iterations=iterations if problem.epsilon else _EXACT_LIMIT,
        error=error,
        converged=error <= tolerance,
    )


def _sinkhorn(problem: TransportProblem, iterations: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    cost_NM, epsilon = problem.cost_NM, problem.epsilon
    log_source_N, log_target_M = problem.source_N.log(), problem.target_M.log()
    scaled_NM = -cost_NM / epsilon
    # The potentials over epsilon. Starting from the target's own mass makes a point of weight 2 the same as two
    # points; with equal masses it is the textbook's start at 1. Columns come last, so that no mass is lost however
    # few the rounds.
    row_N, column_M = log_source_N, log_target_M
    for _ in range(iterations):
        row_N = log_source_N - (scaled_NM + column_M[None, :]).logsumexp(1)
        column_M = log_target_M - (scaled_NM + row_N[:, None]).logsumexp(0)
    plan_NM = (scaled_NM + row_N[:, None] + column_M[None, :]).exp()
    return plan_NM, (epsilon * row_N, epsilon * column_M)


def _pot(problem: TransportProblem, iterations: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    import ot

    # POT updates columns, then rows. Transposed, its last update is ours: columns.
    plan_MN, log = ot.bregman.sinkhorn_log(
        problem.target_M,
        problem.source_N,
        problem.cost_NM.detach().T,
        problem.epsilon,
        numItermax=iterations,
        stopThr=0,
        log=True,
        warn=False,
        warmstart=(problem.target_M.log(), problem.source_N.log()),
    )
    # Its roles: log_u belongs to its first marginal (our columns), log_v to its second (our rows).
    return plan_MN.T, (problem.epsilon * log["log_v"], problem.epsilon * log["log_u"])


_EXACT_LIMIT = 1_000_000


def _exact(problem: TransportProblem) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    import ot

    cost_NM = problem.cost_NM.detach()
    source_N, target_M = (mass.double().cpu().numpy() for mass in (problem.source_N, problem.target_M))
    plan, log = ot.emd(
        source_N / source_N.sum(),
        target_M / target_M.sum(),
        cost_NM.double().cpu().numpy(),
        numItermax=_EXACT_LIMIT,
        log=True,
    )
    plan_NM, row_N, column_M = (torch.from_numpy(part).to(cost_NM) for part in (plan, log["u"], log["v"]))
    return plan_NM, (row_N, column_M)


def _geomloss(problem: TransportProblem, iterations: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    from geomloss import ot

    cost_NM = problem.cost_NM.detach()
    result = ot.solve(
        cost_NM, reg=problem.epsilon, a=problem.source_N, b=problem.target_M, max_iter=iterations
    )
    # Stopped early, geomloss' two potentials do not fit each other and its plan's mass can be anything. One more
    # column update makes it a plan.
    row_N = result.potential_a / problem.epsilon + problem.source_N.log()
    scaled_NM = -cost_NM / problem.epsilon
    column_M = problem.target_M.log() - (scaled_NM + row_N[:, None]).logsumexp(0)
    plan_NM = (scaled_NM + row_N[:, None] + column_M[None, :]).exp()
    return plan_NM, (problem.epsilon * row_N, problem.epsilon * column_M)
