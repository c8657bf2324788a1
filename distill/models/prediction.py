"""What a model says about a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """A model's output for B examples.

    Attributes:
        logits_BC: unnormalised scores over the C classes (or choices), in the task's own label order.
    """

    logits_BC: Tensor
