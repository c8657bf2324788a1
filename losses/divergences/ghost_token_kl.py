"""KL over the teacher's most likely classes, with one more class for all the others.

N rows, V vocabulary, K kept classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..ranges import count
from ..softmax import Softmax, log_ratio, softmax
from .divergence import Divergence
from .head import head
from .relative_entropy import relative_entropy_of_parts

if TYPE_CHECKING:
    from torch import Tensor

    from ..rows import Rows

_OUT = 1e6
"""Far enough below everything, `temperature.FLOOR` included, to be nothing in a softmax."""


@dataclass(frozen=True, kw_only=True)
class GhostTokenKL(Divergence):
    """Σ_kept p log(p/q) + (1 − Σp) log((1 − Σp)/(1 − Σq)): forward KL after merging all classes but the likely ones.

    The loss of a teacher that was stored as its top k. The merged class keeps the mass right on both sides, where
    renormalising the kept classes would teach the student that nothing else exists. How the student spreads the
    merged mass is left alone: the gradient there only scales it. Never above `ForwardKL`, and equal to it once all
    classes are kept.

    With rows.sparse the classes in it are kept, and its probabilities must have been taken at this temperature.
    Without, they are found in rows.teacher: the `kept` most likely; of classes that the teacher finds equally
    likely, those that the student finds likelier come first.

    Paper: Anshumann et al. 2025, arXiv:2503.16870, the ghost token.
    Shapes: rows.student (N, V), and rows.sparse of (N, K) or rows.teacher (N, V) -> (N,) float32 (float64 for float64
        logits), each >= 0.
    Units: nats.

    Raises:
        ValueError: kept below 1, temperature not positive, scale negative, or neither rows.sparse nor rows.teacher.
    Relations: `ForwardKL` when the whole teacher is there; `SampledTargets` for a sample, which sees the tail too.

    Example:
        >>> import torch
        >>> from distill.losses import GhostTokenKL, Rows
        >>> rows = Rows(student=torch.tensor([[2.0, 0.0, -1.0]]), teacher=torch.tensor([[1.0, 1.5, -2.0]]))
        >>> GhostTokenKL(kept=1)(rows)
        tensor([0.7046])
    """

    kind: Literal["ghost_token_kl"] = "ghost_token_kl"
    kept: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        count("kept", self.kept)

    def differentiate(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the KL of the merged distributions, (N,), and q − p on kept classes, q·(1 − Rp/Rq) on merged ones."""
        student = softmax(rows.student_logits(), self.temperature)
        if rows.sparse is None:
            teacher = softmax(rows.teacher_logits(), self.temperature)
            return self.scaled(*self.compare(teacher, student))
        sparse = rows.sparse_teacher()
        index_NK, p_NK = sparse.index, sparse.probability
        nothing_NV = student.probability_NV.new_zeros(student.probability_NV.shape)
        # Padding is added at class 0 as a 0; clamped logarithms are multiplied by it.
        kept_NV = nothing_NV.scatter_add(-1, index_NK, (p_NK > 0).to(p_NK.dtype))
        p_NV = nothing_NV.scatter_add(-1, index_NK, p_NK)
        log_p_NK = p_NK.clamp(min=1e-37).log().where(p_NK > 0, 0.0)
        log_p_NV = nothing_NV.scatter_add(-1, index_NK, log_p_NK)
        # Where every class is kept, what rounding leaves of the mass has nowhere to be.
        others_N1 = (kept_NV.sum(-1, keepdim=True) < kept_NV.shape[1]).to(p_NK.dtype)
        rest_N1 = (1 - p_NK.sum(-1, keepdim=True)).clamp(min=0) * others_N1
        return self.scaled(*_merged(kept_NV, p_NV, log_p_NV - student.log_probability_NV, rest_N1, student))

    def compare(self, teacher: Softmax, student: Softmax) -> tuple[Tensor, Tensor]:
        """Return the same, of a whole teacher."""
        p_NV = teacher.probability_NV
        members = min(self.kept, p_NV.shape[1])
        least_N1 = p_NV.topk(members).values[:, -1:]
        kept_NV = head(
            p_NV, student.probability_NV, least_N1, least_N1.new_full(least_N1.shape, members).long()
        )
        kept_p_NV = p_NV * kept_NV
        rest_N1 = (p_NV - kept_p_NV).sum(-1, keepdim=True)
        log_ratio_NV, offset_N1 = log_ratio(teacher, student)
        return _merged(kept_NV, kept_p_NV, log_ratio_NV + offset_N1, rest_N1, student)


def _merged(
    kept_NV: Tensor, p_NV: Tensor, log_ratio_NV: Tensor, rest_p_N1: Tensor, student: Softmax
) -> tuple[Tensor, Tensor]:
    """The one definition. kept_NV is 1 or 0; p_NV is 0 and log_ratio_NV anything finite where it is 0."""
    q_NV = student.probability_NV
    # The student among the merged classes alone: their logarithm stays right where their probabilities underflow.
    others_NV = student.logits_NV - _OUT * kept_NV
    top_N1 = others_NV.amax(-1, keepdim=True)
    others_NV = (others_NV - top_N1).softmax(-1)
    log_rest_q_N1 = (top_N1 - student.top_N1) + (student.largest_N1 / others_NV.amax(-1, keepdim=True)).log()
    rest_q_N1 = log_rest_q_N1.exp()
    log_rest_ratio_N1 = rest_p_N1.clamp(min=1e-37).log() - log_rest_q_N1
    values_N = relative_entropy_of_parts(p_NV, q_NV * kept_NV, log_ratio_NV * kept_NV)
    values_N = values_N + relative_entropy_of_parts(rest_p_N1, rest_q_N1, log_rest_ratio_N1)
    return values_N, q_NV - p_NV - others_NV * rest_p_N1
