"""What two models computed on the way to their logits, and which layer of one is compared with which of the other.

S sequences, T positions, H hidden width, E width of embeddings, A attention heads, N rows, M counted tokens of a
teacher with a tokenizer of its own, V vocabulary, K tokens of both vocabularies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from distill.errors import NumericsError

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDINGS = -1
"""The place before layer 0: the embeddings' output."""

LayerPair = tuple[int, int]


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a transformer that feature losses depend on.

    Attributes:
        layers: how many; they are numbered from 0.
        width: of its hidden states.
        heads: attention heads a layer.
        query_width: of all heads' queries side by side; None: `width`.
        key_width: of all heads' keys, and values, side by side; None: `width`. Less where heads share them.
    """

    layers: int
    width: int
    heads: int
    query_width: int | None = None
    key_width: int | None = None

    def width_of(self, part: str) -> int:
        """The width of a layer's "query", "key" or "value"."""
        own = self.query_width if part == "query" else self.key_width
        return self.width if own is None else own


@dataclass(frozen=True, eq=False)
class TokenWeights:
    """The matrices through which a language model reads tokens and says them.

    They are the model's own parameters, not copies: a loss sees the student's as they are at this step. No loss
    trains them by way of this class.

    Shapes:
        head: (V, H), so that logits are hidden states times its transpose, plus `bias` (V,) where there is one.
        embedding: (V, E), of the tokens that go in.

    Raises:
        ValueError: shapes that do not belong together.
    """

    head: Tensor
    embedding: Tensor
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        if self.head.dim() != 2 or self.embedding.dim() != 2:
            raise ValueError(
                f"head and embedding must be matrices, got {tuple(self.head.shape)} and {tuple(self.embedding.shape)}"
            )
        if self.bias is not None and self.bias.shape != self.head.shape[:1]:
            raise ValueError(
                f"bias must have shape ({len(self.head)},), one a token, got {tuple(self.bias.shape)}"
            )

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Return the logits of hidden states, (N, V), in their dtype; the matrices get no gradient."""
        logits_NV = hidden_NH @ self.head.detach().to(hidden_NH.dtype).T
        return logits_NV if self.bias is None else logits_NV + self.bias.detach().to(hidden_NH.dtype)


@dataclass(frozen=True, eq=False)
class Vocabularies:
    """What two language models read and say tokens with.

    Attributes:
        student: its matrices.
        teacher: its matrices.
        shared: with two tokenizers: (K,) ids of the student's and (K,) of the teacher's, pair by pair the same token.
            None: one tokenizer, the same ids in both.

    Raises:
        ValueError: shared ids that are no pairs.
    """

    student: TokenWeights
    teacher: TokenWeights
    shared: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.shared is not None and self.shared[0].shape != self.shared[1].shape:
            raise ValueError(
                f"shared must hold as many ids of the student as of the teacher, got {tuple(self.shared[0].shape)} "
                f"and {tuple(self.shared[1].shape)}"
            )


@dataclass(frozen=True)
class ModelPair:
    """A student and a teacher, and what the student was cut from, where that is known.

    Attributes:
        student: its shape.
        teacher: its shape.
        origin: the teacher layer that each student layer started from.
        channels: the teacher's channel of the hidden states that each of the student's started from.
        vocabularies: of two language models; None for other models.

    Example:
        >>> from distill.losses import ModelPair, ModelShape
        >>> student, teacher = ModelShape(layers=3, width=384, heads=12), ModelShape(layers=6, width=384, heads=12)
        >>> ModelPair(student, teacher).layer_map
        ((0, 1), (1, 3), (2, 5))
        >>> ModelPair(student, teacher, origin=(0, 2, 5)).layer_map
        ((0, 0), (1, 2), (2, 5))
    """

    student: ModelShape
    teacher: ModelShape
    origin: tuple[int, ...] | None = None
    channels: tuple[int, ...] | None = None
    vocabularies: Vocabularies | None = field(default=None, compare=False, repr=False)

    @property
    def layer_map(self) -> tuple[LayerPair, ...]:
        """Every student layer with its teacher layer.

        The one it started from; else the last of an equal share of the teacher's layers (of 12 for 6: 1, 3, …, 11),
        so that the last layers meet.
        """
        origin, layers = self.origin, self.student.layers
        if origin is None or len(origin) != layers or max(origin) >= self.teacher.layers:
            origin = tuple(-(-(layer + 1) * self.teacher.layers // layers) - 1 for layer in range(layers))
        return tuple(enumerate(origin))

    def resolve(self, pairs: Iterable[LayerPair]) -> tuple[LayerPair, ...]:
        """Return pairs with layers counted from the end (−1 is the last) counted from the start.

        Raises:
            ValueError: a layer that one of the models does not have.
        """
        return tuple(
            (_layer("student", student, self.student), _layer("teacher", teacher, self.teacher))
            for student, teacher in pairs
        )


def _layer(whose: str, layer: int, shape: ModelShape) -> int:
    if not -shape.layers <= layer < shape.layers:
        raise ValueError(
            f"layers: the {whose} has no layer {layer}; its {shape.layers} are 0 to {shape.layers - 1}"
        )
    return layer % shape.layers


@dataclass(frozen=True)
class Wanted:
    """The layers of one model whose activations a loss reads; nothing else need be kept."""

    hidden: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()
    relations: frozenset[int] = frozenset()
    output: frozenset[int] = frozenset()

    def __or__(self, other: Wanted) -> Wanted:
        return Wanted(
            self.hidden | other.hidden,
            self.attention | other.attention,
            self.relations | other.relations,
            self.output | other.output,
        )

    def __bool__(self) -> bool:
        return bool(self.hidden or self.attention or self.relations or self.output)


@dataclass(frozen=True, eq=False)
class Activations:
    """What one model computed for S sequences, by layer; only what some loss wants.

    Shapes:
        hidden: (S, T, H), the layer's output; under EMBEDDINGS the embeddings' output. The last layer's is taken
        where the model gives it out: after the final norm, where there is one.
        attention: (S, A, T, T) scores of query and key before the softmax, −inf where the query may not look.
        query, key, value: (S, T, ·) of the layer's attention, heads side by side, after any rotation. Their widths
        may differ from H and, where heads share keys, from each other.
        output: (S, T, H), under the number of the last layer: what the output layer of a language model reads.
    """

    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    attention: Mapping[int, Tensor] = field(default_factory=dict)
    query: Mapping[int, Tensor] = field(default_factory=dict)
    key: Mapping[int, Tensor] = field(default_factory=dict)
    value: Mapping[int, Tensor] = field(default_factory=dict)
    output: Mapping[int, Tensor] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> Activations:
        """Return the same with every tensor changed."""
        return Activations(
            **{
                part.name: {layer: change(tensor) for layer, tensor in getattr(self, part.name).items()}
                for part in fields(self)
            }
        )


@dataclass(frozen=True, eq=False)
class TokenStates:
    """What a language model computed at the positions that predict its counted tokens, of all sequences in order.

    Shapes:
        hidden: (N, H), what the output layer read there. logits: (N, V), what it said. target: (N,) the tokens to be
        predicted; None where they are not known. sequence: (N,) which sequence each stands in, from 0, and read:
        (N,) the tokens that stand at these positions; both None where the other model has the same positions.

    Raises:
        ValueError: tensors of different lengths.
    """

    hidden: Tensor
    logits: Tensor
    target: Tensor | None = None
    sequence: Tensor | None = None
    read: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("logits", "target", "sequence", "read"):
            tensor = getattr(self, name)
            if tensor is not None and len(tensor) != len(self.hidden):
                raise ValueError(
                    f"{name} must have {len(self.hidden)} entries, as the hidden states, got {len(tensor)}"
                )

    def __len__(self) -> int:
        """Return N."""
        return len(self.hidden)


@dataclass(frozen=True, eq=False)
class PairedActivations:
    """Student's and teacher's activations for the same sequences, token by token; a part of `Rows`.

    A row is a sequence, or several (the choices of one question): N rows own S / N sequences each, in order, and a
    row's value is the mean over its tokens. With `token` a row is a single token, as in a language model's rows,
    and its value is that token's.

    A teacher with a tokenizer of its own has no activations at the student's positions. What it computed at its own
    is `teacher_tokens`, with the same sequences in the same order, and `read` are the tokens that the student read.

    Shapes:
        mask: (S, T), above 0 where there is a token. token: (N,) places in the flattened (S·T). read: (S, T) ids.

    Raises:
        TypeError: something that is not a tensor of numbers.
        ValueError: shapes or devices that do not belong together; the message names tensor and layer.
    """

    models: ModelPair
    student: Activations
    teacher: Activations
    mask: Tensor
    token: Tensor | None = None
    read: Tensor | None = None
    teacher_tokens: TokenStates | None = None

    def __post_init__(self) -> None:
        if not hasattr(self.mask, "is_floating_point"):
            raise TypeError(f"mask must be a torch tensor, got {type(self.mask).__name__}")
        if self.mask.dim() != 2:
            raise ValueError(f"mask must have shape (S, T), got {tuple(self.mask.shape)}")
        if self.token is not None and (self.token.dim() != 1 or self.token.is_floating_point()):
            raise ValueError(
                f"token must hold one integer a row, got {self.token.dtype} {tuple(self.token.shape)}"
            )
        if self.teacher_tokens is not None and (self.token is None or self.read is None):
            raise ValueError(
                "a teacher's own tokens are compared with single tokens: token and read are needed"
            )
        if self.read is not None and self.read.shape != self.mask.shape:
            raise ValueError(
                f"read must have the mask's shape {tuple(self.mask.shape)}, got {tuple(self.read.shape)}"
            )
        for whose in ("student", "teacher"):
            activations, shape = getattr(self, whose), getattr(self.models, whose)
            weights = None if self.models.vocabularies is None else getattr(self.models.vocabularies, whose)
            for part in fields(activations):
                for layer, tensor in getattr(activations, part.name).items():
                    name = f"{whose}'s {part.name} of layer {layer}"
                    self._check(name, part.name, tensor, shape, weights)

    def _check(
        self, name: str, part: str, tensor: Tensor, shape: ModelShape, weights: TokenWeights | None
    ) -> None:
        sequences, positions = self.mask.shape
        expected: tuple[int, ...] = (sequences, positions, shape.width)
        if part == "attention":
            expected = (sequences, shape.heads, positions, positions)
        elif part == "output":  # some models narrow or widen their hidden states for it
            width = shape.width if weights is None else weights.head.shape[1]
            expected = (sequences, positions, int(width))
        elif part != "hidden":
            expected = (sequences, positions, shape.width_of(part))
        if tensor.shape != expected:
            raise ValueError(f"{name}: expected shape {expected}, got {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating-point, got {tensor.dtype}")
        if tensor.device != self.mask.device:
            raise ValueError(f"{name} is on {tensor.device}, but the mask is on {self.mask.device}")

    def check_finite(self, query_ST: Tensor, key_ST: Tensor) -> None:
        """Name the first tensor that holds a NaN or an infinity where it reaches a value that counts.

        Args:
            query_ST: the positions whose value counts.
            key_ST: the positions that they look at; their queries, keys and values are in every relation.

        Raises:
            NumericsError: with model, tensor, layer, sequence and position. A score of −inf, where a query may not
                look, is fine.
        """
        for whose in ("student", "teacher"):
            activations = getattr(self, whose)
            for part in fields(activations):
                for layer, tensor in getattr(activations, part.name).items():
                    if part.name == "attention":
                        counts = query_ST[:, None, :, None] & key_ST[:, None, None, :]
                        wrong = counts & (tensor.isnan() | tensor.isposinf())
                    else:
                        counts_ST = query_ST if part.name in ("hidden", "output") else key_ST
                        wrong = counts_ST[..., None] & ~tensor.isfinite()
                    if bool(wrong.any()):
                        sequence, *_, position, last = wrong.nonzero()[0].tolist()
                        looking = f" looking at {last}" if part.name == "attention" else ""
                        raise NumericsError(
                            f"{whose}'s {part.name} of layer {layer}: sequence {sequence} of {len(tensor)}, position "
                            f"{position}{looking}: expected finite numbers, got {int(wrong.sum())} that are not",
                            sequence=sequence,
                        )
        if self.teacher_tokens is not None:
            self._check_teacher_tokens(self.teacher_tokens, query_ST.any(-1))

    def _check_teacher_tokens(self, tokens: TokenStates, counts_S: Tensor) -> None:
        """Name the first that holds a NaN or an infinity (a logit of −inf is fine) in a sequence that counts."""
        counts_M = counts_S if tokens.sequence is None else counts_S[tokens.sequence]
        usable = {
            "hidden states": tokens.hidden.isfinite().all(-1),
            "logits": tokens.logits.amax(-1).isfinite(),
        }
        for what, usable_M in usable.items():
            wrong_M = counts_M & ~usable_M
            if bool(wrong_M.any()):
                raise NumericsError(
                    f"teacher's {what} of its own tokens: token {int(wrong_M.nonzero()[0])} of {len(tokens)}: "
                    f"expected finite numbers, got {int(wrong_M.sum())} tokens where they are not"
                )

    def check_rows(self, count: int) -> None:
        """Raise ValueError unless these activations can belong to so many rows."""
        sequences = int(self.mask.shape[0])
        if self.token is not None:
            if len(self.token) != count:
                raise ValueError(f"activations: token must have shape ({count},), got ({len(self.token)},)")
        elif sequences != 0 if count == 0 else sequences % count or sequences == 0:
            raise ValueError(f"activations: {sequences} sequences cannot be shared out among {count} rows")

    def select(self, index: Tensor | slice, count: int) -> PairedActivations:
        """Return the activations of the rows at index, out of so many rows."""
        if self.token is not None:
            return replace(self, token=self.token[index])

        def at(tensor: Tensor) -> Tensor:
            if count == 0:
                return tensor
            return tensor.reshape(count, -1, *tensor.shape[1:])[index].flatten(0, 1)

        return PairedActivations(self.models, self.student.map(at), self.teacher.map(at), at(self.mask))

    def per_row(self, values_ST: Tensor, counts_ST: Tensor, count: int) -> Tensor:
        """Return (N,): of each row the mean over its positions that count, 0 where none does; or its token's value."""
        if self.token is not None:
            return values_ST.flatten()[self.token]
        each = int(counts_ST.numel() // count) if count else 0
        counts_NT = counts_ST.reshape(count, each)
        values_NT = values_ST.reshape(count, each).where(counts_NT, 0.0)
        return values_NT.sum(-1) / counts_NT.sum(-1).clamp(min=1)
