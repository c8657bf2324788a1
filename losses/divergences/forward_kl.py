"""Forward KL: the student covers everything the teacher does.

N rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..softmax import log_ratio
from .divergence import ClassWise, Comparison
from .relative_entropy import relative_entropy

if TYPE_CHECKING:
    from torch import Tensor

    from ..softmax import Softmax


def forward_kl(teacher: Softmax, student: Softmax) -> tuple[Tensor, Tensor]:
    """Return KL(p || q), (N,), and q − p."""
    p_NV, q_NV = teacher.probability_NV, student.probability_NV
    log_ratio_NV, offset_N1 = log_ratio(teacher, student)
    return relative_entropy(p_NV, q_NV, log_ratio_NV, offset_N1), q_NV - p_NV


@dataclass(frozen=True, kw_only=True)
class ForwardKL(ClassWise):
    """KL(teacher || student) = Σ p log(p/q) of each row.

    A true KL: 0 when the logits agree, unlike the cross-entropy −Σ p log q that much published code minimises
    (same gradient). Gradient for the student's logits: (q − p)/T.

    Paper: Hinton et al. 2015, arXiv:1503.02531, section 2 (T² is the field `scale`, off by default).
    Shapes: rows.student (N, V), rows.teacher (N, V) -> (N,) float32 (float64 for float64 logits), each >= 0.
    Units: nats.

    Raises:
        ValueError: temperature is not positive, scale is negative, or rows.teacher is None.
    Relations: `ReverseKL` seeks one mode instead of covering all; `JensenShannon` is bounded; `Labels` when there
        is no teacher. A class the student excludes (−inf) costs 131,008 nats times the teacher's mass on it.

    Example:
        >>> import torch
        >>> from distill.losses import ForwardKL, Rows
        >>> rows = Rows(student=torch.tensor([[2.0, 0.0, -1.0]]), teacher=torch.tensor([[1.0, 1.0, -2.0]]))
        >>> ForwardKL()(rows)
        tensor([0.4278])
    """

    kind: Literal["forward_kl"] = "forward_kl"

    def comparison(self) -> tuple[Comparison, float | None]:
        """Return `forward_kl`."""
        return forward_kl, None
