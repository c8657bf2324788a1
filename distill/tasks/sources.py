"""Where task data comes from: the built-in demo tasks, a folder of official jsonl files, or the hub."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from distill.errors import DataError

from .row import parsed
from .superglue import DIAGNOSTICS, SUPERGLUE, TASKS
from .task import Example, Task

Split = Literal["train", "validation", "test"]
Source = Literal["demo", "folder", "hub"]
# What is learnt from and scored on. The third split has no public labels.
SPLITS: tuple[Split, Split] = ("train", "validation")
DOWNLOAD = "https://dl.fbaipublicfiles.com/glue/superglue/data/v2/{title}.zip"
RUSSIAN_DOWNLOAD = "https://russiansuperglue.com/tasks/download/{title}"


@dataclass(frozen=True, slots=True)
class TaskData:
    """The labelled examples of one task.

    Attributes:
        task: what they belong to.
        train: training examples, empty for the diagnostics.
        validation: the dev split, which everything is scored on (test labels are not public).
        notes: one sentence for each thing a reader of the scores must know about the data.
        partial: True where this is less, or other, than the official train and dev files.
        portion: what there is instead, such as "1,061 training examples"; empty unless `partial`.
        sha256: digest of the examples' content, in order.
    """

    task: Task
    train: list[Example]
    validation: list[Example]
    notes: tuple[str, ...]
    partial: bool
    sha256: str
    portion: str = ""


def load_task(
    name: str,
    *,
    source: Source,
    path: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    train_examples: int | None = None,
    validation_examples: int | None = None,
    demo_seed: int = 0,
) -> TaskData:
    """Load a task's training and dev examples.

    Args:
        name: a key of `TASKS`.
        source: "demo" (built in, not SuperGLUE), "folder" (official files in `path/<title>/`) or "hub".
        path: the folder, for source "folder".
        revision: the hub revision, for source "hub"; a pinned one if None.
        train_examples: keep this many units from the start (whole questions, queries, minimal pairs).
        validation_examples: the same for the dev split.
        demo_seed: the seed of the demo tasks.

    Raises:
        ValueError: an unknown name or source, a folder without a path, or a limit below 1.
        DataError: the data is missing, malformed, unlabelled or empty.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; the tasks are {', '.join(TASKS)}")
    task = TASKS[name]
    limits: dict[Split, int | None] = {"train": train_examples, "validation": validation_examples}
    for split, limit in limits.items():
        if limit is not None and limit < 1:
            raise ValueError(f"{split}_examples must be at least 1, got {limit}")
    loaded: dict[Split, list[Example]] = {}
    notes: list[str] = []
    portions: list[str] = []
    for split, official in zip(SPLITS, task.official_units, strict=True):
        rows, where, marked = read_rows(task, split, source, path, revision, demo_seed)
        try:
            examples = task.examples(rows)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        if not examples and not (split == "train" and name in DIAGNOSTICS):
            raise DataError(f"{where}: {task.title} has no examples")
        for example in examples:
            if example.label is None:
                raise DataError(
                    f"{where}: {task.title} example {example.id} has no label; expected a labelled split"
                )
        found = len({example.group for example in examples})
        loaded[split] = first_units(examples, limits[split])
        kept = len({example.group for example in loaded[split]})
        spoken = "training" if split == "train" else "dev"
        amount = f"{kept:,} {spoken} {task.unit[kept != 1]}"
        if kept < found:
            notes.append(f"{task.title}: the first {amount} of {found:,}, as asked")
        if source == "demo":
            continue
        if marked or found != official:
            kind = f"partial {spoken} file" if marked or found < official else f"unofficial {spoken} file"
            notes.append(
                f"{task.title}: {kind}, {found:,} {task.unit[found != 1]} (the official one has {official:,})"
            )
        if marked or kept != official:
            portions.append(amount)
    if source == "demo":
        notes.append(f"{task.title}: built-in demo task, not SuperGLUE data")
    return TaskData(
        task=task,
        train=loaded["train"],
        validation=loaded["validation"],
        notes=tuple(notes),
        partial=bool(portions),
        sha256=digest(name, loaded["train"], loaded["validation"]),
        portion=" and ".join(portions),
    )


def read_rows(
    task: Task,
    split: Split,
    source: Source,
    path: str | os.PathLike[str] | None,
    revision: str | None,
    demo_seed: int,
) -> tuple[Sequence[dict[str, Any]], str, bool]:
    """The official rows of a split, where they came from, and whether the file calls itself partial."""
    if split == "train" and task.name in DIAGNOSTICS:
        return [], task.title, False
    if source in ("demo", "hub") and task.name not in (*SUPERGLUE, *DIAGNOSTICS):
        raise DataError(f"{task.title}: not among the {source}'s tasks; it comes from a folder")
    if source == "demo":
        if task.name in DIAGNOSTICS:
            raise DataError(f"{task.title}: the demo has no diagnostics; they come from a folder or the hub")
        if split == "test":
            raise DataError(f"{task.title}: the demo has no test split; it comes from a folder or the hub")
        from .demo import rows

        return rows(task.name, split, seed=demo_seed), f"demo {split}", False
    if source == "hub":
        from .hub import PINNED, REPOSITORY, hub_rows

        return hub_rows(task.name, split, revision), f"{REPOSITORY}@{revision or PINNED}", False
    if source != "folder":
        raise ValueError(f"source must be 'demo', 'folder' or 'hub', got {source!r}")
    if path is None:
        raise ValueError("source 'folder' needs the path of the folder that holds the official task folders")
    file, marked = official_file(task, split, Path(path))
    return read_jsonl(file), str(file), marked


def official_file(task: Task, split: Split, folder: Path) -> tuple[Path, bool]:
    """The official file of a split, else the one named partial; True for the latter.

    Raises:
        DataError: neither is there.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; expected one that holds {task.title}/ as the official zips unpack"
        )
    files = _files(task, split, folder)
    for file, marked in files:
        if file.is_file():
            return file, marked
    download = DOWNLOAD if task.name in (*SUPERGLUE, *DIAGNOSTICS) else RUSSIAN_DOWNLOAD
    raise DataError(
        f"{files[0][0]}: no such file; unpack {download.format(title=task.title)} into {folder}, "
        f"or take another data source"
    )


def has_file(task: Task, split: Split, folder: Path) -> bool:
    """Whether a folder holds a split, or a part of it."""
    return any(file.is_file() for file, _ in _files(task, split, folder))


def _files(task: Task, split: Split, folder: Path) -> list[tuple[Path, bool]]:
    """Where a split may be; True for a file that is named partial."""
    stem = task.title if task.name in DIAGNOSTICS else "val" if split == "validation" else split
    inside = folder / task.title
    return [(inside / f"{stem}.jsonl", False), (inside / f"{stem}.partial.jsonl", True)]


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """The objects of a jsonl file; blank lines are skipped.

    Raises:
        DataError: the file cannot be read, or a line is not a JSON object; names file and line.
    """
    rows = []
    try:
        # Text mode ends lines at \n and \r only: a text may hold other line separators, such as U+2028.
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                row = parsed(f"{file}:{number}", line)
                if not isinstance(row, dict):
                    raise DataError(f"{file}:{number}: expected a JSON object, found {type(row).__name__}")
                rows.append(row)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    return rows


def first_units(examples: list[Example], limit: int | None) -> list[Example]:
    """The examples of the first `limit` units, whole."""
    if limit is None:
        return examples
    groups: dict[str, None] = {}
    for example in examples:
        if example.group not in groups:
            if len(groups) == limit:
                break
            groups[example.group] = None
    return [example for example in examples if example.group in groups]


def digest(name: str, train: Sequence[Example], validation: Sequence[Example]) -> str:
    """SHA-256 of a task's examples: the same content in the same order, whatever source it came from."""
    hashed = hashlib.sha256()
    for split, examples in (("train", train), ("validation", validation)):
        hashed.update(f"{name} {split} {len(examples)}\n".encode())
        for example in examples:
            hashed.update(json.dumps(asdict(example), sort_keys=True).encode() + b"\n")
    return hashed.hexdigest()
