"""Jensen-Shannon divergence, plain and weighted.

N rows, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..ranges import fraction
from ..softmax import Softmax
from .divergence import Divergence
from .forward_kl import ForwardKL
from .mixture import mixture
from .relative_entropy import relative_entropy, through_softmax
from .reverse_kl import ReverseKL

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class JensenShannon(Divergence):
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

    def compare(self, teacher: Softmax, student: Softmax) -> tuple[Tensor, Tensor]:
        """Return the divergence, (N,), and (1 − β)·q·(log(q/m) − KL(q || m))."""
        if self.beta == 0:
            return ForwardKL().compare(teacher, student)
        if self.beta == 1:
            return ReverseKL().compare(teacher, student)
        p_NV, q_NV = teacher.probability_NV, student.probability_NV
        m_NV, log_m_NV = mixture(self.beta, p_NV, q_NV)
        log_q_over_m_NV = student.log_probability_NV - log_m_NV
        teacher_N = relative_entropy(p_NV, m_NV, teacher.log_probability_NV - log_m_NV)
        student_N = relative_entropy(q_NV, m_NV, log_q_over_m_NV)
        values_N = self.beta * teacher_N + (1 - self.beta) * student_N
        return values_N, (1 - self.beta) * through_softmax(q_NV, log_q_over_m_NV)
