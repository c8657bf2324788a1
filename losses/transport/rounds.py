"""Sinkhorn's rounds, and their exact adjoint from nothing but the scalings of each round.

With a, b the marginals, K = exp(−C/ε), and u, v starting at 1, a round is u = 1 / (K (b v)), then v = 1 / (Kᵀ (a u));
the plan is a u K b v. The scalings are relative to the marginals, so that a point of weight 2 is the same as two
points and no weight is too small. Columns come last: no mass is lost however few the rounds.

Reverse mode keeps u and v of every round, O(rounds · (N + M)) numbers, and collects all that flows into K in two
products of rank `rounds`, where unrolled autograd keeps and visits a matrix a step.

While max(C)/ε is small these are products of matrices with vectors. Beyond, u and v may not fit into a float, and a
step is a log-sum-exp on φ = log u and γ = log v.

N source rows, M target rows, K rounds.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy
import torch
from torch import Tensor

from .compiled import compiled_for_arrays

LARGEST_EXPONENT = {torch.float32: 40.0, torch.float64: 340.0}
"""max(C)/ε up to which the scalings themselves are used: they lie within e^±2·max(C)/ε, and e⁸⁰ is a float32."""

NUMPY_ROWS = 512
"""On the CPU and up to this many rows and columns, NumPy's products with a vector take half of torch's time."""

_SQUARES_FIT = 1e-9
"""A scaling lies within the kernel's least number squared and the inverse of that: above this its square fits too."""

Array = TypeVar("Array", "numpy.ndarray[Any, Any]", Tensor)


def _empty(like: Any, *shape: int) -> Any:
    return like.new_empty(shape) if isinstance(like, Tensor) else numpy.empty(shape, like.dtype)


def _times(matrix: Any) -> Any:
    """Return the quickest function (vector, out) that writes the matrix times the vector."""
    if isinstance(matrix, Tensor):
        return lambda vector, out: torch.mv(matrix, vector, out=out)
    return matrix.dot


def _invert(vector: Any) -> None:
    numpy.reciprocal(vector, vector)


def scale(kernel_NM: Array, source_N: Array, target_M: Array, rounds: int) -> tuple[Array, Array, Array]:
    """Return the plan (N, M), u of each round (K, N), and v before the first and after each (K + 1, M)."""
    compiled: Any = compiled_for_arrays(kernel_NM, source_N, target_M)
    if compiled is not None:
        scaled: tuple[Array, Array, Array] = compiled.scale(kernel_NM, source_N, target_M, rounds)
        return scaled
    from_source_NM = kernel_NM * source_N[:, None]
    over_targets, over_sources = _times(kernel_NM * target_M[None, :]), _times(from_source_NM.T)
    invert: Any = Tensor.reciprocal_ if isinstance(kernel_NM, Tensor) else _invert
    rows_KN: Array = _empty(kernel_NM, rounds, len(source_N))
    columns_KM: Array = _empty(kernel_NM, rounds + 1, len(target_M))
    column_M, *columns_after = columns_KM
    column_M[:] = 1
    for row_N, after_M in zip(rows_KN, columns_after, strict=True):
        over_targets(column_M, row_N)
        invert(row_N)
        over_sources(row_N, after_M)
        invert(after_M)
        column_M = after_M
    from_source_NM *= rows_KN[-1][:, None]
    from_source_NM *= (target_M * column_M)[None, :]
    return from_source_NM, rows_KN, columns_KM


def scale_adjoint(
    plan_pull_NM: Array,
    plan_NM: Array,
    kernel_NM: Array,
    source_N: Array,
    target_M: Array,
    rows_KN: Array,
    columns_KM: Array,
) -> Array:
    """Return −dL/d(log kernel), which is ε · dL/dC, given dL/dplan of what `scale` returned."""
    solved = (plan_pull_NM, plan_NM, kernel_NM, source_N, target_M, rows_KN, columns_KM)
    compiled: Any = compiled_for_arrays(*solved)
    if compiled is not None:
        scaled_NM: Array = compiled.scale_adjoint(*solved)
        return scaled_NM
    to_target_NM, from_source_NM = kernel_NM * target_M[None, :], kernel_NM * source_N[:, None]
    over_targets, over_sources = _times(from_source_NM), _times(to_target_NM.T)
    # A pull on log u or log v has the plan's size, whatever u's and v's: it is multiplied by u, or v, once to go
    # through the kernel and once for the logarithm. At once, where the square is a number.
    row_factors: list[tuple[Any, ...]]
    column_factors: list[tuple[Any, ...]]
    if not isinstance(kernel_NM, Tensor) and kernel_NM.min() > _SQUARES_FIT:
        row_factors = [(square_N,) for square_N in rows_KN * rows_KN]
        column_factors = [(square_M,) for square_M in columns_KM * columns_KM]
    else:
        row_factors = [(row_N, row_N) for row_N in rows_KN]
        column_factors = [(column_M, column_M) for column_M in columns_KM]
    row_parts_KN: Array = _empty(kernel_NM, *rows_KN.shape)
    column_parts_KM: Array = _empty(kernel_NM, *rows_KN.shape[:1], len(target_M))
    direct_NM = plan_pull_NM * plan_NM
    last_row_pull_N: Any = direct_NM.sum(1) * rows_KN[-1]  # only the last u stands in the plan itself
    column_part_M, *column_parts_before = reversed(list(column_parts_KM))
    column_part_M[:] = direct_NM.sum(0) * columns_KM[-1]
    rows = list(zip(row_parts_KN, row_factors, strict=True))[::-1]
    for (row_part_N, row_factor), column_factor in zip(rows, column_factors[-2::-1], strict=True):
        over_targets(column_part_M, row_part_N)
        for factor_N in row_factor:
            row_part_N *= factor_N
        if last_row_pull_N is not None:
            row_part_N -= last_row_pull_N
            last_row_pull_N = None
        if not column_parts_before:
            break  # v before the first round is a constant
        column_part_M = column_parts_before.pop(0)
        over_sources(row_part_N, column_part_M)
        for factor_M in column_factor:
            column_part_M *= factor_M
    through_columns_NM: Array = rows_KN.T @ column_parts_KM
    through_rows_NM = row_parts_KN.T @ columns_KM[:-1]
    # In place: a fresh matrix of some hundred rows costs more than what is done to it.
    through_columns_NM *= from_source_NM
    through_rows_NM *= to_target_NM
    through_columns_NM -= through_rows_NM
    through_columns_NM -= direct_NM
    return through_columns_NM


def log_scale(
    log_kernel_NM: Tensor, log_source_N: Tensor, log_target_M: Tensor, rounds: int
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Do `scale` on logarithms: return the plan, φ of each round, and γ before the first and after each."""
    to_target_NM = log_kernel_NM + log_target_M[None, :]
    from_source_NM = log_kernel_NM + log_source_N[:, None]
    rows: list[Tensor] = []
    columns = [torch.zeros_like(log_target_M)]
    for _ in range(rounds):
        rows.append(-(to_target_NM + columns[-1][None, :]).logsumexp(1))
        columns.append(-(from_source_NM + rows[-1][:, None]).logsumexp(0))
    plan_NM = (from_source_NM + rows[-1][:, None] + (log_target_M + columns[-1])[None, :]).exp()
    return plan_NM, rows, columns


def log_scale_adjoint(
    plan_pull_NM: Tensor,
    plan_NM: Tensor,
    log_kernel_NM: Tensor,
    log_source_N: Tensor,
    log_target_M: Tensor,
    rows: list[Tensor],
    columns: list[Tensor],
) -> Tensor:
    """Do `scale_adjoint` on logarithms."""
    to_target_NM = log_kernel_NM + log_target_M[None, :]
    from_source_NM = log_kernel_NM + log_source_N[:, None]
    collected_NM = -plan_pull_NM * plan_NM
    column_pull_M, row_pull_N = -collected_NM.sum(0), -collected_NM.sum(1)
    for row_N, column_M, before_M in zip(rows[::-1], columns[:0:-1], columns[-2::-1], strict=True):
        # The derivative of a log-sum-exp: a matrix whose columns, or rows, add up to 1.
        part_NM = (from_source_NM + row_N[:, None] + column_M[None, :]).exp_().mul_(column_pull_M[None, :])
        row_pull_N = row_pull_N - part_NM.sum(1)
        collected_NM += part_NM
        part_NM = (to_target_NM + row_N[:, None] + before_M[None, :]).exp_().mul_(row_pull_N[:, None])
        column_pull_M = -part_NM.sum(0)
        collected_NM += part_NM
        row_pull_N = torch.zeros_like(row_pull_N)
    return collected_NM


def implicit_adjoint(plan_pull_NM: Tensor, plan_NM: Tensor) -> Tensor:
    """Return ε · dL/dC of a converged plan, by the implicit function theorem on its marginals.

    A change of C moves φ and γ so that the plan's row and column sums stay: one symmetric system, solved in float64
    for the sums the plan has. Of a plan that has not converged this is not the derivative of anything.
    """
    plan_NM, pull_NM = plan_NM.double(), plan_pull_NM.double()
    direct_NM = pull_NM * plan_NM
    source_N, target_M = plan_NM.sum(1), plan_NM.sum(0)
    conditional_NM = plan_NM / target_M[None, :]
    # Without the columns: a Laplacian of the rows, whose null space (all φ up, all γ down) the last term fills.
    system_NN = source_N.diag() - conditional_NM @ plan_NM.T + source_N[:, None] * source_N[None, :]
    row_N = torch.linalg.solve_ex(system_NN, direct_NM.sum(1) - conditional_NM @ direct_NM.sum(0))[0]
    column_M = (direct_NM.sum(0) - row_N @ plan_NM) / target_M
    scaled_NM: Tensor = plan_NM * (row_N[:, None] + column_M[None, :]) - direct_NM
    return scaled_NM.to(plan_pull_NM.dtype)
