"""The softmax of each row, with logarithms that stay finite, from one exponential an element.

N rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .temperature import floored

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Softmax:
    """What a divergence needs to know of one side.

    Attributes:
        logits_NV: the logits over the temperature, less the largest of the row: 0 there, at least `temperature.FLOOR`
            elsewhere.
        probability_NV: their softmax.
        largest_N1: its largest, so that log Σ exp(logits) is −log(largest).
    """

    logits_NV: Tensor
    probability_NV: Tensor
    largest_N1: Tensor

    @property
    def offset_N1(self) -> Tensor:
        """What makes log-probabilities of the logits."""
        return self.largest_N1.log()

    @property
    def log_probability_NV(self) -> Tensor:
        """Log softmax, finite."""
        return self.logits_NV + self.offset_N1

    def at(self, index_NK: Tensor) -> Softmax:
        """Return the same with K classes a row alone, in that order."""
        return Softmax(
            self.logits_NV.gather(-1, index_NK), self.probability_NV.gather(-1, index_NK), self.largest_N1
        )

    def select(self, index_M: Tensor | slice) -> Softmax:
        """Return the rows at index, in that order."""
        return Softmax(self.logits_NV[index_M], self.probability_NV[index_M], self.largest_N1[index_M])


def softmax(logits_NV: Tensor, temperature: float) -> Softmax:
    """Return the softmax of logits / temperature over classes."""
    # Shifted even where nothing would overflow: the logarithms of likely classes are small, and so keep their digits.
    # Not detached: that the largest moves with the logits is part of the derivative of the normaliser.
    logits_NV = floored(logits_NV - logits_NV.amax(-1, keepdim=True), temperature)
    # One fused kernel. The normaliser comes out of its result, not out of a second pass of exponentials.
    probability_NV = logits_NV.softmax(-1)
    return Softmax(logits_NV, probability_NV, probability_NV.amax(-1, keepdim=True))


def log_ratio(p: Softmax, q: Softmax) -> tuple[Tensor, Tensor]:
    """Return log(p/q), as a matrix (N, V) and what is to be added to its rows, (N, 1).

    From the logits and the ratio of the normalisers: the difference of two log-probabilities would carry the
    rounding of both normalisers' logarithms into every class. In two parts because neither a sum over the row nor the
    way through a softmax needs the second in every class.
    """
    return p.logits_NV - q.logits_NV, (p.largest_N1 / q.largest_N1).log()
