"""Rows of several devices brought together, for losses that compare the rows of a group.

N rows of this device, M rows of all devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from distill.losses import Rows

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor


def gather_rows(rows: Rows, accelerator: Accelerator) -> tuple[Rows, Tensor]:
    """The rows of all devices whose group has a row here, and which of them are this device's own.

    Only the own rows carry a gradient. Every device sees the same groups, so that what it finds is the group's
    derivative for its own rows; added up over the devices, as gradients of weights are, it is the whole derivative.
    All devices must call this together.

    Args:
        rows: of this device: logits, weights and groups. What else they hold is left behind.
        accelerator: brings tensors together.

    Returns:
        M rows in the order of the devices, and `[M]`, true for this device's.
    """
    student_NV, weight_N = rows.student, rows.weights
    group_N = rows.group if rows.group is not None else torch.zeros_like(weight_N, dtype=torch.long)
    counts_D: Tensor = accelerator.gather(torch.tensor([len(rows)], device=student_NV.device))
    most = int(counts_D.max())
    counted_M = (torch.arange(most, device=student_NV.device) < counts_D[:, None]).flatten()

    def of_all(part_N: Tensor) -> Tensor:
        # Devices send equally much.
        padded = part_N.new_zeros((most, *part_N.shape[1:]))
        padded[: len(part_N)] = part_N.detach()
        gathered: Tensor = accelerator.gather(padded)
        return gathered[counted_M]

    start = int(counts_D[: accelerator.process_index].sum())
    end = start + len(rows)
    others_MV = of_all(student_NV)
    own_M = torch.zeros(len(others_MV), dtype=torch.bool, device=student_NV.device)
    own_M[start:end] = True
    together = Rows(
        student=torch.cat([others_MV[:start], student_NV, others_MV[end:]]),
        teacher=None if rows.teacher is None else of_all(rows.teacher),
        weight=of_all(weight_N),
        group=of_all(group_N),
    )
    assert together.group is not None  # noqa: S101 - given above
    kept_M = torch.isin(together.group, group_N[weight_N > 0]) | own_M
    return together.select(kept_M), own_M[kept_M]
