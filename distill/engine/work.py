"""What one optimizer step is made on, and what one forward pass of it gives the loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from distill.engine.batches import MicroBatch
from distill.losses import Rows, Total
from distill.models import DataSet

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Terms of the loss, and the rows of one forward pass that they see.

    Attributes:
        terms: of the loss.
        rows: what they see.
        total: how many rows the whole batch has, on all devices, for these terms.
        own: the rows whose values are this device's to count, where rows of others stand beside them; None is all.
    """

    terms: Total
    rows: Rows
    total: int
    own: Tensor | None = None

    @property
    def counted(self) -> Rows:
        """The rows, those of other devices at weight 0."""
        return self.rows if self.own is None else replace(self.rows, weight=self.rows.weights * self.own)


@dataclass(frozen=True)
class Work:
    """What one optimizer step is made on.

    Attributes:
        data: where the examples are.
        micro_batches: what each forward pass on this device takes of them.
        loss: the terms that count.
        rows: how many rows the whole batch has, on all devices, for the terms of these names.
        prompts: of the student's own texts: the training example whose prompt each of them continues.
    """

    data: DataSet
    micro_batches: list[MicroBatch]
    loss: Total
    rows: dict[tuple[str, ...], int]
    prompts: list[int] | None = None

    @property
    def reads_no_logits(self) -> bool:
        """Whether weights behind the layers that are compared, such as the head's, may get no gradient."""
        return all(term.reads_activations for term in self.loss)
