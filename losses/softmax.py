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
        shifted_NV: the tempered logits less their largest: at most 0 and at least `temperature.FLOOR`.
        probability_NV: their softmax.
        largest_N1: each row's largest probability. As the largest shifted logit is 0, its logarithm is −log Σ exp.
    """

    shifted_NV: Tensor
    probability_NV: Tensor
    largest_N1: Tensor

    @property
    def log_probability_NV(self) -> Tensor:
        """Log softmax, finite."""
        return self.shifted_NV + self.largest_N1.log()


def softmax(logits_NV: Tensor, temperature: float) -> Softmax:
    """Return the softmax of logits / temperature over classes."""
    # Not detached: that the largest is 0 whatever the logits are is part of the derivative of `largest_N1`.
    shifted_NV = floored(logits_NV - logits_NV.amax(-1, keepdim=True), temperature)
    # One fused kernel. The normaliser comes out of its result, not out of a second pass of exponentials.
    probability_NV = shifted_NV.softmax(-1)
    return Softmax(
        shifted_NV=shifted_NV,
        probability_NV=probability_NV,
        largest_N1=probability_NV.amax(-1, keepdim=True),
    )


def log_ratio(p: Softmax, q: Softmax) -> Tensor:
    """Return log(p/q), (N, V).

    From the logits and the ratio of the normalisers: the difference of two log-probabilities would carry the
    rounding of both normalisers' logarithms into every class.
    """
    return (p.shifted_NV - q.shifted_NV) + (p.largest_N1 / q.largest_N1).log()
