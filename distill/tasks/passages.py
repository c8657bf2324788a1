"""Text files cut into passages."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.errors import DataError

from .sources import TaskData, digest, first_units
from .text import TASK


def load_text(
    path: str | os.PathLike[str],
    *,
    validation: str | os.PathLike[str] | None = None,
    characters: int,
    train_examples: int | None = None,
    validation_examples: int | None = None,
) -> TaskData:
    """Passages of text files, to learn from and to be scored on.

    Args:
        path: a text file, or a folder whose .txt files are read in the order of their names.
        validation: the same for the passages to be scored on. None keeps the last tenth of each file of `path` aside.
        characters: a passage's length; it ends with a line or, inside of a longer one, with a word.
        train_examples: keep this many training passages, from the start.
        validation_examples: the same for validation.

    Raises:
        DataError: a file is missing, is no UTF-8 text, or is too short.
    """
    own = {file: list(passages(read_text(file), characters)) for file in text_files(path)}
    if validation is None:
        kept = {file: len(found) - max(1, len(found) // 10) for file, found in own.items()}
        train = [passage for file, found in own.items() for passage in found[: kept[file]]]
        held = [passage for file, found in own.items() for passage in found[kept[file] :]]
    else:
        train = [passage for found in own.values() for passage in found]
        held = [
            passage for file in text_files(validation) for passage in passages(read_text(file), characters)
        ]
    if not train or not held:
        raise DataError(f"{path}: too short to train and validate on passages of {characters} characters")
    rows: list[list[Mapping[str, Any]]] = [[{"text": p} for p in train], [{"text": p} for p in held]]
    examples = [TASK.examples(found) for found in rows]
    limits = (train_examples, validation_examples)
    cut = [first_units(found, limit) for found, limit in zip(examples, limits, strict=True)]
    return TaskData(
        task=TASK,
        train=cut[0],
        validation=cut[1],
        notes=(),
        partial=False,
        sha256=digest(TASK.name, *cut),
    )


def text_files(path: str | os.PathLike[str]) -> list[Path]:
    """The file, or the .txt files of the folder."""
    found = Path(path)
    files = [found] if found.is_file() else sorted(found.glob("*.txt"))
    if not files:
        raise DataError(f"{path}: expected a text file, or a folder with .txt files")
    return files


def read_text(file: Path) -> str:
    """A file's text."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text: {error}") from error


def passages(text: str, characters: int) -> Iterator[str]:
    r"""Cut a text into passages: joined, they are the text, but for passages of white space alone.

    Example:
        >>> list(passages("one two three\nfour\nfive six", 10))
        ['one two ', 'three\n', 'four\nfive ', 'six']
    """
    start = 0
    while start < len(text):
        end = start + characters
        if end < len(text):
            # The latest line's end in the second half, else the latest word's, else wherever it is.
            half = start + characters // 2
            line, word = text.rfind("\n", half, end), text.rfind(" ", half, end)
            end = line + 1 if line >= 0 else word + 1 if word >= 0 else end
        if text[start:end].strip():
            yield text[start:end]
        start = end
