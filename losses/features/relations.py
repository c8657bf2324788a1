"""Self-attention relations: how alike the student's and the teacher's tokens are to each other.

S sequences, T positions (of queries, then of keys), R relation heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..ranges import count
from .activations import LayerPair, ModelPair, PairedActivations
from .attention_maps import map_divergence
from .feature_loss import FeatureLoss, computable, of_layer

if TYPE_CHECKING:
    from torch import Tensor

Part = Literal["query", "key", "value"]
_PARTS: tuple[Part, ...] = ("query", "key", "value")


@dataclass(frozen=True, kw_only=True)
class Relations(FeatureLoss):
    """KL(teacher's relations || student's relations) of queries, of keys and of values, summed.

    The heads of a layer's queries are laid side by side and cut anew into `heads` relation heads of width d; the
    relation of a head is softmax(Q Qᵀ / √d) over the tokens. Keys and values alike. Relations have shape (T, T)
    whatever the models' widths and heads are, so any two models can be compared without a trained map, as long as
    both widths are multiples of `heads`. The value is the mean over heads, the sum over `of`, the mean over layer
    pairs.

    Layers by default: the last of both. For a large teacher the paper takes one of its upper middle: 21 of 24,
    `layers=((-1, 20),)`.

    Paper: Wang et al. 2020 (MiniLMv2), arXiv:2012.15828, with weights of 1; its `heads` are 48 for base
        and 64 for large models.
    Shapes: rows.activations query, key and value (S, T, ·) of each layer -> (N,) float32 (float64 for float64),
        each >= 0.
    Units: nats.

    Raises:
        ValueError: a width that is no multiple of `heads`, a layer that is not there, an empty or unknown `of`, or
            rows without activations.
        TypeError: heads is not a whole number.
    Relations: `AttentionMaps` compares query with key, and needs one number of heads; `HiddenStates` compares tokens
        with tokens, and needs one width or a trained map.

    Example:
        >>> import torch
        >>> from distill.losses import Activations, ModelPair, ModelShape, PairedActivations, Relations, Rows
        >>> models = ModelPair(ModelShape(1, 2, 1), ModelShape(1, 4, 2))
        >>> activations = PairedActivations(
        ...     models,
        ...     Activations(value={0: torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])}),
        ...     Activations(value={0: torch.tensor([[[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]])}),
        ...     mask=torch.ones(1, 2),
        ... )
        >>> Relations(of=("value",), heads=1)(Rows(student=torch.zeros(1, 3), activations=activations))
        tensor([0.0612])

    Attributes:
        heads: relation heads; None: as many as the teacher has attention heads.
        of: the relations to compare.
    """

    reads = "relations"

    kind: Literal["relations"] = "relations"
    layers: tuple[LayerPair, ...] | None = ((-1, -1),)
    heads: int | None = None
    of: tuple[Part, ...] = _PARTS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads is not None:
            count("heads", self.heads)
        if not self.of or set(self.of) - set(_PARTS) or len(set(self.of)) != len(self.of):
            raise ValueError(f"of must be some of {', '.join(_PARTS)}, each once, got {list(self.of)!r}")
        object.__setattr__(self, "of", tuple(self.of))

    def check(self, models: ModelPair) -> None:
        """Raise ValueError unless the relation heads divide all widths."""
        heads = self._heads(models)
        for whose, shape in (("student", models.student), ("teacher", models.teacher)):
            for part in self.of:
                if shape.width_of(part) % heads:
                    raise ValueError(
                        f"relations: the {whose}'s {part} width {shape.width_of(part)} is no multiple of {heads} "
                        "relation heads; set heads to a number that divides both models' widths"
                    )

    def _heads(self, models: ModelPair) -> int:
        return models.teacher.heads if self.heads is None else self.heads

    def position_values(
        self, activations: PairedActivations, pair: LayerPair, query_ST: Tensor, key_ST: Tensor
    ) -> Tensor:
        """Return the divergence at each token, (S, T), mean over relation heads, summed over `of`."""
        heads = self._heads(activations.models)
        parts = []
        for part in self.of:
            student = of_layer(getattr(activations.student, part), f"student's {part}", pair[0])
            teacher = of_layer(getattr(activations.teacher, part), f"teacher's {part}", pair[1]).detach()
            student_SRTT = relation_scores(computable(student, key_ST[..., None]), heads)
            teacher_SRTT = relation_scores(computable(teacher, key_ST[..., None]), heads)
            parts.append(map_divergence(student_SRTT, teacher_SRTT, query_ST, key_ST).mean(1))
        values_ST = parts[0]
        for more_ST in parts[1:]:
            values_ST = values_ST + more_ST
        return values_ST


def relation_scores(vectors: Tensor, heads: int) -> Tensor:
    """Return X Xᵀ / √d of each relation head, (S, R, T, T), of (S, T, R·d) vectors.

    Raises:
        ValueError: a width that is no multiple of heads.
    """
    sequences, positions, width = vectors.shape
    if width % heads:
        raise ValueError(f"relations: width {width} is no multiple of {heads} relation heads")
    each = width // heads
    vectors_SRTd = vectors.reshape(sequences, positions, heads, each).transpose(1, 2) / float(each) ** 0.25
    scores_SRTT: Tensor = vectors_SRTd @ vectors_SRTd.transpose(-1, -2)
    return scores_SRTT
