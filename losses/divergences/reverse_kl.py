"""Reverse KL: the student keeps to what the teacher finds likely.

N rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..temperature import log_probability
from .relative_entropy import Divergence, relative_entropy

if TYPE_CHECKING:
    from torch import Tensor

    from ..rows import Rows


@dataclass(frozen=True, kw_only=True)
class ReverseKL(Divergence):
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

    def values(self, rows: Rows) -> Tensor:
        """Return KL(student || teacher) of each row, (N,), times `scale`."""
        log_p_NV = log_probability(rows.teacher_logits(), self.temperature)
        log_q_NV = log_probability(rows.student_logits(), self.temperature)
        return self.factor * relative_entropy(log_q_NV, log_p_NV)
