"""Scoring one fine-tuned model on one task, outside a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distill.progress import Progress, Silent
from distill.recipe import Architecture
from distill.recipe.data import CHARACTERS_A_TOKEN
from distill.tasks import (
    DIAGNOSTICS,
    PLAIN_TEXT,
    TASKS,
    Answer,
    Example,
    load_task,
    load_text,
    read_predictions,
    write_predictions,
)

if TYPE_CHECKING:
    from distill.engine.reading import Answers, Reading
    from distill.models import ModelSource


def evaluate_model(
    model: str,
    task: str,
    *,
    data: str = "demo",
    predictions: str | Path | None = None,
    max_length: int = 128,
    batch_size: int = 64,
    revision: str | None = None,
    architecture: Architecture = "encoder",
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Score a fine-tuned model on a task's dev split.

    Args:
        model: a folder, `package:…` or hub id with a trained head.
        task: a key of `distill.tasks.TASKS`.
        data: "demo", "hub", or a folder of official jsonl files; for the task "text" a text file, or a folder of them,
            all of which is scored.
        predictions: where to write the answers.
        max_length: longest input in tokens; longer ones are cut and counted.
        batch_size: examples of a forward pass.
        revision: the model's hub revision.
        architecture: "encoder" (with a classifier), "decoder" (chooses the likeliest answer) or "encoder_decoder"
            (writes it).
        progress: told how far it is.
        trust_remote_code: run the Python files beside the weights, as `Teacher.load` takes it.

    Returns:
        `{"task", "metrics", "majority", "n", "truncated", "notes"}`, metrics as shares of 1.

    Raises:
        ModelError: the model is missing or not fine-tuned for such labels.
        DataError: the data is missing or malformed.
    """
    from distill.engine.reading import reading_of
    from distill.models import find_model

    source: Literal["demo", "folder", "hub"] = data if data in ("demo", "hub") else "folder"  # type: ignore[assignment]
    if task == PLAIN_TEXT.name:
        loaded = load_text(data, validation=data, characters=CHARACTERS_A_TOKEN * max_length)
    else:
        loaded = load_task(task, source=source, path=data if source == "folder" else None)
    reading = reading_of(architecture, loaded.task, max_length=max_length, batch_size=batch_size)
    source_files = find_model(model, revision, trust_remote_code=trust_remote_code)
    said = answered(reading, source_files, loaded.validation, progress or Silent())
    answers = said.answers
    if predictions is not None:
        write_predictions(predictions, answers)
    return {
        "task": task,
        **_scored(task, answers),
        "majority": loaded.task.majority(loaded.train, loaded.validation),
        "n": len(answers),
        "truncated": said.truncated,
        "diagnostic": task in DIAGNOSTICS,
        "notes": list(loaded.notes),
    }


def answered(reading: Reading, model: ModelSource, examples: list[Example], progress: Progress) -> Answers:
    """What a fine-tuned model answers.

    Args:
        reading: of the task. Its labels are the model's: the diagnostics are answered by an RTE model, in RTE's.
        model: its files.
        examples: of the task.
        progress: told how far it is.

    Raises:
        ModelError: the model is not fine-tuned for such labels.
    """
    from distill.models import Teacher
    from distill.processes import new_accelerator

    judge = Teacher.load(model, kind=reading.head, labels=reading.task.labels)
    judge.model.to(new_accelerator().device)
    progress.begin(reading.task.name, len(examples))
    said = reading.answer(examples, judge, progress)
    progress.end(f"{len(examples):,} examples")
    return said


def score_predictions(task: str, predictions: str | Path) -> dict[str, Any]:
    """The metrics of stored answers, recomputed.

    Raises:
        DataError: the file is missing, malformed, or of another task.
    """
    answers = read_predictions(predictions)
    return {"task": task, **_scored(task, answers), "n": len(answers)}


def _scored(task: str, answers: Sequence[Answer]) -> dict[str, Any]:
    """The metrics, and for plain text perplexity and bits a byte beside them."""
    beside = {"language": PLAIN_TEXT.beside(answers)} if task == PLAIN_TEXT.name else {}
    return {"metrics": TASKS[task].score(answers), **beside}
