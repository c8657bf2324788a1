"""Scoring fine-tuned models outside a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distill.disk import refuse_links_out
from distill.errors import DataError
from distill.independent_check import check_independently, reason_against, refuse_unchecked
from distill.progress import Progress, Silent
from distill.recipe import Architecture, DataRecipe, read_recipe
from distill.recipe.data import CHARACTERS_A_TOKEN
from distill.recipe_data import load_recipe_data
from distill.run_folder import RunFolder
from distill.tasks import (
    DIAGNOSTICS,
    PLAIN_TEXT,
    TASKS,
    Answer,
    Example,
    Task,
    TaskData,
    load_task,
    load_text,
    read_predictions,
    write_predictions,
)
from distill.tasks.sources import read_rows

if TYPE_CHECKING:
    from distill.engine.reading import Answers, Reading
    from distill.models import ModelSource, Teacher

Check = Literal["lm-eval"]
Source = Literal["demo", "folder", "hub"]


def evaluate_model(
    model: str,
    task: str,
    *,
    data: str = "demo",
    predictions: str | Path | None = None,
    max_length: int | None = None,
    batch_size: int = 64,
    revision: str | None = None,
    architecture: Architecture = "encoder",
    validation_examples: int | None = None,
    check: Check | None = None,
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
        max_length: longest input in tokens; longer ones are cut and counted. None: 128, or with `check` as many as the
            model reads.
        batch_size: examples of a forward pass.
        revision: the model's hub revision.
        architecture: "encoder" (with a classifier), "decoder" (chooses the likeliest answer) or "encoder_decoder"
            (writes it).
        validation_examples: only so many units from the start (whole questions, queries, minimal pairs).
        check: "lm-eval": ask lm-evaluation-harness too (`check_independently`; a decoder).
        progress: told how far it is.
        trust_remote_code: run the Python files beside the weights, as `Teacher.load` takes it.

    Returns:
        `{"task", "metrics", "majority", "n", "truncated", "notes"}`, metrics as shares of 1; with `check` also
        `"lm_eval"`, the fields of `IndependentCheck`.

    Raises:
        ModelError: the model is missing or not fine-tuned for such labels.
        DataError: the data is missing or malformed, or `check` cannot be had.
    """
    from distill.models import find_model

    if check is not None:
        refuse_unchecked(task, architecture)
    source: Source = data if data in ("demo", "hub") else "folder"  # type: ignore[assignment]
    path = data if source == "folder" else None
    if task == PLAIN_TEXT.name:
        characters = CHARACTERS_A_TOKEN * (max_length or 128)
        loaded = load_text(
            data, validation=data, characters=characters, validation_examples=validation_examples
        )
    else:
        loaded = load_task(task, source=source, path=path, validation_examples=validation_examples)
    return _evaluated(
        find_model(model, revision, trust_remote_code=trust_remote_code),
        loaded,
        None if check is None else lambda: read_rows(loaded.task, "validation", source, path, None, 0)[0],
        architecture=architecture,
        max_length=max_length,
        batch_size=batch_size,
        predictions=predictions,
        progress=progress or Silent(),
    )


def evaluate_run(
    run: str | Path,
    *,
    tasks: Sequence[str] = (),
    max_length: int | None = None,
    batch_size: int | None = None,
    validation_examples: int | None = None,
    check: Check | None = None,
    progress: Progress | None = None,
    trust_remote_code: Iterable[str] = (),
) -> dict[str, dict[str, Any]]:
    """Score a run's students (those of its first seed) again, on its data and as its recipe reads tasks.

    Args:
        run: the run's folder.
        tasks: of the run. None of them: all, where those that `check` cannot do are scored and say so in their notes.
        max_length: longest input in tokens. None: the recipe's.
        batch_size: examples of a forward pass. None: the recipe's.
        validation_examples: only so many units from the start. None: the recipe's.
        check: as `evaluate_model` takes it.
        progress: told how far it is.
        trust_remote_code: `OWNER/NAME@COMMIT` of each hub repository whose own Python code may be run, as `run` takes it.

    Returns:
        By task what `evaluate_model` returns.

    Raises:
        ModelError: a student is missing or damaged.
        DataError: the data is missing or malformed, the run has no such task, or `check` cannot be had.
    """
    from distill.models.source import find_trained, trusted_repositories

    folder = RunFolder(run)
    refuse_links_out(folder.path)
    recipe = read_recipe(folder.recipe, check_surroundings=False)
    wanted = recipe.data
    for name in tasks:
        if name not in wanted.tasks:
            raise DataError(f"{folder.path}: has no task {name}; its tasks are {', '.join(wanted.tasks)}")
    names = list(tasks or wanted.tasks)
    reasons: dict[str, str] = {}
    if check is not None:
        found = {name: reason_against(name, recipe.architecture, chat=wanted.chat) for name in names}
        reasons = {name: reason for name, reason in found.items() if reason is not None}
        for name in names if tasks or len(reasons) == len(names) else set(names) - set(reasons):
            refuse_unchecked(name, recipe.architecture, chat=wanted.chat)
    results = {}
    for name in names:
        loaded = load_recipe_data(
            wanted
            if validation_examples is None
            else replace(wanted, validation_examples=validation_examples),
            name,
        )
        results[name] = _evaluated(
            find_trained(folder.model("student", name), trusted_repositories(trust_remote_code)),
            loaded,
            None if check is None or name in reasons else partial(_rows_of, wanted, loaded.task),
            architecture=recipe.architecture,
            chat=wanted.chat,
            max_length=max_length or wanted.max_length,
            batch_size=batch_size or recipe.train.per_device_eval_batch_size,
            progress=progress or Silent(),
        )
        if name in reasons:
            results[name]["notes"].append(f"{loaded.task.title}: not checked with lm-eval: {reasons[name]}")
    return results


def _rows_of(wanted: DataRecipe, task: Task) -> Sequence[Mapping[str, Any]]:
    """The official rows that a recipe's validation examples were read from."""
    source: Any = wanted.source  # not text, which is never checked
    return read_rows(task, "validation", source, wanted.path, wanted.revision, wanted.seed)[0]


def _evaluated(
    model: ModelSource,
    loaded: TaskData,
    rows: Callable[[], Sequence[Mapping[str, Any]]] | None,
    *,
    architecture: Architecture,
    max_length: int | None,
    batch_size: int,
    progress: Progress,
    chat: bool = False,
    predictions: str | Path | None = None,
) -> dict[str, Any]:
    """Score a model on loaded examples, and have it checked where there are the rows for that."""
    from distill.engine.reading import reading_of

    task = loaded.task
    reading = reading_of(architecture, task, max_length=max_length or 128, batch_size=batch_size, chat=chat)
    judge = judge_of(reading, model)
    if rows is not None and max_length is None:
        reading.max_length = getattr(judge.model.config, "max_position_embeddings", None) or 2048
    said = asked(reading, judge, loaded.validation, progress)
    if predictions is not None:
        write_predictions(predictions, said.answers)
    result = {
        "task": task.name,
        **_scored(task.name, said.answers),
        "majority": task.majority(loaded.train, loaded.validation),
        "n": len(said.answers),
        "truncated": said.truncated,
        "diagnostic": task.name in DIAGNOSTICS,
        "notes": list(loaded.notes),
    }
    if rows is not None:
        checked = check_independently(
            judge,
            task,
            loaded.validation,
            said.answers,
            rows(),
            max_length=reading.max_length,
            batch_size=batch_size,
            progress=progress,
        )
        result["lm_eval"] = asdict(checked)
    return result


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
    return asked(reading, judge_of(reading, model), examples, progress)


def judge_of(reading: Reading, model: ModelSource) -> Teacher:
    """A fine-tuned model that answers as a task is read, on this process's device.

    Raises:
        ModelError: the model is not fine-tuned for such labels.
    """
    from distill.models import Teacher
    from distill.processes import new_accelerator

    judge = Teacher.load(model, kind=reading.head, labels=reading.task.labels)
    judge.model.to(new_accelerator().device)
    return judge


def asked(reading: Reading, judge: Teacher, examples: list[Example], progress: Progress) -> Answers:
    """What a loaded model answers."""
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
