"""Losses whose every row stands alone, each defined once: its value and its derivative.

N rows, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .loss import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from .rows import Rows


@dataclass(frozen=True, kw_only=True)
class RowWise(Loss):
    """A loss that is one function of a row's logits, written down once as value and gradient.

    `differentiate` is that definition. Everything else drives it, a few rows at a time: `kernels.dense` on logits,
    `kernels.fused_linear` on hidden states and output matrices. Second derivatives come from differentiating
    `differentiate` itself, so there is no other copy of the mathematics to disagree with.
    """

    @abstractmethod
    def differentiate(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the values, (N,), and their derivative for the student's logits, (N, V).

        Both in the dtype of `rows.student_logits()`, both differentiable functions of the student's logits, the
        second one too, and neither with the term's weight. All rows count: rows.weight is not looked at.
        """

    def values(self, rows: Rows) -> Tensor:
        """Return one value a row, (N,), with the gradient that `differentiate` states; 0 for rows of weight 0."""
        from .kernels.dense import row_values

        return row_values(self, rows)
