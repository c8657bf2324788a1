"""Skew reverse KL: reverse KL against a teacher that is given a little of the student.

N rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .mixture import Skewed, mixture
from .relative_entropy import relative_entropy
from .reverse_kl import reverse_kl
from .steps import through_softmax

if TYPE_CHECKING:
    from torch import Tensor

    from ..softmax import Softmax
    from .divergence import Comparison


def skew_reverse_kl(teacher: Softmax, student: Softmax, skew: float) -> tuple[Tensor, Tensor]:
    """Return KL(q || m), (N,), and q·(s − Σ q·s) with s = log(q/m) − λ·q/m; λ is not 0."""
    q_NV = student.probability_NV
    m_NV, log_m_NV = mixture(1 - skew, teacher.probability_NV, q_NV)
    log_ratio_NV = student.logits_NV - log_m_NV
    values_N = relative_entropy(q_NV, m_NV, log_ratio_NV, student.offset_N1)
    return values_N, through_softmax(q_NV, log_ratio_NV - skew * q_NV / m_NV)


@dataclass(frozen=True, kw_only=True)
class SkewReverseKL(Skewed):
    """KL(q || (1 − λ) p + λ q); p is the teacher, q the student, λ the field `skew`.

    At most −ln λ (2.3 nats at 0.1): where `ReverseKL` explodes, on a class that the teacher rules out, this does not.
    The gradient goes through both places of q. `skew=0` is `ReverseKL`.

    Paper: Ko et al. 2024 (DistiLLM), arXiv:2402.03898 (same λ: the mixture is mostly teacher).
    Shapes: rows.student (N, V), rows.teacher (N, V) -> (N,) float32 (float64 for float64 logits), each >= 0.
    Units: nats.

    Raises:
        ValueError: skew outside [0, 1), temperature not positive, scale negative, or rows.teacher is None.
    Relations: `SkewKL` mirrors it; `JensenShannon` mixes on both sides; `ReverseKL` is its limit.

    Example:
        >>> import torch
        >>> from distill.losses import Rows, SkewReverseKL
        >>> rows = Rows(student=torch.tensor([[2.0, 0.0, -1.0]]), teacher=torch.tensor([[1.0, 1.0, -2.0]]))
        >>> SkewReverseKL()(rows)
        tensor([0.2662])
    """

    kind: Literal["skew_reverse_kl"] = "skew_reverse_kl"

    def comparison(self) -> tuple[Comparison, float | None]:
        """Return `skew_reverse_kl`, or without a skew the KL itself."""
        return (skew_reverse_kl, self.skew) if self.skew else (reverse_kl, None)
