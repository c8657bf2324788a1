"""Jensen-Shannon divergence, plain and weighted.

N rows, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..ranges import fraction
from .divergence import ClassWise, Comparison
from .forward_kl import forward_kl
from .mixture import mixture
from .relative_entropy import relative_entropy
from .reverse_kl import reverse_kl
from .steps import through_softmax

if TYPE_CHECKING:
    from torch import Tensor

    from ..softmax import Softmax


def jensen_shannon(teacher: Softmax, student: Softmax, beta: float) -> tuple[Tensor, Tensor]:
    """Return β KL(p || m) + (1 − β) KL(q || m), (N,), and (1 − β)·q·(log(q/m) − KL(q || m)); β is not 0 or 1."""
    p_NV, q_NV = teacher.probability_NV, student.probability_NV
    m_NV, log_m_NV = mixture(beta, p_NV, q_NV)
    log_q_over_m_NV = student.logits_NV - log_m_NV
    teacher_N = relative_entropy(p_NV, m_NV, teacher.logits_NV - log_m_NV, teacher.offset_N1)
    student_N = relative_entropy(q_NV, m_NV, log_q_over_m_NV, student.offset_N1)
    values_N = beta * teacher_N + (1 - beta) * student_N
    return values_N, (1 - beta) * through_softmax(q_NV, log_q_over_m_NV)


@dataclass(frozen=True, kw_only=True)
class JensenShannon(ClassWise):
    """β KL(p || m) + (1 − β) KL(q || m) with m = β p + (1 − β) q; p is the teacher, q the student.

    β = 1/2 (the default) is the symmetric Jensen-Shannon divergence, at most ln 2; in general it is at most the
    entropy of (β, 1 − β), so one wild row cannot dominate a batch.

    **Discontinuous at the ends**, as in the paper's code: the formula goes to 0 as β goes to 0 or 1, while divided
    by β it goes to the forward KL (β -> 0) and divided by 1 − β to the reverse KL (β -> 1). So beta=0 is
    `ForwardKL` and beta=1 is `ReverseKL`, unbounded; beta=1e-3 is a thousandth of about the former.

    Paper: Agarwal et al. 2023 (GKD), arXiv:2306.13649, equation 1 (generalised JSD, same β).
    Shapes: rows.student (N, V), rows.teacher (N, V) -> (N,) float32 (float64 for float64 logits), each >= 0.
    Units: nats.

    Raises:
        ValueError: beta outside [0, 1], temperature not positive, scale negative, or rows.teacher is None.
    Relations: `ForwardKL` and `ReverseKL` are its ends and have stronger gradients far from the teacher.

    Example:
        >>> import torch
        >>> from distill.losses import JensenShannon, Rows
        >>> rows = Rows(student=torch.tensor([[2.0, 0.0, -1.0]]), teacher=torch.tensor([[1.0, 1.0, -2.0]]))
        >>> JensenShannon()(rows)
        tensor([0.0877])
    """

    kind: Literal["jensen_shannon"] = "jensen_shannon"
    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("beta", self.beta)

    @property
    def bound(self) -> float:
        """The entropy of (β, 1 − β) times `scale`; infinite at β = 0 and 1."""
        if self.beta in (0, 1):
            return math.inf
        return -self.factor * (self.beta * math.log(self.beta) + (1 - self.beta) * math.log1p(-self.beta))

    def comparison(self) -> tuple[Comparison, float | None]:
        """Return `jensen_shannon`, or at its ends the KL there."""
        if self.beta == 0:
            return forward_kl, None
        if self.beta == 1:
            return reverse_kl, None
        return jensen_shannon, self.beta
