"""Hidden states: the student's layers should compute what the teacher's do.

S sequences, T positions, H hidden width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..ranges import one_of
from .activations import EMBEDDINGS, LayerPair, ModelPair, PairedActivations
from .feature_loss import FeatureLoss, computable, of_layer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from ..rows import Rows


@dataclass(frozen=True, kw_only=True)
class HiddenStates(FeatureLoss):
    """The distance of the student's hidden states, through a linear map, to the teacher's, at every token.

    "mean_squared" is ‖W h_s − h_t‖² / H of the teacher's H; "cosine" is 1 − cos(W h_s, h_t), blind to length. W is a
    trained matrix for each layer pair (`build` makes it: the identity for equal widths, what puts each channel of a
    student cut from the teacher in its old place, else orthogonal). It belongs to the loss, is trained with the
    student and is not part of it. Without a matrix: with projection "identity" both models need one width; with
    "channels" the student is compared with those of the teacher's channels that it was cut from.

    Layers by default: each student layer with the teacher layer it started from, else evenly spaced (see
    `ModelPair.layer_map`). The value is the mean over pairs, so it does not grow with depth; the paper's sum is this
    times their number.

    Paper: Jiao et al. 2019 (TinyBERT), arXiv:1909.10351, its losses L_hidn and L_embd, here without padding
        and with a map a layer; the cosine from Sanh et al. 2019 (DistilBERT), arXiv:1910.01108 (of the last layer:
        `layers=((-1, -1),)`).
    Shapes: rows.activations hidden (S, T, H) of each layer -> (N,) float32 (float64 for float64), each >= 0.
    Units: "mean_squared": the square of the hidden states'; "cosine": none, in [0, 2].

    Raises:
        ValueError: an unknown distance or projection, a layer that is not there, rows without activations, widths
            that differ under projection "identity", channels that are not known under "channels", or a linear
            projection that was not built.
    Relations: `PKD` compares one position a sequence; `Relations` needs no map and no equal widths; `AttentionMaps`
        compares where the layers look.

    Example:
        >>> import torch
        >>> from distill.losses import Activations, HiddenStates, ModelPair, ModelShape, PairedActivations, Rows
        >>> models = ModelPair(ModelShape(1, 2, 1), ModelShape(2, 2, 1))
        >>> activations = PairedActivations(
        ...     models,
        ...     Activations(hidden={0: torch.tensor([[[1.0, 0.0], [9.0, 9.0]]])}),
        ...     Activations(hidden={1: torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])}),
        ...     mask=torch.tensor([[1, 0]]),
        ... )
        >>> rows = Rows(student=torch.zeros(1, 3), activations=activations)
        >>> HiddenStates(projection="identity")(rows)
        tensor([1.])
        >>> module = HiddenStates(projection="linear").build(models)
        >>> rows.mean(module(rows)).backward()
        >>> module.maps[0].weight.grad.shape
        torch.Size([2, 2])

    Attributes:
        distance: see above.
        projection: "linear", "identity" or "channels", see above.
        embeddings: also compare the embeddings' outputs, as one more pair.
    """

    reads = "hidden"

    kind: Literal["hidden_states"] = "hidden_states"
    distance: Literal["mean_squared", "cosine"] = "mean_squared"
    projection: Literal["linear", "identity", "channels"] = "linear"
    embeddings: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("distance", self.distance, ("mean_squared", "cosine"))
        one_of("projection", self.projection, ("linear", "identity", "channels"))

    @property
    def bound(self) -> float:
        """2 for the cosine."""
        return 2.0 if self.distance == "cosine" else math.inf

    @property
    def zero_at_equality(self) -> bool:
        """Whether equal hidden states cost 0 by themselves; through a trained map they need not."""
        return self.projection != "linear"

    def pairs(self, models: ModelPair) -> tuple[LayerPair, ...]:
        """Return the layers to compare, the embeddings first where they are wanted."""
        own: tuple[LayerPair, ...] = ((EMBEDDINGS, EMBEDDINGS),) if self.embeddings else ()
        return own + super().pairs(models)

    def check(self, models: ModelPair) -> None:
        """Raise ValueError unless both have one width, or maps or known channels between them."""
        if self.projection == "channels" and kept_channels(models) is None:
            raise ValueError(
                "hidden_states: projection channels needs a student whose channels were cut from the teacher's "
                "(student.from_teacher.hidden); use projection linear"
            )
        if self.projection == "identity" and models.student.width != models.teacher.width:
            raise ValueError(
                f"hidden_states: projection identity needs one width, but the student's is {models.student.width} "
                f"and the teacher's {models.teacher.width}; use projection linear"
            )

    def build(self, models: ModelPair) -> nn.Module | None:
        """Return the trained maps, called on rows in this loss's place; None for a projection without weights."""
        if self.projection != "linear":
            return None
        from .projection import ProjectedHiddenStates

        return ProjectedHiddenStates(self, models)

    def values(self, rows: Rows) -> Tensor:
        """Return the distance of each row, (N,)."""
        if self.projection == "linear":
            raise ValueError(
                "hidden_states: projection linear has weights to train; call build(models) and use the module"
            )
        return super().values(rows)

    def projected_values(self, rows: Rows, maps: Iterable[nn.Module]) -> Tensor:
        """Return the distance of each row, (N,), through one map a layer pair."""
        through = iter(maps)

        def compare(
            activations: PairedActivations, pair: LayerPair, query_ST: Tensor, key_ST: Tensor
        ) -> Tensor:
            student_STH, teacher_STH = hidden_of(activations, pair, query_ST)
            return self.distances(next(through)(student_STH), teacher_STH)

        return self.mean_over_pairs(rows, compare)

    def position_values(
        self, activations: PairedActivations, pair: LayerPair, query_ST: Tensor, key_ST: Tensor
    ) -> Tensor:
        """Return the distance at each position, (S, T)."""
        student_STH, teacher_STH = hidden_of(activations, pair, query_ST)
        if self.projection == "channels":
            channels = kept_channels(activations.models)
            if channels is not None and len(channels) < teacher_STH.shape[-1]:
                teacher_STH = teacher_STH[..., list(channels)]
        return self.distances(student_STH, teacher_STH)

    def distances(self, student_STH: Tensor, teacher_STH: Tensor) -> Tensor:
        """Return the distance of two hidden states, (S, T)."""
        if self.distance == "cosine":
            return squared_distance_of_directions(student_STH, teacher_STH) / 2
        return (student_STH - teacher_STH).square().mean(-1)


def kept_channels(models: ModelPair) -> tuple[int, ...] | None:
    """Return the teacher's channel of each of the student's, all where the widths are equal; None if not known."""
    student, teacher = models.student.width, models.teacher.width
    if models.channels is None:
        return tuple(range(teacher)) if student == teacher else None
    fits = len(models.channels) == student and max(models.channels) < teacher
    return models.channels if fits else None


def hidden_of(activations: PairedActivations, pair: LayerPair, counts_ST: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hidden states of a layer pair, (S, T, H) each, blank where a position does not count."""
    student_STH = of_layer(activations.student.hidden, "student's hidden states", pair[0])
    teacher_STH = of_layer(activations.teacher.hidden, "teacher's hidden states", pair[1])
    counts_ST1 = counts_ST[..., None]
    return computable(student_STH, counts_ST1), computable(teacher_STH.detach(), counts_ST1)


def squared_distance_of_directions(first_H: Tensor, second_H: Tensor) -> Tensor:
    """Return ‖u − v‖² of the unit vectors along the last axis: 2 − 2 cos, never below 0, and 0 for equal vectors.

    A vector of zeros has no direction and counts as the zero vector.
    """
    return (_direction(first_H) - _direction(second_H)).square().sum(-1)


def _direction(vector_H: Tensor) -> Tensor:
    # Divided by its largest entry first, so that no square overflows or vanishes. The gradient of the quotient does
    # not depend on that number, so it may be detached.
    largest = vector_H.detach().abs().amax(-1, keepdim=True)
    scaled_H = vector_H / largest.where(largest > 0, 1.0)
    length = scaled_H.square().sum(-1, keepdim=True)
    # rsqrt at 0 would be infinite, and 0 · ∞ NaN in the gradient.
    return scaled_H * length.where(length > 0, 1.0).rsqrt()
