"""All pairwise L1 distances between two sets of rows, in tiles, twice differentiable.

torch.cdist(p=1) loses four digits over 150,000 columns, has no second derivative, and on CUDA its backward
allocates N × M × V numbers. Here nothing larger than a tile is held, and only the inputs are saved.

N source rows, M target rows, V columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_COLUMNS = 1024
_TILE = {
    "cpu": 2**21,
    "cuda": 2**25,
}  # numbers in a tile: 8 MiB fits a CPU's cache; a GPU wants fewer launches


def manhattan(source_NV: Tensor, target_MV: Tensor) -> Tensor:
    """Return Σ_v |source_nv − target_mv|, (N, M)."""
    distances_NM: Tensor = _Distances.apply(source_NV, target_MV)  # type: ignore[no-untyped-call]
    return distances_NM


def _tiles(source_NV: Tensor, target_MV: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield slices of rows and columns with source − target of the tile, (rows, M, columns), free to overwrite."""
    rows, columns = source_NV.shape
    width = min(columns, _COLUMNS)
    height = max(1, _TILE.get(source_NV.device.type, 2**21) // max(1, width * target_MV.shape[0]))
    for row in range(0, rows, height):
        for column in range(0, columns, width):
            here, there = slice(row, row + height), slice(column, column + width)
            yield here, there, source_NV[here, None, there] - target_MV[None, :, there]


class _Distances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source_NV: Tensor, target_MV: Tensor) -> Tensor:
        ctx.save_for_backward(source_NV, target_MV)
        distances_NM = source_NV.new_zeros(source_NV.shape[0], target_MV.shape[0])
        for here, _, tile in _tiles(source_NV, target_MV):
            distances_NM[here] += tile.abs_().sum(-1)
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
        source_pull_NV = torch.zeros_like(source_NV) if for_source else None
        target_pull_MV = torch.zeros_like(target_MV) if for_target else None
        for here, there, tile in _tiles(source_NV, target_MV):
            tile.sign_().mul_(pull_NM[here, :, None])
            if source_pull_NV is not None:
                source_pull_NV[here, there] = tile.sum(1)
            if target_pull_MV is not None:
                target_pull_MV[:, there] -= tile.sum(0)
        return source_pull_NV, target_pull_MV

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        source_NV, target_MV = ctx.saved_tensors
        from_source_NV, from_target_MV = gradients
        pull_NM = source_NV.new_zeros(source_NV.shape[0], target_MV.shape[0])
        for here, there, tile in _tiles(source_NV, target_MV):
            tile.sign_()
            if from_source_NV is not None:
                pull_NM[here] += (tile * from_source_NV[here, None, there]).sum(-1)
            if from_target_MV is not None:
                pull_NM[here] -= (tile * from_target_MV[None, :, there]).sum(-1)
        return pull_NM, None, None, None, None
