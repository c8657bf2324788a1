"""What a recipe says of the student: which part of the teacher it is, or what else it starts from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from .fields import check_fields
from .patterns import AMOUNT
from .starting_point import NewTokenizer, config_mistakes, model_mistakes
from .values import AdapterValue, Key, Location, Revision, Scalar, raise_all
from .wording import Mistake

_Layers = (
    Annotated[int, Field(ge=1, le=1000)]
    | Annotated[tuple[Annotated[int, Field(ge=0, le=999)], ...], Field(min_length=1)]
)


@dataclass(frozen=True, kw_only=True)
class StudentVocabulary:
    """How many tokens a student has whose tokens are not simply the teacher's: exactly one of `at_least` and `train`.

    Attributes:
        at_least: Keep the tokens that occur in the training texts, as "corpus" does, and as many others of the
            teacher's as make up this number: those with the lowest ids (WordPiece, BPE: the most frequent where the
            teacher's tokenizer was trained) or the highest scores (Unigram). A small task's texts hold few tokens, and
            what they lack is read in more and smaller pieces.
        train: Make a new tokenizer of this size from the training texts, of the teacher's kind and with its rules and
            special tokens. A token starts as the mean of the pieces that the teacher cuts its text into.
        texts: A text file, or a folder of .txt files, to train the new tokenizer on beside the training texts. Only
            with `train`. Relative to the working directory.
    """

    at_least: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    train: Annotated[int, Field(ge=100, le=1_000_000)] | None = None
    texts: Location | None = None

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_fields(self)
        mistakes: list[Mistake] = []
        if (self.at_least is None) == (self.train is None):
            mistakes.append(((), "needs exactly one of at_least (keep tokens) and train (make new ones)"))
        if self.texts is not None and self.train is None:
            mistakes.append((("texts",), "is only for a new tokenizer; give train"))
        raise_all(mistakes)


@dataclass(frozen=True, kw_only=True)
class FromTeacher:
    """A student made of a part of the teacher.

    Attributes:
        layers: How many layers, chosen as `choose` says; or the teacher layers themselves, counted from 0,
            increasing. Of an encoder–decoder teacher they are the encoder's, and the decoder's too unless
            `decoder_layers` is given. Default: all.
        decoder_layers: The same for the decoder of an encoder–decoder teacher. Default: as `layers`.
        choose: Which layers a number of them keeps: "even" (evenly spaced with the first and the last kept),
            "block_influence" (drop those that turn the hidden state least: ShortGPT) or "linearity" (drop those
            whose contribution is most nearly a linear map of their input: Secretly Linear). The last two hold on to
            no layer for its place; a linear layer may do much, so look at where a student without it starts.
            Measured on 1,024 training examples. Default "even".
        dropped: What becomes of dropped layers: they are "left_out", or the last feed-forward map of the layer
            before them is fitted in least squares, on the same examples, to add what they would have added as far
            as that is linear ("linear"). Default "left_out".
        target_parameters: Parameters the student may have at most, without a task's classifier: 10000000 or
            "10M". Layers and widths that are not given are then found: within 1% of the target where that can be,
            in proportions most like the teacher's. Default: as the other fields say.
        weights: Which of the teacher's weights the student starts from: "pretrained" (before it was
            fine-tuned) or "fine_tuned". Default "pretrained".
        vocabulary: The tokens of the student: "teacher" (all of the teacher's), "corpus" (those of the teacher's that
            occur in the training examples of the run's tasks, special tokens, and single letters or bytes; validation
            examples have no say), {at_least: 8000} (the same, filled up with others) or {train: 8000} (a new, smaller
            tokenizer). All but "teacher" need a fast WordPiece, Unigram or BPE tokenizer. Default "teacher".
        hidden: The width of the hidden states, at most the teacher's. For bert, roberta and their kin, whose
            attention heads keep their size, a multiple of that; for llama a multiple of its heads; also for mistral,
            qwen2, qwen3 and t5. Default: the teacher's.
        heads: The attention heads of a layer, at most the teacher's; for llama, mistral, qwen2 and qwen3, whose heads
            have a size of their own. Heads with keys and values in common go in whole groups, or as many of every
            group. Default: the teacher's.
        intermediate: The width of the feed-forward networks, at most the teacher's. For the same models as hidden.
            Default: the teacher's.
        keep: Which channels, heads and neurons a narrower student keeps: the "most_active" ones (largest mean
            absolute activation of the teacher on 1,024 training examples, as in Minitron) or the "first".
            Default "most_active".
    """

    layers: _Layers | None = None
    decoder_layers: _Layers | None = None
    choose: Literal["even", "block_influence", "linearity"] = "even"
    dropped: Literal["left_out", "linear"] = "left_out"
    target_parameters: (
        Annotated[int, Field(ge=1, le=10**15)] | Annotated[str, Field(pattern=AMOUNT)] | None
    ) = None
    weights: Literal["pretrained", "fine_tuned"] = "pretrained"
    vocabulary: Literal["teacher", "corpus"] | StudentVocabulary = "teacher"
    hidden: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    heads: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    intermediate: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    keep: Literal["most_active", "first"] = "most_active"

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_fields(self)
        mistakes: list[Mistake] = []
        for field_name in ("layers", "decoder_layers"):
            layers = getattr(self, field_name)
            if isinstance(layers, tuple):
                mistakes += [
                    (
                        (field_name, index + 1),
                        f"must be above the layer before it ({before}), found {after}",
                    )
                    for index, (before, after) in enumerate(itertools.pairwise(layers))
                    if after <= before
                ]
        open_shape = self.target_parameters is not None
        counted = isinstance(self.layers, int) or isinstance(self.decoder_layers, int)
        if self.keep == "first" and not self.is_narrower and not open_shape:
            mistakes.append((("keep",), "is only for a narrower student; give hidden, heads or intermediate"))
        if self.choose != "even" and not counted and not open_shape:
            mistakes.append((("choose",), "is for a number of layers; give layers: N"))
        if self.dropped == "linear" and self.layers is self.decoder_layers is None and not open_shape:
            mistakes.append((("dropped",), "is for a student with fewer layers; give layers"))
        if open_shape and None not in (self.layers, self.hidden, self.intermediate):
            mistakes.append(
                (
                    ("target_parameters",),
                    "leaves nothing to find beside layers, hidden and intermediate; leave one out",
                )
            )
        raise_all(mistakes)

    @property
    def is_narrower(self) -> bool:
        """Whether a width is given."""
        return any(width is not None for width in (self.hidden, self.heads, self.intermediate))

    def shape_as_dict(self) -> dict[str, int]:
        """What it says of depth and width, layers as their number."""
        sizes = ("layers", "decoder_layers", "hidden", "heads", "intermediate")
        said = {name: getattr(self, name) for name in sizes if getattr(self, name) is not None}
        return {name: size if isinstance(size, int) else len(size) for name, size in said.items()}

    def shape_as_text(self) -> str:
        """`layers 12, hidden 384, intermediate 1536`."""
        return ", ".join(f"{name.replace('_', ' ')} {size}" for name, size in self.shape_as_dict().items())

    @property
    def target(self) -> int | None:
        """`target_parameters` as a number."""
        if isinstance(self.target_parameters, str):
            unit = {"k": 10**3, "m": 10**6, "b": 10**9}[self.target_parameters[-1].lower()]
            return round(float(self.target_parameters[:-1]) * unit)
        return self.target_parameters


@dataclass(frozen=True, kw_only=True)
class StudentRecipe:
    """The model to train: exactly one of `from_teacher`, `model` and `config`.

    Attributes:
        from_teacher: A part of the teacher: some of its layers, tokens, channels, heads and neurons.
        model: A transformers model: "package:NAME", a folder or a Hugging Face Hub id.
        revision: The Hub model's git revision, only with `model`.
        config: A transformers configuration for a student from scratch, with its model_type:
            {model_type: bert, hidden_size: 128, num_hidden_layers: 2, ...}.
        tokenizer: The tokenizer of a student from scratch: "package:NAME", a folder, a Hub id, or {train: 8000}, a
            new one made from the training texts. Only with `config`. Default: the teacher's.
        adapter: Train only an adapter of peft (and a new head), on top of this student: its peft_type and fields of
            peft's configuration class of that type, {peft_type: LORA, r: 8, target_modules: [query, value]}.
            Merged into the exported weights where the type allows it. Needs distill[peft]. Default: train all weights.
    """

    from_teacher: FromTeacher | None = None
    model: Location | None = None
    revision: Revision | None = None
    config: Mapping[Key, Scalar] | None = None
    tokenizer: Location | NewTokenizer | None = None
    adapter: Mapping[Key, AdapterValue] | None = None

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_fields(self)
        given = [name for name in ("from_teacher", "model", "config") if getattr(self, name) is not None]
        mistakes: list[Mistake] = []
        if not given:
            mistakes.append(((), "must have one of from_teacher, model and config, found none"))
        for name in given[1:]:
            mistakes.append(
                ((name,), f"stands beside {given[0]}; keep one of from_teacher, model and config")
            )
        if self.model is not None:
            mistakes += model_mistakes(self.model, self.revision)
        elif self.revision is not None:
            mistakes.append((("revision",), "is only for a student given by model; leave it out"))
        if self.config is not None:
            mistakes += config_mistakes(self.config)
        if self.adapter is not None and not isinstance(self.adapter.get("peft_type"), str):
            mistakes.append((("adapter",), "must have the peft_type of an adapter of peft, such as LORA"))
        if self.config is None and self.tokenizer is not None:
            mistakes.append((("tokenizer",), "is only for a student given by config; leave it out"))
        raise_all(mistakes)
