"""A whole run: teachers, students and baselines on every task, then the report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from distill.errors import MismatchError, RecipeError
from distill.models.source import trusted_repositories
from distill.processes import Processes, new_accelerator
from distill.progress import Progress, Silent
from distill.recipe import Recipe, read_recipe, recipe_sha256, write_recipe
from distill.recipe.surroundings import onnx_mistakes, tracker_mistakes
from distill.recipe_data import load_recipe_data
from distill.report import Report, read_report, write_report
from distill.run_folder import RunFolder, read_json, write_json, write_text
from distill.runs.corpus import Corpus
from distill.runs.facts import data_facts, excerpts, measurements
from distill.runs.job import Job
from distill.runs.onnx_files import export_students, measure_onnx
from distill.runs.trackers import open_trackers
from distill.runs.workbench import Workbench
from distill.tasks import DIAGNOSTICS, TASKS, TaskData

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from distill.cache import CacheSummary


def run(
    recipe: Recipe,
    folder: str | Path | None = None,
    *,
    progress: Progress | None = None,
    trust_remote_code: Iterable[str] = (),
) -> Report:
    """Do everything a recipe asks for, in a folder of its own; what an earlier call finished is kept.

    Args:
        recipe: from `read_recipe`, or built in Python.
        folder: where to work; default the recipe's `output`, or `runs/<name>`.
        progress: told where the run is; default nothing.
        trust_remote_code: `OWNER/NAME@COMMIT` of each hub repository whose own Python code may be run where the recipe
            names it, with all that you may do on this machine: give those that you have read.

    Returns:
        The report, also written as report.json, report.html, report.md and compression.png.

    Raises:
        RecipeError: the folder holds another recipe's run.
        DataError, ModelError, CheckpointError, NumericsError, ResourceError: each says what and where in one line.
    """
    trusted = trusted_repositories(trust_remote_code)
    with _opened(recipe, folder, progress) as (run_folder, data, accelerator, told):
        processes = Processes(accelerator)
        for bench in _benches(recipe, run_folder, data, accelerator, told, trusted):
            bench.fit_teacher()
            for seed in recipe.seeds:
                bench.fit_student(seed)
                if recipe.baseline:
                    bench.fit_baseline(seed)

        def finish() -> None:
            if not run_folder.is_measured:
                _measure(recipe, run_folder, data, accelerator.device, trusted, told)
            write_json(run_folder.excerpts, excerpts(recipe, run_folder, data))
            try:
                if recipe.onnx:
                    export_students(recipe, run_folder, data, trusted, told)
            finally:  # the run is finished, whatever becomes of this
                write_report(run_folder.path)

        processes.first(finish)
        return read_report(run_folder.path)


def measure_again(
    folder: str | Path, *, progress: Progress | None = None, trust_remote_code: Iterable[str] = ()
) -> None:
    """Measure what the models of a finished run cost to run, here and now, and write measurements.json anew.

    Args:
        folder: of the run. Its teacher and its data must still be where its recipe says.
        progress: told where the work is; default nothing.
        trust_remote_code: as `run` takes it.

    Raises:
        DistillError: the run is not finished.
        MismatchError: the data is no longer what the run was made with.
        DataError, ModelError: what is gone.
    """
    _quiet_libraries()
    run_folder = RunFolder(folder)
    recipe = read_recipe(run_folder.recipe, check_surroundings=False)
    known = read_json(run_folder.measurements) and read_json(run_folder.data)["tasks"]
    with run_folder.locked():
        data = load_data(recipe)
        for name in recipe.data.tasks:
            if data[name].sha256 != known[name]["sha256"]:
                raise MismatchError(
                    f"{run_folder.data}: the data of {TASKS[name].title} is not what this run was made with; "
                    "put that back to measure the run again"
                )
        trusted, told = trusted_repositories(trust_remote_code), progress or Silent()
        _measure(recipe, run_folder, data, new_accelerator().device, trusted, told)
        if run_folder.onnx.is_file():
            measure_onnx(recipe, run_folder, data, trusted, told)


def _measure(
    recipe: Recipe,
    folder: RunFolder,
    data: dict[str, TaskData],
    device: torch.device,
    trusted: Mapping[str, str],
    told: Progress,
) -> None:
    told.begin("measuring", 1)
    write_json(folder.measurements, measurements(recipe, folder, data, device, trusted))
    told.end("size, latency and memory")


def write_teacher_caches(
    recipe: Recipe,
    folder: str | Path | None = None,
    *,
    progress: Progress | None = None,
    trust_remote_code: Iterable[str] = (),
) -> dict[str, CacheSummary]:
    """Fit or take the teachers of a recipe with `teacher.cache`, and write what they say; `run` goes on from there.

    Args:
        recipe: from `read_recipe`, or built in Python.
        folder: of the run, as `run` takes it.
        progress: told where the work is; default nothing.
        trust_remote_code: as `run` takes it.

    Returns:
        What each teacher's cache holds, by the name of its fit.

    Raises:
        RecipeError: the recipe has no `teacher.cache`, or the folder holds another recipe's run.
        DataError, ModelError, CheckpointError, NumericsError: each says what and where in one line.
    """
    if recipe.teacher.cache is None:
        raise RecipeError(["teacher.cache: is missing; say what to keep, such as teacher.cache={keep: full}"])
    trusted = trusted_repositories(trust_remote_code)
    summaries: dict[str, CacheSummary] = {}
    with _opened(recipe, folder, progress) as (run_folder, data, accelerator, told):
        for bench in _benches(recipe, run_folder, data, accelerator, told, trusted):
            bench.fit_teacher()
            summaries |= bench.write_caches()
    return summaries


@contextlib.contextmanager
def _opened(
    recipe: Recipe, folder: str | Path | None, progress: Progress | None
) -> Iterator[tuple[RunFolder, dict[str, TaskData], Accelerator, Progress]]:
    """A run's folder, locked and claimed for the recipe, its data, and who works on it."""
    _quiet_libraries()
    from distill.environment import describe_environment

    run_folder = RunFolder(folder or recipe.folder)
    # Accelerate would leave out a tracker that is not there.
    missing = tracker_mistakes(recipe.report_to)
    if missing:
        raise RecipeError([f"report_to: {message}" for _, message in missing])
    if lacks := onnx_mistakes(recipe.onnx):
        raise RecipeError([f"onnx: {message}" for _, message in lacks])
    accelerator = new_accelerator(recipe.report_to, run_folder.path / "trackers")
    processes = Processes(accelerator)
    told = (progress or Silent()) if processes.main else Silent()
    with processes.failing_together(), contextlib.ExitStack() as held:
        processes.first(lambda: _enter(held, run_folder))
        data = load_data(recipe)

        def claim() -> None:
            _claim(run_folder, recipe)
            write_json(run_folder.environment, describe_environment())
            write_json(run_folder.data, data_facts(recipe, data))

        processes.first(claim)
        yield run_folder, data, accelerator, told


def _enter(held: contextlib.ExitStack, folder: RunFolder) -> None:
    held.enter_context(folder.locked())


def _benches(
    recipe: Recipe,
    folder: RunFolder,
    data: dict[str, TaskData],
    accelerator: Accelerator,
    told: Progress,
    trusted: Mapping[str, str],
) -> Iterator[Workbench]:
    """A workbench for each task, one after the other."""
    corpus = Corpus(recipe, [data[name] for name in recipe.data.tasks])
    with open_trackers(recipe, folder, accelerator, told) as trackers:
        for name in recipe.data.tasks:
            diagnostics = _diagnostics_of(name, data)
            job = Job(recipe, folder, data[name], diagnostics, corpus, accelerator, told, trusted, trackers)
            yield Workbench(job)


def load_data(recipe: Recipe) -> dict[str, TaskData]:
    """Every task of the recipe, and the diagnostics its RTE model answers where the source has them."""
    wanted = recipe.data

    data: dict[str, TaskData] = {
        name: load_recipe_data(wanted, name) for name in TASKS if name in wanted.tasks
    }
    if wanted.diagnostics and "rte" in data and wanted.source != "demo":
        for name in DIAGNOSTICS:
            if wanted.source == "hub" or _has_folder(wanted.path, name):
                data[name] = load_recipe_data(wanted, name)
    return data


def _has_folder(path: str | None, name: str) -> bool:
    return path is not None and (Path(path) / TASKS[name].title).is_dir()


def _diagnostics_of(name: str, data: dict[str, TaskData]) -> list[TaskData]:
    return [data[diagnostic] for diagnostic in DIAGNOSTICS if diagnostic in data] if name == "rte" else []


def _claim(folder: RunFolder, recipe: Recipe) -> None:
    """Write the recipe down, or check that the folder's run is this recipe's."""
    text = write_recipe(recipe)
    if folder.recipe.is_file():
        if recipe_sha256(read_recipe(folder.recipe, check_surroundings=False)) != recipe_sha256(recipe):
            raise RecipeError(
                [
                    f"{folder.recipe}: this folder holds the run of another recipe; choose another --out or remove it"
                ]
            )
        return
    write_text(folder.recipe, text)


def _quiet_libraries() -> None:
    """Warnings that a user can do nothing about."""
    import logging

    logging.getLogger("accelerate").setLevel(logging.ERROR)
