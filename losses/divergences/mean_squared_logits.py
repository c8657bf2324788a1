"""Mean-squared logits: regression on what the softmax is taken of.

N rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..row_wise import RowWise
from ..temperature import tempered

if TYPE_CHECKING:
    from torch import Tensor

    from ..rows import Rows


@dataclass(frozen=True, kw_only=True)
class MeanSquaredLogits(RowWise):
    """½ mean over classes of (d − mean of d)², with d = student − teacher logits: half the variance of the difference.

    Centred, because a constant added to a row's logits means nothing: the papers' plain mean of d² is this plus the
    squared mean of d, which pulls the student towards the teacher's arbitrary offset. Every class counts alike, however
    unlikely: it teaches the teacher's whole tail. This is the limit of T² · KL as T grows.

    Classes that are −inf on both sides do not count; one that is on one side lies `temperature.FLOOR` below the
    row's largest.

    Paper: Ba & Caruana 2013, arXiv:1312.6184 (a mean where they sum); against KL: Kim et al. 2021,
        arXiv:2105.08919.
    Shapes: rows.student (N, V), rows.teacher (N, V) -> (N,) float32 (float64 for float64 logits), each >= 0.
    Units: squared logits, not nats.

    Raises:
        ValueError: rows.teacher is None.
    Relations: `ForwardKL` with a large temperature and scale "temperature_squared" comes to the same.

    Example:
        >>> import torch
        >>> from distill.losses import MeanSquaredLogits, Rows
        >>> rows = Rows(student=torch.tensor([[2.0, 0.0, -1.0]]), teacher=torch.tensor([[1.0, 1.0, -2.0]]))
        >>> MeanSquaredLogits()(rows)
        tensor([0.4444])
    """

    kind: Literal["mean_squared_logits"] = "mean_squared_logits"

    def differentiate(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return half the variance of the difference, (N,), and 1/V times the centred difference."""
        student_NV, teacher_NV = rows.student_logits(), rows.teacher_logits()
        possible_NV = student_NV.maximum(teacher_NV) > float("-inf")
        possible_NV = possible_NV.to(student_NV.dtype)
        classes_N1 = possible_NV.sum(-1, keepdim=True).clamp(min=1)
        difference_NV = (tempered(student_NV, 1.0) - tempered(teacher_NV, 1.0)) * possible_NV
        mean_N1 = difference_NV.sum(-1, keepdim=True) / classes_N1
        centred_NV = (difference_NV - mean_N1) * possible_NV
        slope_NV = centred_NV / classes_N1
        return (centred_NV * slope_NV).sum(-1) / 2, slope_NV
