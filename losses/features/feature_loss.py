"""The roots of the losses that compare what models compute on the way to their logits.

S sequences, T positions, N rows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from ..loss import Loss
from ..precision import wide
from .activations import LayerPair, ModelPair, PairedActivations, Wanted

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..rows import Rows


Compare = Callable[["PairedActivations", "LayerPair", "Tensor", "Tensor"], "Tensor"]
"""Activations, layer pair, positions that count, positions to look at -> a value at each position, (S, T)."""


@dataclass(frozen=True, kw_only=True)
class ActivationLoss(Loss):
    """A loss that reads `rows.activations`."""

    reads_activations: ClassVar[bool] = True

    @abstractmethod
    def wanted(self, models: ModelPair) -> tuple[Wanted, Wanted]:
        """Return what is read of the student and of the teacher.

        Raises:
            ValueError: the two models cannot be compared by this loss; the message says why.
        """

    def build(self, models: ModelPair) -> nn.Module | None:
        """Return the module that holds this loss's weights and is called on rows in its place; None without weights.

        Its parameters are to be trained with the student and are no part of it.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class FeatureLoss(ActivationLoss):
    """A loss that compares layers of the two models.

    Its value for a row is the mean over the layer pairs of the mean over the row's tokens; a token of padding, or of
    a row of weight 0, counts nowhere, whatever it holds. Where a row is a single token, though, `AttentionMaps` and
    `Relations` let it look at every token of its sequence, those of weight 0 among them.

    Attributes:
        layers: pairs of a student layer and the teacher layer it is compared with, counted from 0, or from the end
            with −1 for the last. None: as the loss says.
    """

    layers: tuple[LayerPair, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is None:
            return
        if not self.layers:
            raise ValueError("layers must have at least one pair, got none")
        for pair in self.layers:
            whole = [layer for layer in pair if isinstance(layer, int) and not isinstance(layer, bool)]
            if len(pair) != 2 or len(whole) != 2:
                raise ValueError(f"layers must be pairs of a student and a teacher layer, got {list(pair)!r}")
        # Lists would compare unequal to the tuples that a recipe is read into.
        object.__setattr__(self, "layers", tuple((student, teacher) for student, teacher in self.layers))

    def pairs(self, models: ModelPair) -> tuple[LayerPair, ...]:
        """Return the layers to compare, for these two models.

        Raises:
            ValueError: a layer that one of them does not have.
        """
        return models.layer_map if self.layers is None else models.resolve(self.layers)

    reads: ClassVar[Literal["hidden", "attention", "relations"]]
    """Which of the activations."""

    def wanted(self, models: ModelPair) -> tuple[Wanted, Wanted]:
        """Return what is read of the student and of the teacher: one kind of activations, of the layers of `pairs`."""
        self.check(models)
        student, teacher = zip(*self.pairs(models), strict=True)
        return Wanted(**{self.reads: frozenset(student)}), Wanted(**{self.reads: frozenset(teacher)})

    @abstractmethod
    def check(self, models: ModelPair) -> None:
        """Raise ValueError, saying why, if this loss cannot compare these two models."""

    def counted(self, activations: PairedActivations, query_ST: Tensor) -> Tensor:
        """Return the positions whose value counts, (S, T), out of all that hold a token of a row that does."""
        return query_ST

    def values(self, rows: Rows) -> Tensor:
        """Return one value a row, (N,), without the term's weight."""
        return self.mean_over_pairs(rows, self.position_values)

    @abstractmethod
    def position_values(
        self, activations: PairedActivations, pair: LayerPair, query_ST: Tensor, key_ST: Tensor
    ) -> Tensor:
        """Return (S, T), what one layer pair costs at each position.

        Args:
            activations: of both models.
            pair: the layers.
            query_ST: the positions whose value counts.
            key_ST: the positions that others may look at.
        """

    def mean_over_pairs(self, rows: Rows, compare: Compare) -> Tensor:
        """Return (N,): of each row the mean over layer pairs and tokens of what `compare` says, pair after pair."""
        activations = activations_of(rows)
        query_ST, key_ST = positions_that_count(rows, activations)
        query_ST = self.counted(activations, query_ST)
        pairs = self.pairs(activations.models)
        values_ST = compare(activations, pairs[0], query_ST, key_ST)
        for pair in pairs[1:]:
            values_ST = values_ST + compare(activations, pair, query_ST, key_ST)
        return activations.per_row(values_ST / len(pairs), query_ST, len(rows))


def activations_of(rows: Rows) -> PairedActivations:
    """Return the rows' activations.

    Raises:
        ValueError: there are none.
    """
    if rows.activations is None:
        raise ValueError("this loss compares what the models compute inside, but rows.activations is None")
    return rows.activations


def positions_that_count(rows: Rows, activations: PairedActivations) -> tuple[Tensor, Tensor]:
    """Return two (S, T) masks: positions whose value counts, and the tokens of their sequences, which they look at."""
    key_ST = activations.mask > 0
    counts_N = rows.weights > 0
    if activations.token is None:
        each = len(key_ST) // len(rows) if len(rows) else 1
        query_ST = key_ST & counts_N.repeat_interleave(each)[:, None]
        return query_ST, query_ST
    spoken_ST = key_ST.new_zeros(key_ST.numel())
    spoken_ST = spoken_ST.index_put((activations.token[counts_N],), counts_N.new_ones(()))
    query_ST = spoken_ST.reshape(key_ST.shape) & key_ST
    # Nobody looks at a sequence in which nothing counts: it may hold NaN, and a gradient of 0 times NaN is NaN.
    return query_ST, key_ST & query_ST.any(-1, keepdim=True)


def computable(tensor: Tensor, counts: Tensor) -> Tensor:
    """Return a tensor of at least float32 with entries that do not count blanked, so that none of them can be NaN."""
    if tensor.is_inference():  # made by a teacher under inference mode, which autograd refuses to keep
        tensor = tensor.clone()
    return wide(tensor).where(counts, 0.0)


def of_layer(tensors: Mapping[int, Tensor], what: str, layer: int) -> Tensor:
    """Return the tensor of a layer.

    Raises:
        ValueError: it was not kept.
    """
    if layer not in tensors:
        raise ValueError(f"rows.activations hold no {what} of layer {layer}; record what `wanted` names")
    return tensors[layer]
