"""The figures of training in experiment trackers: TensorBoard, trackio, Weights & Biases, …, by way of accelerate's.

A run of distill is one run there. Every metric's name begins with its fit's: `student-rte-seed0/loss`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from distill.disk import refused
from distill.errors import RecipeError
from distill.progress import Progress, Silent
from distill.recipe import Recipe, recipe_sha256
from distill.recipe.paths import public_name
from distill.run_folder import RunFolder, write_text

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker


class Trackers:
    """Tells figures to trackers, each figure once, also where a continued run makes some of them again.

    Args:
        folder: where it is written down what each tracker has been told.
        trackers: started ones.
        progress: told of a tracker that fails: the run goes on without it.
    """

    def __init__(
        self,
        folder: Path,
        trackers: Sequence[GeneralTracker] = (),
        progress: Progress | None = None,
    ):
        self._folder = folder
        self._trackers = list(trackers)
        self._progress = progress or Silent()
        self._told = {tracker.name: _marks(self._file(tracker)) for tracker in trackers}

    def log(self, fit: str, figures: Mapping[str, Any]) -> None:
        """Tell the figures of one step of a fit: what stands in a line of metrics.jsonl.

        Args:
            fit: its name.
            figures: "step", and figures by name.
        """
        step = int(figures["step"])
        values = {f"{fit}/{name}": value for name, value in figures.items() if name != "step"}
        mark = f"{step} {next(iter(values))}"
        for tracker in list(self._trackers):
            if mark in self._told[tracker.name]:
                continue
            with self._or_without(tracker):
                _send(tracker, fit, values, step)
                self._told[tracker.name].add(mark)
                with refused(self._file(tracker)), self._file(tracker).open("a", encoding="utf-8") as stream:
                    stream.write(f"{mark}\n")

    def describe(self, values: Mapping[str, Any]) -> None:
        """Tell what the run is, where that is not known yet."""
        for tracker in list(self._trackers):
            # TensorBoard would write it down once more.
            if not (tracker.name == "tensorboard" and self._told[tracker.name]):
                with self._or_without(tracker):
                    tracker.store_init_configuration(dict(values))

    def finish(self) -> None:
        """Close them."""
        for tracker in list(self._trackers):
            with self._or_without(tracker):
                tracker.finish()
        self._trackers = []

    def _file(self, tracker: GeneralTracker) -> Path:
        return self._folder / f"{tracker.name}.told"

    @contextlib.contextmanager
    def _or_without(self, tracker: GeneralTracker) -> Iterator[None]:
        """A tracker that fails is left out from here on: a run is not worth less than its curves."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a network or somebody's package raises
            self._trackers.remove(tracker)
            self._progress.say(f"report_to {tracker.name}: gets no more figures ({_line(error)})")


@contextlib.contextmanager
def open_trackers(
    recipe: Recipe, folder: RunFolder, accelerator: Accelerator, progress: Progress
) -> Iterator[Trackers | None]:
    """The trackers that a recipe names, finished in the end; None where it names none, and but in the main process.

    Raises:
        RecipeError: one of them cannot be started.
    """
    place = folder.path / "trackers"
    if not recipe.report_to or not accelerator.is_main_process:
        yield None
        return
    name = _name(place)
    try:
        accelerator.init_trackers(
            recipe.name,
            # wandb keeps its own folder, ./wandb or WANDB_DIR: it links to files elsewhere, which a run's folder may not.
            init_kwargs={
                "mlflow": {"run_name": name},  # which cannot be taken up again: a continued run is one more
                "wandb": {"id": name, "name": name, "resume": "allow"},
                "trackio": {"name": name, "resume": "allow"},
            },
        )
    except Exception as error:
        raise RecipeError([f"report_to: a tracker cannot be started ({_line(error)})"]) from error
    trackers = Trackers(place, accelerator.trackers, progress)
    try:
        trackers.describe(description(recipe))
        yield trackers
    finally:
        # Not accelerator.end_training, which also ends the group of processes, and with it whatever follows in a script.
        trackers.finish()
        accelerator.trackers = []


def description(recipe: Recipe) -> dict[str, str | int | float | bool]:
    """What trackers are told of a recipe: nothing that names this machine's folders."""
    student = recipe.student
    start = "from_teacher" if student.from_teacher is not None else "config"
    train = {f"train.{name}": value for name, value in asdict(recipe.train).items() if name != "per_task"}
    found = {
        "name": recipe.name,
        "recipe_sha256": recipe_sha256(recipe),
        "architecture": recipe.architecture,
        "source": recipe.data.source,
        "tasks": list(recipe.data.tasks),
        "max_length": recipe.data.max_length,
        "teacher": recipe.teacher.name,
        "student": start if student.model is None else public_name(student.model),
        "loss": [asdict(term) for term in recipe.loss],
        "seeds": list(recipe.seeds),
        **train,
    }
    return {
        name: value if isinstance(value, str | int | float) else json.dumps(value)
        for name, value in found.items()
        if value is not None
    }


def _send(tracker: GeneralTracker, fit: str, values: Mapping[str, Any], step: int) -> None:
    """One call of a tracker. Weights & Biases knows one step for all metrics, which must not fall from fit to fit."""
    if tracker.name != "wandb":
        tracker.log(dict(values), step=step)
        return
    own = f"{fit}/step"
    tracker.tracker.define_metric(f"{fit}/*", step_metric=own)
    tracker.log({**values, own: step})


def _marks(path: Path) -> set[str]:
    """What a tracker has been told; of a line that was torn nobody knows, so it is told again."""
    if not path.is_file():
        return set()
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    return set(lines)


def _name(folder: Path) -> str:
    """The run's name in the trackers, made up once: a continued run is the same one there."""
    path = folder / "name"
    if not path.is_file():
        write_text(path, f"{uuid4().hex[:12]}\n")
    return path.read_text(encoding="utf-8").strip()


def _line(error: Exception) -> str:
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first}"[:300]
