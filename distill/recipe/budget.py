"""Where the parameters of a model are, by what its config.json says. Loads no torch and no weights."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from .packages import PREFIX, model_folder
from .predictions import SPARSE_COUNTS, bytes_of_row
from .schema import Recipe
from .shape import (
    BERT_LIKE,
    LLAMA_LIKE,
    NAMES,
    NARROWED,
    T5_LIKE,
    Shape,
    Sizes,
    cut_config,
    width_mistakes,
)
from .starting_point import NewTokenizer
from .student import FromTeacher
from .wording import FieldMistakes


@dataclass(frozen=True)
class Budget:
    """A model's parameters by what they are for.

    Attributes:
        embedding: the tables of words, positions and segments, and the output table where it is not the words'.
        attention: queries, keys, values and the output of all layers' attention.
        feed_forward: the feed-forward networks of all layers.
        other: norms, pooler, classifier and the like.
    """

    embedding: int
    attention: int
    feed_forward: int
    other: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embedding + self.attention + self.feed_forward + self.other

    def as_dict(self) -> dict[str, int]:
        """Plain values for JSON."""
        return {**asdict(self), "total": self.total}

    def as_text(self) -> str:
        """`17.39 M parameters (embedding 11.92, attention 1.77, feed-forward 3.54, other 0.15)`."""
        parts = {
            "embedding": self.embedding,
            "attention": self.attention,
            "feed-forward": self.feed_forward,
            "other": self.other,
        }
        shown = ", ".join(f"{part} {count / 1e6:.2f}" for part, count in parts.items())
        return f"{self.total / 1e6:.2f} M parameters ({shown})"


def budget_of(config: Mapping[str, Any]) -> Budget | None:
    """The parameters of a model with this config, without the classifier of a task.

    A decoder is counted as a language model, with its output table where that is not the input's.
    None for architectures that are not known here, and where the config leaves sizes to its class or they do not fit
    together.
    """
    kind = config.get("model_type")
    for kinds, count in ((BERT_LIKE, _bert), (LLAMA_LIKE, _llama), (("gpt2",), _gpt2), (T5_LIKE, _t5)):
        if kind in kinds:
            try:
                return count(_Sizes(config))
            except _Unknown:
                return None
    return None


class _Unknown(Exception):
    """A size that the config does not say."""


class _Sizes:
    """The sizes in a config, or _Unknown."""

    def __init__(self, config: Mapping[str, Any]):
        self.config = config

    def __call__(self, *names: str) -> list[int]:
        return [self.one(name) for name in names]

    def one(self, name: str, default: int | None = None) -> int:
        value = self.config.get(name)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise _Unknown(name)
        return value

    def head(self, width: int, heads: int) -> int:
        if width % heads:
            raise _Unknown("head_dim")  # no model has this config
        return width // heads


def _bert(size: _Sizes) -> Budget:
    words, width, layers, heads, inner = size(
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"
    )
    positions, segments = size("max_position_embeddings", "type_vocab_size")
    size.head(width, heads)
    return Budget(
        embedding=(words + positions + segments) * width,
        attention=layers * 4 * (width * width + width),
        feed_forward=layers * (2 * width * inner + inner + width),
        other=(2 * layers + 1) * 2 * width + width * width + width,  # LayerNorms, and the pooler
    )


def _llama(size: _Sizes) -> Budget:
    words, width, layers, heads, inner = size(
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"
    )
    kind = size.config["model_type"]
    # Only Llama's class has these as defaults that depend on nothing else.
    groups = size.one("num_key_value_heads", heads if kind == "llama" else None)
    if heads % groups:
        raise _Unknown("num_key_value_heads")
    if kind == "qwen3" or size.config.get("head_dim") is not None:
        head = size.one("head_dim")
    else:
        head = size.head(width, heads)
    query, key = heads * head, groups * head
    attention = 2 * width * query + 2 * width * key
    feed_forward = 3 * width * inner
    biases = bool(size.config.get("attention_bias", False)) and kind != "mistral"
    if biases or kind == "qwen2":
        attention += query + 2 * key + (width if kind != "qwen2" else 0)
    if kind == "llama" and size.config.get("mlp_bias", False):
        feed_forward += 2 * inner + width
    tied = bool(size.config.get("tie_word_embeddings", False))
    return Budget(
        embedding=words * width * (1 if tied else 2),
        attention=layers * attention,
        feed_forward=layers * feed_forward,
        other=(2 * layers + 1) * width + (layers * 2 * head if kind == "qwen3" else 0),
    )


def _gpt2(size: _Sizes) -> Budget:
    words, positions, width, layers, heads = size("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    size.head(width, heads)
    inner = size.one("n_inner", 4 * width)
    tied = bool(size.config.get("tie_word_embeddings", True))
    return Budget(
        embedding=(words * (1 if tied else 2) + positions) * width,
        attention=layers * 4 * (width * width + width),
        feed_forward=layers * (2 * width * inner + inner + width),
        other=(2 * layers + 1) * 2 * width,
    )


def _t5(size: _Sizes) -> Budget:
    words, width, head, inner, layers, heads = size(
        "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"
    )
    decoder = size.one("num_decoder_layers", layers)
    buckets = size.one("relative_attention_num_buckets", 32)
    maps = 3 if str(size.config.get("feed_forward_proj", "relu")).startswith("gated") else 2
    return Budget(
        embedding=words * width + 2 * buckets * heads,
        attention=(layers + 2 * decoder) * 4 * width * heads * head,
        feed_forward=(layers + decoder) * maps * width * inner,
        other=(2 * layers + 3 * decoder + 2) * width,
    )


# A shape within this share of the target is close enough to be chosen for its proportions.
CLOSE = 0.99


def fitted(config: Mapping[str, Any], cut: FromTeacher) -> FromTeacher:
    """`cut` with the shape that its `target_parameters` leads to, in place of the target; else `cut` itself.

    Of all shapes with at most that many parameters (what `cut` itself says of layers and widths stays), those within 1%
    of the target are taken, or the largest one where there are none, and of these the one whose proportions are most
    like the teacher's: with every size as a share of the teacher's, (ln hidden − ln layers)² + (ln intermediate −
    ln hidden)² + (ln heads − ln hidden)² is least. Of a BERT-like model heads follow from hidden.

    Args:
        config: the teacher's, with the vocabulary the student will have.
        cut: what the recipe says.

    Raises:
        FieldMistakes: of `target_parameters`.
    """
    target = cut.target
    if target is None:
        return cut
    whole = budget_of(config)
    if whole is None:
        raise _mistaken(
            f"is for {', '.join((*NARROWED, 'gpt2'))} teachers whose config says all sizes, "
            f"found {config.get('model_type')}; give layers and widths"
        )
    best, least = None, whole.total
    for shape in _shapes(config, cut):
        total, filled = _filled(config, shape, target)
        least = min(least, total)
        if total <= target:
            close = total >= CLOSE * target
            score = (1, -_distance(config, filled), total) if close else (0, total, 0)
            if best is None or score > best[0]:
                best = score, filled
    if best is None:
        raise _mistaken(f"must be at least {least:,}, the parameters of the smallest shape, found {target:,}")
    return replace(cut, target_parameters=None, **best[1]._asdict())


def _mistaken(message: str) -> FieldMistakes:
    return FieldMistakes([(("target_parameters",), message)])


def _shapes(config: Mapping[str, Any], cut: FromTeacher) -> Iterator[Shape]:
    """Every depth and width the student may have, as `cut` where that says it."""
    kind, names = config["model_type"], NAMES[config["model_type"]]
    depths: list[tuple[Any, Any]] = [(cut.layers, cut.decoder_layers)]
    if cut.layers is None and cut.decoder_layers is None:
        total = config[names["layers"]]
        decoder = config.get(names.get("decoder_layers", "")) or total
        two = "decoder_layers" in names
        depths = [
            (layers, max(1, round(layers * decoder / total)) if two else None)
            for layers in range(1, total + 1)
        ]
    widths: list[tuple[int | None, int | None]] = [(cut.hidden, cut.heads)]
    if kind in NARROWED:
        sizes = Sizes.of(config)
        step = sizes.head_size if kind in BERT_LIKE else max(8, sizes.channels // 32 // 8 * 8)
        hidden = [cut.hidden] if cut.hidden else [*range(step, sizes.channels, step), sizes.channels]
        heads = [cut.heads] if cut.heads or kind not in LLAMA_LIKE else list(range(1, sizes.heads + 1))
        widths = [
            pair for pair in product(hidden, heads) if not width_mistakes(config, pair[0], None, pair[1])
        ]
    for depth, width in product(depths, widths):
        yield Shape(*depth, *width, cut.intermediate)


def _filled(config: Mapping[str, Any], shape: Shape, target: int) -> tuple[int, Shape]:
    """The parameters of a shape, and the shape, with as many neurons (in eights) as the target leaves room for."""

    def total(neurons: int | None) -> int:
        budget = budget_of(cut_config(config, shape._replace(intermediate=neurons)))
        return 0 if budget is None else budget.total  # known for the teacher's config, so for every cut of it

    neurons = shape.intermediate
    if neurons is None and config["model_type"] in NARROWED:
        most = Sizes.of(config).neurons
        least, more = total(1), total(2) - total(1)
        neurons = 1 + max(0, target - least) // more
        neurons = most if neurons >= most else max(neurons // 8 * 8, min(8, most))
        return least + (neurons - 1) * more, shape._replace(intermediate=neurons)
    return total(neurons), shape


def _distance(config: Mapping[str, Any], shape: Shape) -> float:
    """How far a shape's proportions are from the teacher's: 0 where every size is the same share of the teacher's."""
    names, made = NAMES[config["model_type"]], cut_config(config, shape)
    share = {
        part: math.log(made[name] / config[name])
        for part, name in names.items()
        if type(config.get(name)) is int
    }
    hidden, intermediate = share["hidden"], share.get("intermediate", share["hidden"])
    return (hidden - share["layers"]) ** 2 + (intermediate - hidden) ** 2 + (share["heads"] - hidden) ** 2


def planned_shape(recipe: Recipe) -> FromTeacher | None:
    """The student's shape as far as files here tell: None without a `target_parameters`, or where that leads is not known.

    With `vocabulary: corpus` the training texts decide how much is left for layers: not known here.

    Raises:
        FieldMistakes: no shape has so few parameters.
    """
    cut = recipe.student.from_teacher
    teacher = local_config(recipe.teacher.for_task(recipe.data.tasks[0]))
    if cut is None or cut.target is None or cut.vocabulary != "teacher" or teacher is None:
        return None
    return fitted(teacher, cut)


def planned_budgets(recipe: Recipe) -> dict[str, Budget | None]:
    """Teacher's and student's parameters as far as files here tell: None is not known.

    With a trimmed vocabulary the student's embedding is the whole vocabulary's, and with a new tokenizer the size asked
    for: an upper bound.
    """
    first, student = recipe.teacher.parts[0], recipe.student
    teacher = local_config(first.for_task(recipe.data.tasks[0])) if first.config is None else first.config
    config: Mapping[str, Any] | None = student.config
    if student.from_teacher is not None:
        known = teacher is not None and budget_of(teacher) is not None
        cut = student.from_teacher if student.from_teacher.target is None else planned_shape(recipe)
        config = cut_config(teacher, cut) if teacher is not None and known and cut is not None else None
    elif student.model is not None:
        config = local_config(student.model)
    return {
        "teacher": None if teacher is None else budget_of(teacher),
        "student": None if config is None else budget_of(config),
    }


def cache_bytes_of_row(recipe: Recipe) -> int | None:
    """What a teacher's cache keeps of each row, in bytes; None without a cache, or where no file here tells."""
    cache, first = recipe.teacher.cache, recipe.teacher.parts[0]
    if cache is None:
        return None
    config = local_config(first.for_task(recipe.data.tasks[0])) if first.config is None else first.config
    classes = (config or {}).get("vocab_size")
    if isinstance(first.tokenizer, NewTokenizer):
        classes = first.tokenizer.train
    if type(classes) is not int:
        return None
    count = 0
    if cache.keep != "full":
        count = getattr(next(term for term in recipe.loss if term.needs_teacher), SPARSE_COUNTS[cache.keep])
    return bytes_of_row(cache.keep, classes, count=count, dtype=cache.dtype)


def local_config(model: str) -> Mapping[str, Any] | None:
    """The config.json of a model that is in a folder or an installed package; None if it is not to be had here."""
    try:
        folder = model_folder(model) if model.startswith(PREFIX) else Path(model)
        if folder is None or not os.path.isdir(folder):
            return None
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, importlib.metadata.PackageNotFoundError):
        return None
    return config if isinstance(config, dict) else None
