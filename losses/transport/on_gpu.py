"""Where transport runs in kernels of its own, and their launches.

As torch's operations, a small debiased loss and its gradient are seven hundred launches; here they are nine. A large
one is bound by arithmetic, not by memory: a tile of pairs stays in registers. The kernels are Triton's; without it,
and on anything else than what `runs` names, torch does the work. Nothing here waits for the device.

N source rows, M target rows, V columns, K rounds, R problems, Q groups, S parts that the columns are cut into.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels.availability import triton_runs_on

ROWS = 128
"""Rows, and columns, of a plan that one program holds in its registers."""

_SIDE = 16  # of a tile of pairs
_STEP = 32  # columns that a tile looks at together: a lane each
_CHUNK = 2048  # columns whose distances are added in float32: 64 a lane
_PROGRAMS = 2048  # enough of them to keep a GPU busy; more parts than that takes are more memory for nothing
_TILE_ROWS, _TILE_COLUMNS = 8, 256  # of a gradient
_BLOCK = 4096  # numbers of a row that are looked at together


def runs(*tensors: Tensor) -> bool:
    """Whether the kernels run where these tensors are, and can take them: float32."""
    return all(tensor.dtype == torch.float32 for tensor in tensors) and triton_runs_on(tensors[0].device)


def _launch(name: str, grid: tuple[int, ...], *arguments: Any, warps: int = 4, **constants: Any) -> None:
    from . import triton_kernels

    # Triton launches on the current device, wherever the tensors are.
    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
        getattr(triton_kernels, name)[grid](*arguments, num_warps=warps, enable_fp_fusion=True, **constants)


def _power_of_two(number: int, least: int, most: int) -> int:
    """Return the smallest power of two that holds the number, between two others."""
    return min(most, max(least, 1 << (number - 1).bit_length()))


def softmaxes(student_NV: Tensor, teacher_NV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return `softened.softmax` of both sides' logits, of any precision."""
    rows, classes = student_NV.shape
    student_NV, teacher_NV = _rows_in_line(student_NV), _rows_in_line(teacher_NV)
    p_NV, q_NV = student_NV.new_empty(2, rows, classes, dtype=torch.float32).unbind(0)
    block = _power_of_two(classes, 16, _BLOCK)
    _launch(
        "softmaxes",
        (2 * rows,),
        student_NV,
        teacher_NV,
        p_NV,
        q_NV,
        student_NV.stride(0),
        teacher_NV.stride(0),
        rows,
        classes,
        temperature,
        BLOCK=block,
        warps=max(1, block // 512),
    )
    return p_NV, q_NV


def _rows_in_line(logits_NV: Tensor) -> Tensor:
    return logits_NV if logits_NV.stride(1) == 1 else logits_NV.contiguous()


def all_pairs(
    source_NV: Tensor,
    target_MV: Tensor,
    *,
    shared: bool = False,
    groups: int = 1,
    kinds: int = 1,
    factor: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return factor · `manhattan` of each group's rows, or (shared) factor · `overlap`, (Q · kinds, N, M).

    kinds 3: of a group's source with its target, then of either with itself; 2 leaves out the last.
    """
    sources, targets, classes = len(source_NV) // groups, len(target_MV) // groups, source_NV.shape[1]
    problems = groups * kinds
    out_RNM = source_NV.new_empty(problems, sources, targets, dtype=dtype)
    if not out_RNM.numel():
        return out_RNM
    tiles = problems * -(-sources // _SIDE) * -(-targets // _SIDE)
    chunks = -(-classes // _CHUNK)
    chunks_of_each = -(-chunks // min(chunks, max(1, _PROGRAMS // tiles)))
    parts = -(-chunks // chunks_of_each)
    parts_SRNM = out_RNM[None]
    if parts > 1:
        parts_SRNM = torch.empty(parts, *out_RNM.shape, dtype=torch.float64, device=out_RNM.device)
    _launch(
        "all_pairs",
        (tiles, parts),
        source_NV.contiguous(),
        target_MV.contiguous(),
        parts_SRNM,
        sources,
        targets,
        classes,
        kinds,
        problems,
        chunks_of_each,
        factor,
        SHARED=shared,
        SIDE=_SIDE,
        STEP=_STEP,
        CHUNK=_CHUNK,
    )
    if parts > 1:
        numbers = out_RNM.numel()
        _launch("add_parts", (-(-numbers // 128),), parts_SRNM, out_RNM, parts, numbers, BLOCK=128)
    return out_RNM


def distance_pull(pull_NM: Tensor, source_NV: Tensor, target_MV: Tensor) -> Tensor:
    """Do `manhattan.distance_pull`."""
    pulled_NV = torch.empty_like(source_NV, memory_format=torch.contiguous_format)
    if not pulled_NV.numel():
        return pulled_NV
    sources, classes = source_NV.shape
    width = _power_of_two(classes, 16, _TILE_COLUMNS)
    _launch(
        "pull_to_rows",
        (-(-sources // _TILE_ROWS), -(-classes // width)),
        pull_NM,
        source_NV.contiguous(),
        target_MV.contiguous(),
        pulled_NV,
        pulled_NV,  # in the place of sums that are not wanted
        sources,
        len(target_MV),
        classes,
        *pull_NM.stride(),
        1.0,
        LOGITS=False,
        OWN=False,
        WHOLE=False,
        ROWS=_TILE_ROWS,
        COLUMNS=width,
    )
    return pulled_NV


def logits_pull(
    pull_QTNN: Tensor, p_NV: Tensor, q_NV: Tensor, temperature: float, dtype: torch.dtype
) -> Tensor:
    """Return the gradient for the student's logits, (N, V), of distances with gradients pull, (Q, T, G, G).

    T is 1, for the distances of each group from student to teacher, or 2: also of the student to itself, a gradient
    for both sides together.
    """
    groups, kinds, rows, _ = pull_QTNN.shape
    classes = p_NV.shape[1]
    width = _power_of_two(classes, 16, _TILE_COLUMNS)
    parts = -(-classes // width)
    gradient_NV = p_NV.new_empty(p_NV.shape, dtype=dtype)
    # Rounded to the logits' precision only at the end.
    part_NV = gradient_NV if parts == 1 or dtype == torch.float32 else torch.empty_like(p_NV)
    sums_NS = p_NV.new_empty(len(p_NV), parts)
    _launch(
        "pull_to_rows",
        (groups * -(-rows // _TILE_ROWS), parts),
        pull_QTNN,
        p_NV,
        q_NV,
        part_NV,
        sums_NS,
        rows,
        rows,
        classes,
        rows,
        1,
        temperature,
        LOGITS=True,
        OWN=kinds == 2,
        WHOLE=parts == 1,
        ROWS=_TILE_ROWS,
        COLUMNS=width,
    )
    if parts > 1:
        _launch(
            "finish_softmax",
            (len(p_NV), -(-classes // _BLOCK)),
            part_NV,
            sums_NS,
            p_NV,
            gradient_NV,
            classes,
            parts,
            temperature,
            PARTS=_power_of_two(parts, 16, 1 << 30),
            BLOCK=_BLOCK,
            warps=8,
        )
    return gradient_NV


def scale(
    cost_RNM: Tensor, source_QN: Tensor, target_QM: Tensor, epsilon: float, rounds: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Do `rounds.scale` for the same number of problems in each group, of up to `ROWS` rows and columns.

    Returns:
        plan (R, N, M), u of each round (R, K, N), v after each (R, K, M), shares (R, N), those of a cloud with
        itself times −1/2, and misplaced mass (R,).
    """
    problems, sources, targets = cost_RNM.shape
    plan_RNM = torch.empty_like(cost_RNM, memory_format=torch.contiguous_format)
    rows_RKN, columns_RKM = (
        cost_RNM.new_empty(problems, rounds, sources),
        cost_RNM.new_empty(problems, rounds, targets),
    )
    shares_RN, error_R = cost_RNM.new_empty(problems, sources), cost_RNM.new_empty(problems)
    _launch(
        "scale",
        (problems,),
        cost_RNM.contiguous(),
        source_QN.contiguous(),
        target_QM.contiguous(),
        plan_RNM,
        rows_RKN,
        columns_RKM,
        shares_RN,
        error_R,
        sources,
        targets,
        problems // len(source_QN),
        epsilon,
        rounds,
        **_side(sources, targets),
    )
    return plan_RNM, rows_RKN, columns_RKM, shares_RN, error_R


def scale_adjoint(
    plan_pull_RNM: Tensor,
    cost_RNM: Tensor,
    source_QN: Tensor,
    target_QM: Tensor,
    plan_RNM: Tensor,
    rows_RKN: Tensor,
    columns_RKM: Tensor,
    epsilon: float,
) -> Tensor:
    """Return dL/dcost, (R, N, M), of what `scale` returned."""
    kinds = len(cost_RNM) // len(source_QN)
    solved = (cost_RNM, source_QN, target_QM, plan_RNM, rows_RKN, columns_RKM)
    return _adjoint(plan_pull_RNM.contiguous(), *solved, epsilon, kinds, 1.0, shares=False)


def debiased_shares_adjoint(
    share_pull_K: Tensor,
    cost_RNN: Tensor,
    mass_QN: Tensor,
    plan_RNN: Tensor,
    rows_RKN: Tensor,
    columns_RKN: Tensor,
    epsilon: float,
    factor: float,
) -> Tensor:
    """Return factor · dL/dcost, (Q, T, N, N), of the shares of which `batchwise.debiased_shares` makes one a row.

    T is how many of a group's problems have a gradient: student to teacher and, to debias, student to itself, a
    gradient for both sides together; not teacher to itself. share_pull, (Q · N,), may be one number, expanded.
    """
    kinds = len(cost_RNN) // len(mass_QN)
    pulled = min(kinds, 2)
    solved = (cost_RNN, mass_QN, mass_QN, plan_RNN, rows_RKN, columns_RKN)
    out_RNN = _adjoint(share_pull_K, *solved, epsilon, pulled, factor, shares=True)
    return out_RNN.view(len(mass_QN), pulled, *out_RNN.shape[1:])


def _adjoint(
    pull: Tensor,
    cost_RNM: Tensor,
    source_QN: Tensor,
    target_QM: Tensor,
    plan_RNM: Tensor,
    rows_RKN: Tensor,
    columns_RKM: Tensor,
    epsilon: float,
    pulled_kinds: int,
    factor: float,
    *,
    shares: bool,
) -> Tensor:
    problems, sources, targets = cost_RNM.shape
    out_RNM = cost_RNM.new_empty(len(source_QN) * pulled_kinds, sources, targets)
    _launch(
        "scale_adjoint",
        (len(out_RNM),),
        pull,
        cost_RNM.contiguous(),
        source_QN.contiguous(),
        target_QM.contiguous(),
        plan_RNM,
        rows_RKN,
        columns_RKM,
        out_RNM,
        pull.stride(0),
        sources,
        targets,
        problems // len(source_QN),
        pulled_kinds,
        epsilon,
        rows_RKN.shape[1],
        factor,
        SHARES=shares,
        **_side(sources, targets),
    )
    return out_RNM


def _side(sources: int, targets: int) -> dict[str, int]:
    """Return the side of the square that holds a plan, and how many warps share it: 16 numbers a thread at most."""
    side = _power_of_two(max(sources, targets), 16, ROWS)
    return {"SIDE": side, "warps": max(1, side * side // 512)}
