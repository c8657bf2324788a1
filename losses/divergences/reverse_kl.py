"""Reverse KL: the student keeps to what the teacher finds likely.

N rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..softmax import log_ratio
from .divergence import ClassWise, Comparison
from .relative_entropy import relative_entropy
from .steps import through_softmax

if TYPE_CHECKING:
    from torch import Tensor

    from ..softmax import Softmax


def reverse_kl(teacher: Softmax, student: Softmax) -> tuple[Tensor, Tensor]:
    """Return KL(q || p), (N,), and q·(log(q/p) − KL)."""
    q_NV = student.probability_NV
    log_ratio_NV, offset_N1 = log_ratio(student, teacher)
    values_N = relative_entropy(q_NV, teacher.probability_NV, log_ratio_NV, offset_N1)
    return values_N, through_softmax(q_NV, log_ratio_NV)


@dataclass(frozen=True, kw_only=True)
class ReverseKL(ClassWise):
    """KL(student || teacher) = Σ q log(q/p) of each row.

    Gradient for the student's logit i: qᵢ (log(qᵢ/pᵢ) − KL)/T. A class the teacher excludes (logit −inf) would
    cost infinitely much; its log-probability is floored at −131,008 nats (`temperature.FLOOR`), so it costs 131,008 times
    the student's mass on it, in value and gradient. Exclude such classes on both sides where that is too harsh.

    Paper: Gu et al. 2023 (MiniLLM), arXiv:2306.08543, section 2.1, here of each row's full distribution and
        without sampling.
    Shapes: rows.student (N, V), rows.teacher (N, V) -> (N,) float32 (float64 for float64 logits), each >= 0.
    Units: nats.

    Raises:
        ValueError: temperature is not positive, scale is negative, or rows.teacher is None.
    Relations: `ForwardKL` covers all of the teacher's modes; `JensenShannon` is bounded where this is not.

    Example:
        >>> import torch
        >>> from distill.losses import ReverseKL, Rows
        >>> rows = Rows(student=torch.tensor([[2.0, 0.0, -1.0]]), teacher=torch.tensor([[1.0, 1.0, -2.0]]))
        >>> ReverseKL()(rows)
        tensor([0.3195])
    """

    kind: Literal["reverse_kl"] = "reverse_kl"

    def comparison(self) -> tuple[Comparison, float | None]:
        """Return `reverse_kl`."""
        return reverse_kl, None
