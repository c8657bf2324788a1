"""Eight small tasks in the official layouts, made from a seed: SuperGLUE's shapes without its data."""

from random import Random
from typing import Any, Literal

from . import boolq, cb, copa, multirc, record, rte, wic, wsc
from .world import Cast

FAMILIES = {
    "boolq": boolq.rows,
    "cb": cb.rows,
    "copa": copa.rows,
    "multirc": multirc.rows,
    "record": record.rows,
    "rte": rte.rows,
    "wic": wic.rows,
    "wsc": wsc.rows,
}
SIZES = {
    "boolq": (1000, 128),
    "cb": (900, 126),
    "copa": (500, 128),
    "multirc": (300, 64),
    "record": (500, 96),
    "rte": (900, 128),
    "wic": (1000, 128),
    "wsc": (1000, 128),
}


def rows(task: str, split: Literal["train", "validation"], *, seed: int = 0) -> list[dict[str, Any]]:
    """The rows of a split, as the official jsonl file would hold them."""
    random = Random(f"{seed}-{task}-{split}")  # noqa: S311 - made-up stories, not secrets
    made = FAMILIES[task](Cast.of(split, random), SIZES[task][split == "validation"])
    random.shuffle(made)
    for number, row in enumerate(made):
        row["idx"] = number
    return made
