"""Mixtures of teacher and student, which keep a divergence bounded.

N rows, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..ranges import fraction
from .divergence import ClassWise
from .steps import at_least_tiny, blend

if TYPE_CHECKING:
    from torch import Tensor


def mixture(share: float, p_NV: Tensor, q_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Return m = share·p + (1 − share)·q and its logarithm, both finite where both probabilities underflow."""
    # Below the smallest normal number a term of either side times any logarithm is nothing, so m may stop there.
    m_NV = at_least_tiny(blend(share, p_NV, q_NV))
    return m_NV, m_NV.log()


@dataclass(frozen=True, kw_only=True)
class Skewed(ClassWise):
    """A KL against a mixture that holds the share `skew` of what is compared with it.

    Attributes:
        skew: λ in [0, 1); 0 is the KL itself.
    """

    skew: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("skew", self.skew)
        if self.skew == 1:
            raise ValueError("skew must be below 1, where one side is compared with itself, got 1")

    @property
    def bound(self) -> float:
        """−ln λ times `scale`; infinite at λ = 0."""
        return -self.factor * math.log(self.skew) if self.skew else math.inf
