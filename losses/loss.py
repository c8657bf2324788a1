"""The root of every loss: a frozen dataclass that you call on rows.

N rows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from .ranges import non_negative

if TYPE_CHECKING:
    from torch import Tensor

    from .rows import Rows
    from .total import Total


@dataclass(frozen=True, kw_only=True)
class Loss(ABC):
    """One term of an objective. Its fields are its whole configuration, and a recipe writes the same fields.

    `loss(rows)` is `loss.weight * loss.values(rows)`; `rows.mean(loss(rows))` is the number to minimise.
    Losses multiply by numbers and add up: `0.8 * Sinkhorn() + 0.2 * Labels()` is a `Total`.

    Attributes:
        kind: the loss's name in a recipe.
        weight: this term's factor in a sum.
        additive: each row's value depends on that row alone, so a batch may be split anywhere.
        needs_teacher: reads what the teacher says.
        random: draws anew at every call, from torch's global random state.
        scheduled: changes from step to step, see `advance`.
        reads_activations: reads rows.activations, see `features.feature_loss.ActivationLoss`.
        sparse: which part of a teacher does in place of its logits, see `sparse.most_likely` and `sparse.sampled`;
            None for losses that read all classes.
    """

    # Read by pydantic when a recipe is validated; an unknown key is a mistake, not a comment.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    additive: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True
    random: ClassVar[bool] = False
    scheduled: ClassVar[bool] = False
    reads_activations: ClassVar[bool] = False
    sparse: ClassVar[Literal["top_k", "sampled"] | None] = None

    kind: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        own = next(field.default for field in fields(self) if field.name == "kind")
        if self.kind != own:
            raise ValueError(f"kind must be {own!r}, got {self.kind!r}")
        non_negative("weight", self.weight)

    @abstractmethod
    def values(self, rows: Rows) -> Tensor:
        """Return one value a row, (N,), in nats, without the term's weight; float32, or float64 as the logits."""

    def evaluate(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `values` and what the loss can say about how it got them (scalars; mostly nothing)."""
        return self.values(rows), {}

    def __call__(self, rows: Rows) -> Tensor:
        """Return weight * values, (N,)."""
        values_N = self.values(rows)
        return values_N if self.weight == 1 else self.weight * values_N

    def advance(self, value: float, *, progress: float) -> Self:
        """Return the loss to use at the next step: this one, unless it is `scheduled`.

        A scheduled loss is its own state, all of it in its fields: who stores the fields can go on from them.

        Args:
            value: the mean of this step's `values`.
            progress: the share of all steps that are done, this one included.
        """
        return self

    @property
    def zero_at_equality(self) -> bool:
        """Whether equal student and teacher logits give 0."""
        return True

    @property
    def exact_gradient(self) -> bool:
        """Whether autograd returns the derivative of the value, rather than of a neighbouring objective."""
        return True

    @property
    def bound(self) -> float:
        """The largest value (of a row, or of the mean for a batch-wise loss), without the term's weight."""
        return math.inf

    def __mul__(self, factor: float) -> Self:
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            return NotImplemented
        return replace(self, weight=self.weight * factor)

    __rmul__ = __mul__

    def __add__(self, other: Loss | Total) -> Total:
        from .total import Total

        if not isinstance(other, Loss | Total):
            return NotImplemented
        return Total((self, other))
