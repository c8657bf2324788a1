"""The kinds of values that a recipe holds: names, numbers and texts with their limits. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, get_args

from pydantic import Field

from .patterns import KEY, LOCATION, NAME, REVISION, TEXT
from .wording import FieldMistakes, Mistake

SuperGLUEName = Literal["boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc"]
TaskName = Literal[SuperGLUEName, "terra", "text"]
TASK_NAMES: tuple[TaskName, ...] = get_args(SuperGLUEName)
PLAIN_TEXT: TaskName = "text"
Tracker = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]
Architecture = Literal["encoder", "decoder", "encoder_decoder"]

Scalar = (
    Annotated[str, Field(pattern=TEXT)]
    | Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
    | Annotated[float, Field(allow_inf_nan=False)]
    | bool
    | None
)
AdapterValue = Scalar | list[Scalar] | Mapping[Annotated[str, Field(pattern=TEXT)], Scalar]
Text = Annotated[str, Field(pattern=TEXT)]
Name = Annotated[str, Field(pattern=NAME)]
Location = Annotated[str, Field(pattern=LOCATION)]
Key = Annotated[str, Field(pattern=KEY)]
Revision = Annotated[str, Field(pattern=REVISION)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


def duplicates(place: str, values: Iterable[object]) -> list[Mistake]:
    """A mistake for every value that stands there twice."""
    seen: set[object] = set()
    mistakes: list[Mistake] = []
    for index, value in enumerate(values):
        if value in seen:
            mistakes.append(((place, index), f"{value!r} stands there twice; leave one out"))
        seen.add(value)
    return mistakes


def raise_all(mistakes: list[Mistake]) -> None:
    """Raise what is wrong with a part of a recipe, if anything is."""
    if mistakes:
        raise FieldMistakes(mistakes)
