"""TAID: a teacher that starts out near the student and moves away.

N rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from ..ranges import fraction, non_negative, number
from ..softmax import Softmax, log_ratio, softmax
from .divergence import Divergence
from .relative_entropy import relative_entropy

if TYPE_CHECKING:
    from torch import Tensor

    from ..rows import Rows


@dataclass(frozen=True, kw_only=True)
class TAID(Divergence):
    """KL(r || q) with r = softmax((1 − t)·student + t·teacher), r without gradient; q is the student.

    t goes from `start` to `end` in the course of training, so a weak student meets a teacher it can follow. The
    gradient is (q − r)/T: that of the KL to a fixed r, not the slope of the value.

    **The schedule's state is the loss.** `advance` returns the loss for the next step and changes nothing: a training
    loop replaces its loss by it after each optimizer step. `t`, `trend` and `previous` are that state; they are
    fields, so a checkpoint stores the loss's fields (numbers that JSON keeps to the last bit), and a loss built from
    them goes on exactly as the interrupted one would have. All processes must pass `advance` the same numbers. A loss
    that nobody advances keeps its t.

    Paper: Shing et al. 2025, arXiv:2501.16937 (constants as in its code). Its code minimises the
        cross-entropy −Σ r·log q: same gradient, but the trend here is that of the KL.
    Shapes: rows.student (N, V), rows.teacher (N, V) -> (N,) float32 (float64 for float64 logits), each >= 0.
    Units: nats.

    Raises:
        ValueError: start, end, t or inertia outside [0, 1], end below start, rate negative, temperature not positive,
            scale negative, or rows.teacher is None.
    Relations: `ForwardKL` is this at t = 1; `SkewKL` mixes probabilities rather than logits, and does not move.

    Example:
        >>> import torch
        >>> from distill.losses import Rows, TAID
        >>> rows = Rows(student=torch.tensor([[2.0, 0.0, -1.0]]), teacher=torch.tensor([[1.0, 1.0, -2.0]]))
        >>> loss = TAID()
        >>> loss(rows)
        tensor([0.0474])
        >>> loss.advance(0.0474, progress=0.5).t
        0.7

    Attributes:
        start: t of the first step.
        end: t of the last step, and never exceeded.
        rate: how far a falling loss can push t ahead of the straight line, a step.
        inertia: how slowly the trend follows.
        t: the teacher's share now; None is `start`.
        trend: running mean of how much the loss falls a step, relative to itself.
        previous: the loss at the last step.
    """

    scheduled: ClassVar[bool] = True

    kind: Literal["taid"] = "taid"
    start: float = 0.4
    end: float = 1.0
    rate: float = 5e-4
    inertia: float = 0.99
    t: float | None = None
    trend: float = 0.0
    previous: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("start", "end", "inertia", "t"):
            if getattr(self, name) is not None:
                fraction(name, getattr(self, name))
        non_negative("rate", self.rate)
        number("trend", self.trend)
        if self.previous is not None:
            non_negative("previous", self.previous)
        if self.end < self.start:
            raise ValueError(f"end must not be below start, got {self.end} and {self.start}")

    @property
    def share(self) -> float:
        """The teacher's share in r."""
        return self.start if self.t is None else self.t

    @property
    def exact_gradient(self) -> bool:
        """False: r moves with the student, but is a constant to the gradient."""
        return False

    def advance(self, value: float, *, progress: float) -> Self:
        """Return the loss of the next step.

        Args:
            value: the unweighted mean of this step's values.
            progress: the share of all steps that are done, this one included.
        """
        fraction("progress", progress)
        line = self.start + (self.end - self.start) * progress
        trend, push = self.trend, 0.0
        if self.previous is not None:
            fall = (self.previous - value) / (self.previous + 1e-15)
            trend = self.inertia * trend + (1 - self.inertia) * fall
            push = self.rate * (1 - self.share) / (1 + math.exp(-min(max(trend, -500.0), 500.0)))
        share = min(self.end, max(line, self.share + push))
        return replace(self, t=share, trend=trend, previous=value)

    def evaluate(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `values` and the teacher's share at this step, as "t"."""
        values_N = self.values(rows)
        return values_N, {"t": values_N.new_tensor(self.share)}

    def compare(self, teacher: Softmax, student: Softmax) -> tuple[Tensor, Tensor]:
        """Return KL(r || q), (N,), and q − r."""
        target = softmax(student.logits_NV.lerp(teacher.logits_NV, self.share), 1.0)
        q_NV, r_NV = student.probability_NV, target.probability_NV
        log_ratio_NV, offset_N1 = log_ratio(target, student)
        return relative_entropy(r_NV, q_NV, log_ratio_NV, offset_N1), q_NV - r_NV
