"""KL over the teacher's most likely classes, with one more class for all the others.

N rows, V vocabulary, K kept classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from ..ranges import count
from ..softmax import Softmax, log_ratio, softmax
from .divergence import Divergence
from .head import classes_of_head
from .relative_entropy import excess
from .steps import at_least_tiny

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

    sparse: ClassVar[Literal["top_k", "sampled"] | None] = "top_k"

    kind: Literal["ghost_token_kl"] = "ghost_token_kl"
    kept: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        count("kept", self.kept)

    def differentiate(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the KL of the merged distributions, (N,), and q − p on kept classes, q·(1 − Rp/Rq) on merged ones."""
        if rows.sparse is None:
            return super().differentiate(rows)
        sparse = rows.sparse_teacher()
        index_NK, p_NK = sparse.index, sparse.probability
        student = softmax(rows.student_logits(), self.temperature)
        log_ratio_NK = at_least_tiny(p_NK).log() - student.at(index_NK).log_probability_NV
        rest_p_N1 = (1 - p_NK.sum(-1, keepdim=True)).clamp(min=0)
        # Where every class is kept, what rounding leaves of the mass has nowhere to be.
        some_left_N1 = (p_NK > 0).sum(-1, keepdim=True) < student.probability_NV.shape[1]
        return self.scaled(*_merged(index_NK, p_NK, log_ratio_NK, rest_p_N1 * some_left_N1, student))

    def compare(self, teacher: Softmax, student: Softmax) -> tuple[Tensor, Tensor]:
        """Return the same, of a whole teacher."""
        p_NV = teacher.probability_NV
        index_NK, kept_NK = classes_of_head(p_NV, student.probability_NV, self.kept)
        kept = teacher.at(index_NK)
        p_NK = kept.probability_NV * kept_NK
        log_ratio_NK, offset_N1 = log_ratio(kept, student.at(index_NK))
        rest_p_N1 = _without(p_NV, index_NK, kept_NK).sum(-1, keepdim=True)
        return _merged(index_NK, p_NK, log_ratio_NK + offset_N1, rest_p_N1, student)


def _merged(
    index_NK: Tensor, p_NK: Tensor, log_ratio_NK: Tensor, rest_p_N1: Tensor, student: Softmax
) -> tuple[Tensor, Tensor]:
    """The one definition. Where p_NK is 0 there is padding: any class, and anything finite for log_ratio_NK."""
    import torch

    kept_NK = (p_NK > 0).to(p_NK.dtype)
    q_NK = student.probability_NV.gather(-1, index_NK) * kept_NK
    others_NV = _without(student.probability_NV, index_NK, kept_NK)
    rest_q_N1 = others_NV.sum(-1, keepdim=True)
    least = torch.finfo(rest_q_N1.dtype).tiny ** 0.5
    # What is below, underflow has taken digits from, and the second derivative divides by the square.
    divisor_N1 = rest_q_N1.clamp(min=least)
    log_rest_q_N1 = divisor_N1.log()
    slope_NV = others_NV * (1 - rest_p_N1 / divisor_N1)
    place_M = _rows_where((rest_q_N1 < least) & (rest_p_N1 > 0))
    # In place, here and below: no derivative needs what was there.
    if place_M is not None:
        log_rest_q_N1[place_M], share_MV = _among_the_others(
            index_NK[place_M], kept_NK[place_M], student.select(place_M)
        )
        slope_NV[place_M] = others_NV[place_M] - share_MV * rest_p_N1[place_M]
    log_rest_ratio_N1 = at_least_tiny(rest_p_N1).log() - log_rest_q_N1
    values_N = excess(
        torch.cat([p_NK, rest_p_N1], -1),
        torch.cat([q_NK, rest_q_N1], -1),
        torch.cat([log_ratio_NK * kept_NK, log_rest_ratio_N1], -1),
    ).sum(-1)
    return values_N, slope_NV.scatter_add_(-1, index_NK, q_NK - p_NK)


def _without(p_NV: Tensor, index_NK: Tensor, kept_NK: Tensor) -> Tensor:
    """Return p with 0 for the kept classes. What is summed over the others then has not lost a digit to the kept ones."""
    # Not by p − p: where the others are small their derivatives are large, and p's own would be lost beside them.
    return p_NV * p_NV.new_ones(p_NV.shape).scatter_add_(-1, index_NK, -kept_NK)


def _rows_where(condition_N1: Tensor) -> Tensor | slice | None:
    """Return the rows that the condition holds for, (M,), or None; off the CPU, where that would be waited for, all."""
    if condition_N1.device.type != "cpu":
        return slice(None)
    place_M = condition_N1.squeeze(-1).nonzero().squeeze(-1)
    return place_M if len(place_M) else None


def _among_the_others(index_NK: Tensor, kept_NK: Tensor, student: Softmax) -> tuple[Tensor, Tensor]:
    """Return log Σ_merged q, (N, 1), and q / Σ_merged q, (N, V), which is 0 for kept classes.

    By a softmax of their own, which is right where their probabilities underflow in that of all classes.
    """
    others_NV = student.logits_NV.scatter_add(-1, index_NK, -_OUT * kept_NK)
    top_N1 = others_NV.amax(-1, keepdim=True)
    share_NV = (others_NV - top_N1).softmax(-1)
    normaliser_N1 = (student.largest_N1 / share_NV.amax(-1, keepdim=True)).log()
    return top_N1 + normaliser_N1, share_NV
