"""What a model says about a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from distill.losses import Activations, SparseTeacher


@dataclass(frozen=True)
class Prediction:
    """A model's output for the N rows of a batch.

    Attributes:
        logits_NC: unnormalised scores over the C classes (or choices, or tokens): one row an example, in the task's
            own label order; of a language model one row a position of `Batch.rows_BT`, in the order of that tensor.
        activations: what it computed on the way, of every sequence of the batch (the choices of an example one
            after the other); None unless it was asked for.
    """

    logits_NC: Tensor
    activations: Activations | None = None


@dataclass(frozen=True)
class SparsePrediction:
    """What a teacher said of which only a few classes a row were kept.

    Attributes:
        sparse: these, for the N rows of the batch.
    """

    sparse: SparseTeacher
