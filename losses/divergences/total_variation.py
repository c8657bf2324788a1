"""Total variation: the share of the probability that lies on the wrong class.

N rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .divergence import ClassWise, Comparison
from .steps import class_sum, sign, through_softmax

if TYPE_CHECKING:
    from torch import Tensor

    from ..softmax import Softmax


def total_variation(teacher: Softmax, student: Softmax) -> tuple[Tensor, Tensor]:
    """Return ½ Σ |p − q|, (N,), and ½·q·(sign(q − p) − Σ q·sign(q − p))."""
    q_NV = student.probability_NV
    difference_NV = q_NV - teacher.probability_NV
    return class_sum(difference_NV.abs()) / 2, through_softmax(q_NV, sign(difference_NV) / 2)


@dataclass(frozen=True, kw_only=True)
class TotalVariation(ClassWise):
    """½ Σ |p − q| of each row; p is the teacher, q the student.

    At most 1, symmetric, and blind to how wrong a wrong class is. Its gradient has the same size near the teacher as
    far from it, and vanishes where the student is certain: a term beside a KL rather than a loss to start from.
    Where p = q exactly the slope of that class counts as 0.

    Paper: Wen et al. 2023 (f-distill), arXiv:2307.15190 (here of each row's full distributions, without
        sampling).
    Shapes: rows.student (N, V), rows.teacher (N, V) -> (N,) float32 (float64 for float64 logits), in [0, 1] · scale.
    Units: probability, not nats.

    Raises:
        ValueError: temperature is not positive, scale is negative, or rows.teacher is None.
    Relations: `JensenShannon` is bounded too and has a slope everywhere; `Sinkhorn` compares batches by this
        distance.

    Example:
        >>> import torch
        >>> from distill.losses import Rows, TotalVariation
        >>> rows = Rows(student=torch.tensor([[2.0, 0.0, -1.0]]), teacher=torch.tensor([[1.0, 1.0, -2.0]]))
        >>> TotalVariation()(rows)
        tensor([0.3737])
    """

    kind: Literal["total_variation"] = "total_variation"

    @property
    def bound(self) -> float:
        """1 times `scale`."""
        return self.factor

    def comparison(self) -> tuple[Comparison, float | None]:
        """Return `total_variation`."""
        return total_variation, None
