"""What is to be moved where, and what it costs.

N source rows, M target rows, V vocabulary or classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .manhattan import manhattan


@dataclass(frozen=True, eq=False)
class TransportProblem:
    """Move mass source_N onto target_M, where a unit from n to m costs cost_NM, smoothed by entropy.

    Shapes: cost_NM (N, M), differentiable; source_N (N,) and target_M (M,) positive, each adding up to 1.
    Units: epsilon has the cost's unit; 0 is the exact problem. largest_cost, in the same unit, is a bound on |cost|
        that is known without reading the matrix: it lets a GPU use the faster rounds without waiting for it.

    Raises:
        ValueError: shapes that do not fit.
    """

    cost_NM: Tensor
    source_N: Tensor
    target_M: Tensor
    epsilon: float
    largest_cost: float | None = None

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
    """Return Σ (p − q)², (N, M) in [0, 2] for distributions, to the last digits for nearly equal rows too."""
    squares_NM: Tensor = _Squares.apply(p_NV, q_MV)  # type: ignore[no-untyped-call]
    return squares_NM


def cosine(p_NV: Tensor, q_MV: Tensor) -> Tensor:
    """Return 1 − cos(p, q), (N, M) in [0, 1] for distributions: half the squared distance of the unit vectors."""
    unit_p_NV = p_NV / (p_NV * p_NV).sum(-1, keepdim=True).sqrt()
    unit_q_MV = q_MV / (q_MV * q_MV).sum(-1, keepdim=True).sqrt()
    return squared_euclidean(unit_p_NV, unit_q_MV) / 2


class _Squares(torch.autograd.Function):
    """|p|² + |q|² − 2 p·q by a matrix product, whose rounding would drown what nearly equal rows differ by."""

    @staticmethod
    def forward(ctx: Any, p_NV: Tensor, q_MV: Tensor) -> Tensor:
        ctx.save_for_backward(p_NV, q_MV)
        # In float64, a few columns at a time: the numbers that cancel then have digits to spare.
        squares_NM = p_NV.new_zeros(p_NV.shape[0], q_MV.shape[0], dtype=torch.float64)
        sizes_NM = torch.zeros_like(squares_NM)
        for column in range(0, p_NV.shape[1], 4096):
            p, q = p_NV[:, column : column + 4096].double(), q_MV[:, column : column + 4096].double()
            sizes_NM += (p * p).sum(-1)[:, None] + (q * q).sum(-1)[None, :]
            squares_NM.addmm_(p, q.T, alpha=-2)
        squares_NM += sizes_NM
        if squares_NM.device.type == "cpu":  # elsewhere looking for such pairs would wait for the device
            near = (squares_NM < 1e-9 * sizes_NM).nonzero()
            count = max(1, 2**18 // p_NV.shape[1])
            for start in range(0, len(near), count):
                row, column_of = near[start : start + count].unbind(1)
                difference = p_NV[row] - q_MV[column_of]
                squares_NM[row, column_of] = (difference * difference).sum(-1).double()
        return squares_NM.clamp_(min=0).to(p_NV.dtype)

    @staticmethod
    def backward(ctx: Any, *pulls: Tensor) -> tuple[Tensor | None, ...]:
        p_NV, q_MV = ctx.saved_tensors
        (pull_NM,) = pulls
        p_pull_NV = q_pull_MV = None
        with torch.autocast(p_NV.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                p_pull_NV = 2 * (pull_NM.sum(1)[:, None] * p_NV - pull_NM @ q_MV)
            if ctx.needs_input_grad[1]:
                q_pull_MV = 2 * (pull_NM.sum(0)[:, None] * q_MV - pull_NM.T @ p_NV)
        return p_pull_NV, q_pull_MV


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
