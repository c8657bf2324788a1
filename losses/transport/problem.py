"""What is to be moved where, and what it costs.

N source rows, M target rows, V vocabulary or classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .manhattan import manhattan


@dataclass(frozen=True, eq=False)
class TransportProblem:
    """Move mass source_N onto target_M, where a unit from n to m costs cost_NM, smoothed by entropy.

    Shapes: cost_NM (N, M), differentiable; source_N (N,) and target_M (M,) positive, each adding up to 1.
    Units: epsilon has the cost's unit; 0 is the exact problem.

    Raises:
        ValueError: shapes that do not fit.
    """

    cost_NM: Tensor
    source_N: Tensor
    target_M: Tensor
    epsilon: float

    def __post_init__(self) -> None:
        expected = (*self.source_N.shape, *self.target_M.shape)
        if self.cost_NM.dim() != 2 or self.cost_NM.shape != expected:
            raise ValueError(
                f"cost must have shape (N, M) = {expected} as its marginals, got {tuple(self.cost_NM.shape)}"
            )


def total_variation(p_NV: Tensor, q_MV: Tensor) -> Tensor:
    """Return half the L1 distance: the mass on which two distributions differ, (N, M) in [0, 1]."""
    return manhattan(p_NV, q_MV) / 2


def squared_euclidean(p_NV: Tensor, q_MV: Tensor) -> Tensor:
    """Return Σ (p − q)², (N, M) in [0, 2] for distributions."""
    squares_NM = (p_NV * p_NV).sum(-1)[:, None] + (q_MV * q_MV).sum(-1)[None, :]
    return (squares_NM - 2 * (p_NV @ q_MV.T)).clamp(min=0)


def cosine(p_NV: Tensor, q_MV: Tensor) -> Tensor:
    """Return 1 − cos(p, q), (N, M) in [0, 1] for distributions."""
    unit_p_NV = p_NV / (p_NV * p_NV).sum(-1, keepdim=True).sqrt()
    unit_q_MV = q_MV / (q_MV * q_MV).sum(-1, keepdim=True).sqrt()
    return (1 - unit_p_NV @ unit_q_MV.T).clamp(min=0)


COSTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": manhattan,
    "total_variation": total_variation,
    "squared_euclidean": squared_euclidean,
    "cosine": cosine,
}


def cost_matrix(name: str, p_NV: Tensor, q_MV: Tensor) -> Tensor:
    """Return the named cost between every row of p and every row of q, (N, M).

    Autocast is switched off: it would multiply the probabilities in half precision.
    """
    with torch.autocast(p_NV.device.type, enabled=False):
        return COSTS[name](p_NV, q_MV)
