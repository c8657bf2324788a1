"""What a model says about a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from distill.losses import Activations


@dataclass(frozen=True)
class Prediction:
    """A model's output for B examples.

    Attributes:
        logits_BC: unnormalised scores over the C classes (or choices), in the task's own label order.
        activations: what it computed on the way, of every sequence of the batch (the choices of an example one
            after the other); None unless it was asked for.
    """

    logits_BC: Tensor
    activations: Activations | None = None
