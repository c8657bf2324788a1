"""What a model starts from, be it a teacher or a student: a named model, or a config with a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from .fields import check_fields
from .kernels import is_kernel
from .wording import Mistake, shown


@dataclass(frozen=True, kw_only=True)
class NewTokenizer:
    """A byte-level BPE tokenizer made from the training texts of the run, for models that start from a config.

    Attributes:
        train: How many tokens it has: 256 bytes, 3 special ones, and merges. 300 to 200,000.
    """

    train: Annotated[int, Field(ge=300, le=200_000)]

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_fields(self)


def config_mistakes(config: Mapping[str, Any]) -> list[Mistake]:
    """A configuration that transformers could not read, or that would make it download and run a kernel."""
    mistakes: list[Mistake] = [
        (
            ("config", key),
            f"must be an implementation that is installed, found {shown(value)}, a kernel of the Hub",
        )
        for key, value in config.items()
        if is_kernel(key, value)
    ]
    if not isinstance(config.get("model_type"), str):
        words = "must have the model_type of a transformers configuration, such as bert"
        mistakes.append((("config",), words))
    return mistakes


def model_mistakes(model: str, revision: str | None) -> list[Mistake]:
    """A model's name that names none."""
    mistakes: list[Mistake] = []
    package = model.startswith("package:")
    if package and not re.fullmatch(r"package:[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?", model):
        mistakes.append((("model",), f"must name a package after 'package:', found {model!r}"))
    if package and revision is not None:
        mistakes.append(
            (("revision",), "is only for models of the Hub; a package has its version; leave it out")
        )
    if unknown := [name for name in re.findall(r"\{([^}]*)\}", model) if name != "task"]:
        mistakes.append(
            (("model",), f"may hold {{task}} and no other name in braces, found {{{unknown[0]}}}")
        )
    return mistakes
