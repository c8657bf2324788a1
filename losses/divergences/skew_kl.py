"""Skew KL: forward KL against a student that is given a little of the teacher.

N rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .forward_kl import forward_kl
from .mixture import Skewed, mixture
from .relative_entropy import relative_entropy
from .steps import through_softmax

if TYPE_CHECKING:
    from torch import Tensor

    from ..softmax import Softmax
    from .divergence import Comparison


def skew_kl(teacher: Softmax, student: Softmax, skew: float) -> tuple[Tensor, Tensor]:
    """Return KL(p || m), (N,), and (1 − λ)·q·(Σ q·p/m − p/m); λ is not 0."""
    p_NV, q_NV = teacher.probability_NV, student.probability_NV
    m_NV, log_m_NV = mixture(skew, p_NV, q_NV)
    values_N = relative_entropy(p_NV, m_NV, teacher.logits_NV - log_m_NV, teacher.offset_N1)
    return values_N, through_softmax(q_NV, (skew - 1) * p_NV / m_NV)


@dataclass(frozen=True, kw_only=True)
class SkewKL(Skewed):
    """KL(p || λ p + (1 − λ) q); p is the teacher, q the student, λ the field `skew`.

    At most −ln λ (2.3 nats at 0.1), so a class that the student rules out costs little more than one that it
    overlooks, and the gradient stays small there. `skew=0` is `ForwardKL`.

    Paper: Ko et al. 2024 (DistiLLM), arXiv:2402.03898 (same λ). Its code drops the teacher's entropy:
        same gradient, another value.
    Shapes: rows.student (N, V), rows.teacher (N, V) -> (N,) float32 (float64 for float64 logits), each >= 0.
    Units: nats.

    Raises:
        ValueError: skew outside [0, 1), temperature not positive, scale negative, or rows.teacher is None.
    Relations: `SkewReverseKL` mirrors it; `JensenShannon` mixes on both sides; `ForwardKL` is its limit.

    Example:
        >>> import torch
        >>> from distill.losses import Rows, SkewKL
        >>> rows = Rows(student=torch.tensor([[2.0, 0.0, -1.0]]), teacher=torch.tensor([[1.0, 1.0, -2.0]]))
        >>> SkewKL()(rows)
        tensor([0.3118])
    """

    kind: Literal["skew_kl"] = "skew_kl"

    def comparison(self) -> tuple[Comparison, float | None]:
        """Return `skew_kl`, or without a skew the KL itself."""
        return (skew_kl, self.skew) if self.skew else (forward_kl, None)
