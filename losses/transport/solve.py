"""Solvers: a transport problem in, a result that says how good it is out.

N source rows, M target rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .plan import implicit_plan, plan_of_rounds
from .problem import TransportProblem


@dataclass(frozen=True, eq=False)
class TransportResult:
    """A plan and what is known about it.

    Attributes:
        problem: what was solved.
        plan: (N, M), how much goes from where to where; columns add up to the target's mass.
        potentials: (N,) and (M,), the dual variables in the cost's unit, detached.
        iterations: rounds of updates done (for the exact solver: the limit it was given).
        error: Σ |row sums − source| + Σ |column sums − target|, a detached scalar: the mass that is misplaced.
        converged: error <= tolerance, a bool scalar on the plan's device; reading it waits for the device.
    """

    problem: TransportProblem
    plan: Tensor
    potentials: tuple[Tensor, Tensor]
    iterations: int
    error: Tensor
    converged: Tensor

    @property
    def cost(self) -> Tensor:
        """<plan, cost matrix>, a differentiable scalar. The entropy is not part of it."""
        return (self.plan * self.problem.cost_NM).sum()

    @property
    def shares(self) -> Tensor:
        """What moving each source row costs a unit of its mass, (N,): their mean, by mass, is the cost."""
        return (self.plan * self.problem.cost_NM).sum(1) / self.problem.source_N


def solve(
    problem: TransportProblem,
    *,
    iterations: int = 20,
    tolerance: float = 1e-2,
    solver: str = "distill",
    gradient: str = "exact",
) -> TransportResult:
    """Solve a problem.

    "distill" does exactly `iterations` rounds of Sinkhorn's updates, rows then columns. "pot" does the same rounds
    in POT, or with epsilon 0 finds the exact plan. "geomloss" anneals epsilon and averages the two updates; it needs
    more rounds for the same error.

    The gradient for the cost matrix is, by name:

    - "exact": the derivative of what was computed, converged or not, by the adjoint of the rounds; differentiable
      again. Another solver's rounds are not at hand: its plan is held constant, which is exact for epsilon 0 and
      otherwise "envelope".
    - "envelope": the plan is held constant. The derivative of the entropic objective at its optimum, not of <P, C>.
    - "implicit": the derivative of the converged plan, by the implicit function theorem, whatever solver found it.
      Of a plan that has not converged (`error`) it is not a derivative. Once differentiable.

    Raises:
        ValueError: epsilon 0 without POT, or with the implicit gradient (an exact plan has none); an unknown
            solver or gradient.
    """
    if problem.epsilon == 0 and (solver != "pot" or gradient == "implicit"):
        raise ValueError(
            f"epsilon 0 (the exact assignment) needs solver 'pot' and a gradient other than 'implicit', "
            f"got {solver!r} and {gradient!r}"
        )
    if gradient not in ("exact", "envelope", "implicit"):
        raise ValueError(f"gradient must be one of 'exact', 'envelope', 'implicit', got {gradient!r}")
    if solver == "distill":
        with torch.set_grad_enabled(torch.is_grad_enabled() and gradient == "exact"):
            plan_NM, row_N, column_M = plan_of_rounds(problem, iterations)
        with torch.no_grad():
            row_N = problem.epsilon * (row_N + problem.source_N.log())
            column_M = problem.epsilon * (column_M + problem.target_M.log())
        potentials = row_N, column_M
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
    if gradient == "implicit":
        plan_NM = implicit_plan(problem.cost_NM, plan_NM, problem.epsilon)
    with torch.no_grad():
        error = (plan_NM.sum(1) - problem.source_N).abs().sum() + (
            plan_NM.sum(0) - problem.target_M
        ).abs().sum()
    return TransportResult(
        problem=problem,
        plan=plan_NM,
        potentials=potentials,
        iterations=iterations if problem.epsilon else _EXACT_LIMIT,
        error=error,
        converged=error <= tolerance,
    )


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
