"""Where the parameters of a model are, by what its config.json says. Loads no torch and no weights."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .packages import PREFIX, model_folder
from .schema import FromTeacher, Recipe, StudentVocabulary

# Model types whose modules have BERT's names and whose attention is as wide as the model.
BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert")
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)


@dataclass(frozen=True)
class Budget:
    """A model's parameters by what they are for.

    Attributes:
        embedding: the tables of words, positions and segments.
        attention: queries, keys, values and the output of all layers' attention.
        feed_forward: the feed-forward networks of all layers.
        other: norms, pooler and classifier.
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
    """The parameters of a BERT-like encoder with this config, without the classifier of a task.

    None for other models, and where the config leaves sizes to its class or they do not fit together.
    """
    if config.get("model_type") not in BERT_LIKE:
        return None
    sizes: list[int] = [config[name] for name in SIZES if type(config.get(name)) is int and config[name] > 0]
    if len(sizes) < len(SIZES):
        return None
    words, width, layers, heads, inner, positions, segments = sizes
    if width % heads:
        return None  # no model has this config
    return Budget(
        embedding=(words + positions + segments) * width,
        attention=layers * 4 * (width * width + width),
        feed_forward=layers * (2 * width * inner + inner + width),
        other=(2 * layers + 1) * 2 * width + width * width + width,  # LayerNorms, and the pooler
    )


def cut_config(config: Mapping[str, Any], cut: FromTeacher) -> dict[str, Any]:
    """The config of the student that `cut` makes of a BERT-like teacher.

    Its vocabulary has the size of a new tokenizer, or is left as it is.
    """
    new = cut.vocabulary.train if isinstance(cut.vocabulary, StudentVocabulary) else None
    hidden = cut.hidden or config["hidden_size"]
    head = config["hidden_size"] // config["num_attention_heads"]
    return {
        **config,
        "vocab_size": new or config["vocab_size"],
        "num_hidden_layers": cut.layers if isinstance(cut.layers, int) else len(cut.layers),
        "hidden_size": hidden,
        "num_attention_heads": hidden // head,
        "intermediate_size": cut.intermediate or config["intermediate_size"],
    }


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
        config = cut_config(teacher, student.from_teacher) if teacher is not None and known else None
    elif student.model is not None:
        config = local_config(student.model)
    return {
        "teacher": None if teacher is None else budget_of(teacher),
        "student": None if config is None else budget_of(config),
    }


def local_config(model: str) -> Mapping[str, Any] | None:
    """The config.json of a model that is in a folder or an installed package; None if it is not to be had here."""
    try:
        folder = model_folder(model) if model.startswith(PREFIX) else Path(model)
        if folder is None or not os.path.isdir(folder):
            return None
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, importlib.metadata.PackageNotFoundError):
        return None
    return config if isinstance(config, dict) else None
