"""A zip for the SuperGLUE leaderboard, answered by one fine-tuned model a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distill.disk import refuse_links_out
from distill.errors import DataError, ModelError
from distill.evaluate import answered
from distill.models.source import find_trained, find_trusted, is_model, trusted_repositories
from distill.progress import Progress, Silent
from distill.recipe import Architecture, read_recipe
from distill.recipe.surroundings import looks_like_folder
from distill.run_folder import RunFolder
from distill.tasks import (
    DIAGNOSTICS,
    LEADERBOARD,
    TASKS,
    Example,
    Submission,
    check_submission,
    load_test,
    write_submission,
)
from distill.tasks.sources import has_file

if TYPE_CHECKING:
    from distill.models.source import ModelSource


def submit(
    models: str,
    path: str | Path,
    *,
    data: str,
    partial: bool = False,
    architecture: Architecture | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    trust_remote_code: Iterable[str] = (),
) -> dict[str, Any]:
    """Answer the official test sets and write the answers as the leaderboard wants them.

    Args:
        models: a run's folder, whose students answer as its recipe reads tasks; or a model's name with `{task}` in it,
            such as runs/mine/teacher/{task}. The model of rte answers the diagnostics too.
        path: of the zip.
        data: "hub", or a folder of official jsonl files with test.jsonl.
        partial: leave out the tasks that have no model or no official test file, rather than refuse; the leaderboard
            refuses such a zip.
        architecture: None: the recipe's, or "encoder".
        max_length: longest input in tokens. None: the recipe's, or 128.
        batch_size: examples of a forward pass. None: the recipe's, or 64.
        progress: told how far it is.
        trust_remote_code: `OWNER/NAME@COMMIT` of each hub repository whose own Python code may be run, as `run` takes it.

    Returns:
        `{"submission", "units", "unnamed", "truncated", "missing"}`; the middle three by task, the last a list of lines.

    Raises:
        ModelError: a model is missing or not fine-tuned for its task.
        DataError: a test file is missing, not the official one, or malformed; or nothing can be answered.
        ResourceError: the zip cannot be written.
    """
    from distill.engine.reading import reading_of

    trusted = trusted_repositories(trust_remote_code)
    folder, chat = RunFolder(models), False
    if folder.recipe.is_file():
        refuse_links_out(folder.path)
        recipe = read_recipe(folder.recipe, check_surroundings=False)
        models, chat = str(folder.path / "student" / "{task}"), recipe.data.chat
        architecture = architecture or recipe.architecture
        max_length = max_length or recipe.data.max_length
        batch_size = batch_size or recipe.train.per_device_eval_batch_size
    if "{task}" not in models:
        raise ModelError(
            f"{models}: is no run's folder; for a submission give one, or a name with {{task}} in it"
        )
    tests, missing = _tests(data)
    for name in list(tests):
        if _is_missing(_model_of(models, name)):
            del tests[name]
            missing.append(f"{_model_of(models, name)} holds no model for {TASKS[name].title}")
    if missing and not partial:
        raise DataError(
            f"{path}: the leaderboard takes all of {len(LEADERBOARD)} files; {'; '.join(missing)} "
            "(--partial writes the others)"
        )
    if not tests:
        raise DataError(f"{path}: there is nothing to answer; {'; '.join(missing)}")
    answers, truncated = {}, {}
    for name, examples in tests.items():
        reading = reading_of(
            architecture or "encoder",
            TASKS[name],
            max_length=max_length or 128,
            batch_size=batch_size or 64,
            chat=chat,
        )
        source = _source(_model_of(models, name), trusted)
        said = answered(reading, source, examples, progress or Silent())
        answers[name], truncated[name] = said.answers, said.truncated
    written = write_submission(path, answers, tests)
    return _told(written) | {"truncated": truncated, "missing": missing}


def check(path: str | Path, *, data: str, partial: bool = False) -> dict[str, Any]:
    """Check a zip, whoever made it, against the official test sets.

    Args:
        path: of the zip.
        data: "hub", or a folder of official jsonl files with test.jsonl.
        partial: expect the files of the tasks whose official test file is there.

    Returns:
        As `submit`, without "truncated".

    Raises:
        DataError: the first thing that is wrong with it.
    """
    tests, missing = _tests(data)
    if missing and not partial:
        raise DataError(
            f"{path}: cannot be checked as a whole; {'; '.join(missing)} (--partial checks the others)"
        )
    return _told(check_submission(path, tests)) | {"missing": missing}


def _told(found: Submission) -> dict[str, Any]:
    facts = asdict(found)
    return {"submission": str(facts.pop("path")), **facts}


def _tests(data: str) -> tuple[dict[str, list[Example]], list[str]]:
    """The test sets that are there, and a line for each that is not."""
    if data == "demo":
        raise DataError("--data demo: has no test sets; give hub, or the folder of the official files")
    source: Literal["folder", "hub"] = "hub" if data == "hub" else "folder"
    tests, missing = {}, []
    if source == "folder" and not Path(data).is_dir():
        raise DataError(f"--data {data}: no such folder; give hub, or the folder of the official files")
    for name in LEADERBOARD:
        if source == "folder" and not has_file(TASKS[name], "test", Path(data)):
            missing.append(f"{data} has no test file of {TASKS[name].title}")
            continue
        examples, wrong = load_test(name, source=source, path=data)
        if wrong:
            missing.append(wrong)
        else:
            tests[name] = examples
    return tests, missing


def _model_of(models: str, name: str) -> str:
    return models.replace("{task}", "rte" if name in DIAGNOSTICS else name)


def _source(model: str, trusted: Mapping[str, str]) -> ModelSource:
    return find_trained(Path(model), trusted) if is_model(Path(model)) else find_trusted(model, None, trusted)


def _is_missing(model: str) -> bool:
    """Whether a name can only be that of a folder here, and there is no model in it."""
    local = looks_like_folder(model) or ("/" in model and Path(model).parent.is_dir())
    return local and not is_model(Path(model))
