"""Adaptive KL: forward where the teacher's head is wrong, reverse where its tail is.

N rows, V vocabulary, K largest classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..ranges import fraction
from ..softmax import Softmax
from .divergence import Divergence
from .forward_kl import ForwardKL
from .head import head
from .reverse_kl import ReverseKL

if TYPE_CHECKING:
    from torch import Tensor

_FEW = (64, 2048)


@dataclass(frozen=True, kw_only=True)
class AdaptiveKL(Divergence):
    """w · KL(p || q) + (1 − w) · KL(q || p) of each row; w is the share of Σ|p − q| that lies in the teacher's head.

    The head is the teacher's most likely classes that together hold at most the mass `head`, and in any case the
    most likely one; of classes that the teacher finds equally likely, those that the student finds likelier come first.
    w moves with the student, but no gradient
    flows through it: the gradient is that of the two KLs at fixed w, not the slope of the value.

    Paper: Wu et al. 2024, arXiv:2404.02657 (`head` is its μ; which of tied classes come first is left open there).
    Shapes: rows.student (N, V), rows.teacher (N, V) -> (N,) float32 (float64 for float64 logits), each >= 0.
    Units: nats.

    Raises:
        ValueError: head outside [0, 1], temperature not positive, scale negative, or rows.teacher is None.
    Relations: `ForwardKL` and `ReverseKL` are its parts; `JensenShannon` is a bounded compromise with a fixed weight.

    Example:
        >>> import torch
        >>> from distill.losses import AdaptiveKL, Rows
        >>> rows = Rows(student=torch.tensor([[2.0, 0.0, -1.0]]), teacher=torch.tensor([[1.0, 1.0, -2.0]]))
        >>> AdaptiveKL()(rows)
        tensor([0.3711])
    """

    kind: Literal["adaptive_kl"] = "adaptive_kl"
    head: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("head", self.head)

    @property
    def exact_gradient(self) -> bool:
        """False: the weight of the two KLs is a constant to the gradient."""
        return False

    def compare(self, teacher: Softmax, student: Softmax) -> tuple[Tensor, Tensor]:
        """Return w·KL(p || q) + (1 − w)·KL(q || p), (N,), and the same mean of their derivatives."""
        p_NV, q_NV = teacher.probability_NV, student.probability_NV
        gap_NV = (p_NV - q_NV).abs()
        in_head_NV = head(p_NV, q_NV, *self._end_of_head(p_NV))
        # Where both agree the gap is 0, and so is whatever the weight is for.
        total_N1 = gap_NV.sum(-1, keepdim=True).clamp(min=1e-30)
        weight_N1 = (gap_NV * in_head_NV).sum(-1, keepdim=True) / total_N1
        forward_N, forward_NV = ForwardKL().compare(teacher, student)
        reverse_N, reverse_NV = ReverseKL().compare(teacher, student)
        weight_N = weight_N1.squeeze(-1)
        return (
            weight_N * forward_N + (1 - weight_N) * reverse_N,
            weight_N1 * forward_NV + (1 - weight_N1) * reverse_NV,
        )

    def _end_of_head(self, p_NV: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probability of the head's least likely class, and how many classes it has, (N, 1) each."""
        if self.head == 1:  # all of it: a sum that rounding brings above 1 must not leave a class out
            return p_NV.amin(-1, keepdim=True), (p_NV >= 0).sum(-1, keepdim=True)
        # Nearly always a few classes hold half of the mass, and sorting a whole vocabulary costs more than all else.
        for few in (*_FEW, p_NV.shape[1]):
            largest_NK = p_NV.topk(min(few, p_NV.shape[1])).values
            if few >= p_NV.shape[1] or bool((largest_NK.sum(-1) > self.head).all()):
                break
        members_N1 = (largest_NK.cumsum(-1) <= self.head).sum(-1, keepdim=True).clamp(min=1)
        return largest_NK.gather(-1, members_N1 - 1), members_N1
