"""The softmax of each row, with logarithms that stay finite, from one exponential an element.

N rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .temperature import FLOOR, floored

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Softmax:
    """What a divergence needs to know of one side.

    Attributes:
        logits_NV: the logits over the temperature, less a number a row; at least `temperature.FLOOR` below the largest.
        top_N1: the largest of them.
        probability_NV: their softmax.
        largest_N1: its largest, so that log Σ exp(logits) is top − log(largest).
    """

    logits_NV: Tensor
    top_N1: Tensor
    probability_NV: Tensor
    largest_N1: Tensor

    @property
    def offset_N1(self) -> Tensor:
        """What makes log-probabilities of the logits."""
        return self.largest_N1.log() - self.top_N1

    @property
    def log_probability_NV(self) -> Tensor:
        """Log softmax, finite."""
        return self.logits_NV + self.offset_N1

    def at(self, index_NK: Tensor) -> Softmax:
        """Return the same with K classes a row alone, in that order."""
        return Softmax(
            self.logits_NV.gather(-1, index_NK),
            self.top_N1,
            self.probability_NV.gather(-1, index_NK),
            self.largest_N1,
        )

    def select(self, index_M: Tensor | slice) -> Softmax:
        """Return the rows at index, in that order."""
        return Softmax(
            self.logits_NV[index_M],
            self.top_N1[index_M],
            self.probability_NV[index_M],
            self.largest_N1[index_M],
        )


def softmax(logits_NV: Tensor, temperature: float) -> Softmax:
    """Return the softmax of logits / temperature over classes."""
    # Not detached: that it moves with the logits is part of the derivative of the normaliser.
    top_N1 = logits_NV.amax(-1, keepdim=True)
    if _can_stay(logits_NV, top_N1, temperature):
        if temperature != 1:
            logits_NV, top_N1 = logits_NV / temperature, top_N1 / temperature
    else:
        logits_NV, top_N1 = floored(logits_NV - top_N1, temperature), top_N1.new_zeros(top_N1.shape)
    # One fused kernel. The normaliser comes out of its result, not out of a second pass of exponentials.
    probability_NV = logits_NV.softmax(-1)
    return Softmax(logits_NV, top_N1, probability_NV, probability_NV.amax(-1, keepdim=True))


def _can_stay(logits_NV: Tensor, top_N1: Tensor, temperature: float) -> bool:
    """Whether shifting the logits to a largest of 0 would gain no digit, and none is below the floor.

    Two passes are saved where every row has logits on both sides of 0, as nearly all have. Looked up on the CPU only:
    elsewhere the answer would have to be waited for.
    """
    if logits_NV.device.type != "cpu":
        return False
    top_N1 = top_N1.detach()
    depth_N1 = top_N1 - logits_NV.detach().amin(-1, keepdim=True)
    return bool(((top_N1.abs() <= depth_N1) & (depth_N1 <= -FLOOR * temperature)).all())


def log_ratio(p: Softmax, q: Softmax) -> tuple[Tensor, Tensor]:
    """Return log(p/q), as a matrix (N, V) and what is to be added to its rows, (N, 1).

    From the logits and the ratio of the normalisers: the difference of two log-probabilities would carry the
    rounding of both normalisers' logarithms into every class. In two parts because neither a sum over the row nor the
    way through a softmax needs the second in every class.
    """
    return p.logits_NV - q.logits_NV, (p.largest_N1 / q.largest_N1).log() + (q.top_N1 - p.top_N1)
