"""What the losses of whole groups share: debiased costs, and how their solves went.

N rows, G rows of one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .problem import TransportProblem
from .rounds import LARGEST_EXPONENT
from .solve import solve

if TYPE_CHECKING:
    from .sinkhorn import Sinkhorn


def is_plain(loss: Sinkhorn) -> bool:
    """Whether a loss can be done whole, by what does distances, rounds and exact gradient of a group together."""
    return (
        loss.cost in ("l1", "total_variation")
        and loss.solver == "distill"
        and loss.gradient == "exact"
        and loss.memory == "fast"
        and loss.bound <= loss.epsilon * LARGEST_EXPONENT[torch.float32]
    )


def debiased_shares(
    costs: Sequence[Tensor],
    mass_G: Tensor,
    epsilon: float,
    *,
    largest_cost: float,
    iterations: int,
    solver: str = "distill",
    gradient: str = "exact",
) -> tuple[Tensor, Tensor]:
    """Return each row's share of one group's cost, (G,), and the largest misplaced mass of its solves.

    Args:
        costs: (G, G) from student to teacher; to debias also student to student and teacher to teacher, half of
            whose shares are subtracted.
        mass_G: of each row, on both sides.
        epsilon: strength of the entropy.
        largest_cost: a bound on the costs.
        iterations: rounds of updates.
        solver: as in `solve`.
        gradient: as in `solve`.
    """
    results = [
        solve(
            TransportProblem(cost_GG, mass_G, mass_G, epsilon, largest_cost),
            iterations=iterations,
            solver=solver,
            gradient=gradient,
        )
        for cost_GG in costs
    ]
    shares_G = results[0].shares
    for own in results[1:]:
        shares_G = shares_G - own.shares / 2
    return shares_G, torch.stack([result.error for result in results]).amax()


def convergence(errors: Sequence[Tensor], tolerance: float, values_N: Tensor) -> dict[str, Tensor]:
    """Return "marginal_error", the largest of the groups' misplaced masses, and "converged", how many stayed within.

    values_N says on which device and in which precision, where there is no group.
    """
    if not errors:
        return {"marginal_error": values_N.new_zeros(()), "converged": values_N.new_ones(())}
    error_of_each = torch.stack(list(errors))
    converged = (error_of_each <= tolerance).to(error_of_each.dtype)
    return {"marginal_error": error_of_each.amax(), "converged": converged.mean()}
