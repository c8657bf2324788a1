"""All pairwise L1 distances between two sets of rows, in tiles.

torch.cdist(p=1) loses four digits over 150,000 columns, has no second derivative, and on CUDA its backward
allocates N × M × V numbers. Here nothing larger than a tile is held, and only the inputs are saved.

N source rows, M target rows, V columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import on_gpu
from .compiled import compiled_for_tensors

_COLUMNS = 512
_TILE = {
    "cpu": 2**20,
    "cuda": 2**25,
}  # numbers in a tile: 4 MiB stay in a CPU's cache; a GPU wants fewer launches
_FEW = 16  # columns below which a tile's rows are too short: one column after the other


def manhattan(source_NV: Tensor, target_MV: Tensor) -> Tensor:
    """Return Σ_v |source_nv − target_mv|, (N, M), twice differentiable."""
    distances_NM: Tensor = _Distances.apply(source_NV, target_MV)  # type: ignore[no-untyped-call]
    return distances_NM


def overlap(p_NV: Tensor, q_MV: Tensor) -> Tensor:
    """Return Σ_v min(p_nv, q_mv), (N, M): what two distributions share; their L1 distance is 2 − 2 · this.

    One pass over each tile less than the distance itself. Tiles add up in float64, for what is left of a difference
    to be as good as the distance's own sum, about 1e-7. Not differentiable.
    """
    if on_gpu.runs(p_NV, q_MV):
        return on_gpu.all_pairs(p_NV, q_MV, shared=True, dtype=torch.float64)[0]
    if p_NV.shape[1] < _FEW:
        shared_NM = p_NV.new_zeros(p_NV.shape[0], q_MV.shape[0])
        least_NM = torch.empty_like(shared_NM)
        for p_N, q_M in zip(p_NV.unbind(1), q_MV.unbind(1), strict=True):
            shared_NM += torch.minimum(p_N[:, None], q_M[None, :], out=least_NM)
        return shared_NM
    compiled = compiled_for_tensors(p_NV, q_MV)
    if compiled is not None:
        return compiled.overlap(p_NV, q_MV, own=False)
    shared_NM = p_NV.new_zeros(p_NV.shape[0], q_MV.shape[0], dtype=torch.float64)
    tile = _buffer(p_NV, q_MV.shape[0])
    for here, there in _places(p_NV, q_MV.shape[0]):
        shared_NM[here] += _on_tile(torch.minimum, tile, p_NV[here, there], q_MV[:, there]).sum(-1)
    return shared_NM


def self_overlap(p_NV: Tensor) -> Tensor:
    """Return overlap(p, p), (N, N), from half of its pairs."""
    if p_NV.shape[1] < _FEW or on_gpu.runs(p_NV):
        return overlap(p_NV, p_NV)
    compiled = compiled_for_tensors(p_NV)
    if compiled is not None:
        shared_NN = compiled.overlap(p_NV, p_NV, own=True)
    else:
        shared_NN = p_NV.new_zeros(p_NV.shape[0], p_NV.shape[0], dtype=torch.float64)
        tile = _buffer(p_NV, p_NV.shape[0])
        for here, there in _places(p_NV, p_NV.shape[0]):
            # Each row with itself and all that follow it.
            shared_NN[here, here.start :] += _on_tile(
                torch.minimum, tile, p_NV[here, there], p_NV[here.start :, there]
            ).sum(-1)
    return shared_NN.triu() + shared_NN.triu(1).T


def mass(p_NV: Tensor) -> Tensor:
    """Return Σ_v p_nv, (N,), in float64 as `overlap`."""
    parts = [part.sum(-1, dtype=p_NV.dtype) for part in torch.split(p_NV, 4096, dim=1)]
    return torch.stack(parts).sum(0, dtype=torch.float64)


def distance_pull(pull_NM: Tensor, source_NV: Tensor, target_MV: Tensor) -> Tensor:
    """Return Σ_m pull_nm · sign(source_nv − target_mv), (N, V): a gradient for the distances, pulled to the source."""
    if on_gpu.runs(pull_NM, source_NV, target_MV):
        return on_gpu.distance_pull(pull_NM, source_NV, target_MV)
    if source_NV.shape[1] < _FEW:
        columns = [
            (source_N[:, None] - target_M[None, :]).sign_().mul_(pull_NM).sum(1)
            for source_N, target_M in zip(source_NV.unbind(1), target_MV.unbind(1), strict=True)
        ]
        return torch.stack(columns, 1)
    compiled = compiled_for_tensors(source_NV, target_MV)
    if compiled is not None and bool(pull_NM.isfinite().all()):  # ±inf times a sign of 0 is NaN
        return compiled.distance_pull(pull_NM, source_NV, target_MV)
    if source_NV.device.type == "cpu":
        # What torch.cdist(p=1) does backward. On the CPU it needs no buffer and is as fast as tiles; the last
        # argument, the distances, is read for other exponents only.
        pulled_NV: Tensor = torch.ops.aten._cdist_backward(
            pull_NM.contiguous(), source_NV.contiguous(), target_MV.contiguous(), 1.0, pull_NM
        )
        return pulled_NV
    return tiled_pull(pull_NM, source_NV, target_MV)


def tiled_pull(pull_NM: Tensor, source_NV: Tensor, target_MV: Tensor) -> Tensor:
    """Do `distance_pull` in tiles, as it is done on a GPU that has no kernels."""
    pulled_NV = torch.empty_like(source_NV)
    tile = _buffer(source_NV, target_MV.shape[0])
    for here, there in _places(source_NV, target_MV.shape[0]):
        signs = _on_tile(torch.sub, tile, source_NV[here, there], target_MV[:, there]).sign_()
        pulled_NV[here, there] = torch.bmm(pull_NM[here, None, :], signs).squeeze(1)
    return pulled_NV


def _places(source_NV: Tensor, targets: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of rows and of columns such that (rows, targets, columns) is a tile."""
    rows, columns = source_NV.shape
    width = min(columns, _COLUMNS)
    height = max(1, _TILE.get(source_NV.device.type, 2**19) // max(1, width * targets))
    for column in range(0, columns, width):
        for row in range(0, rows, height):
            yield slice(row, min(row + height, rows)), slice(column, min(column + width, columns))


def _buffer(source_NV: Tensor, targets: int) -> Tensor:
    here, there = next(_places(source_NV, targets), (slice(0, 0), slice(0, 0)))
    return source_NV.new_empty((here.stop - here.start) * targets * (there.stop - there.start))


def _on_tile(operation: Any, buffer: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Return operation(every source row, every target row), (rows, targets, columns), in the buffer."""
    shape = (source.shape[0], target.shape[0], source.shape[1])
    tile = buffer[: shape[0] * shape[1] * shape[2]].view(shape)
    operation(source[:, None], target[None], out=tile)
    return tile


class _Distances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source_NV: Tensor, target_MV: Tensor) -> Tensor:
        ctx.save_for_backward(source_NV, target_MV)
        if on_gpu.runs(source_NV, target_MV):
            return on_gpu.all_pairs(source_NV, target_MV)[0]
        distances_NM = source_NV.new_zeros(source_NV.shape[0], target_MV.shape[0])
        tile = _buffer(source_NV, target_MV.shape[0])
        for here, there in _places(source_NV, target_MV.shape[0]):
            difference = _on_tile(torch.sub, tile, source_NV[here, there], target_MV[:, there])
            distances_NM[here] += difference.abs_().sum(-1)
        return distances_NM

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        source_NV, target_MV = ctx.saved_tensors
        pulled: tuple[Tensor | None, ...] = _Pull.apply(  # type: ignore[no-untyped-call]
            gradients[0], source_NV, target_MV, *ctx.needs_input_grad
        )
        return pulled


class _Pull(torch.autograd.Function):
    """The backward pass above, as a function of the incoming gradient (linear) and the rows (piecewise constant)."""

    @staticmethod
    def forward(
        ctx: Any, pull_NM: Tensor, source_NV: Tensor, target_MV: Tensor, for_source: bool, for_target: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(source_NV, target_MV)
        return (
            distance_pull(pull_NM, source_NV, target_MV) if for_source else None,
            distance_pull(pull_NM.T, target_MV, source_NV) if for_target else None,
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        source_NV, target_MV = ctx.saved_tensors
        from_source_NV, from_target_MV = gradients
        pull_NM = source_NV.new_zeros(source_NV.shape[0], target_MV.shape[0])
        tile = _buffer(source_NV, target_MV.shape[0])
        for here, there in _places(source_NV, target_MV.shape[0]):
            signs = _on_tile(torch.sub, tile, source_NV[here, there], target_MV[:, there]).sign_()
            if from_source_NV is not None:
                pull_NM[here] += (signs * from_source_NV[here, None, there]).sum(-1)
            if from_target_MV is not None:
                pull_NM[here] -= (signs * from_target_MV[None, :, there]).sum(-1)
        return pull_NM, None, None, None, None
