"""Stored predictions: one JSON object a line, from which every score can be recomputed."""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from distill.disk import whole
from distill.errors import DataError, NumericsError

from .row import Row, parsed
from .task import Answer


def write_predictions(path: str | os.PathLike[str], answers: Iterable[Answer]) -> None:
    """Write answers as jsonl. Floats keep every bit; the file appears whole or not at all.

    Raises:
        NumericsError: a logit is NaN or infinite; nothing is written.
        ResourceError: the file cannot be written; an older one stands.
    """
    target = Path(path)
    with whole(target) as aside, aside.open("w", encoding="utf-8") as file:
        for answer in answers:
            logits = [float(logit) for logit in answer.logits]
            if not all(math.isfinite(logit) for logit in logits):
                raise NumericsError(
                    f"{target}: example {answer.id}: the logits are {logits}, expected finite numbers"
                )
            fields = asdict(answer) | {
                "logits": logits,
                "gold": None if answer.gold is None else int(answer.gold),
            }
            if answer.text is None:
                del fields["text"]
            file.write(json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n")


def read_predictions(path: str | os.PathLike[str]) -> list[Answer]:
    """Read what `write_predictions` wrote.

    Raises:
        DataError: the file is missing or a line is not a stored prediction; names file and line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return [answer_of(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]


def answer_of(where: str, line: str) -> Answer:
    """One line of the file."""
    row = Row(where, parsed(where, line))
    logits, golds = row.fields.get("logits"), row.fields.get("golds")
    if not isinstance(logits, list) or not all(type(logit) in (int, float) for logit in logits):
        row.fail("logits", "a list of numbers")
    if not isinstance(golds, list) or not all(isinstance(gold, str) for gold in golds):
        row.fail("golds", "a list of strings")
    label = None if "gold" in row.fields and row.fields["gold"] is None else row.integer("gold")
    return Answer(
        id=row.text("id"),
        group=row.text("group"),
        gold=label,
        logits=tuple(float(logit) for logit in logits),
        answer=row.text("answer"),
        golds=tuple(golds),
        text=None if row.fields.get("text") is None else row.text("text"),
    )
