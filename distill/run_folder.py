"""The files of one run, and how they are named. Everything a report says is computed from them alone."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from distill.disk import locked
from distill.errors import DistillError

Role = Literal["teacher", "student", "baseline"]


class RunFolder:
    """Paths inside a run's folder.

    A *fit* is one model trained on (or loaded for) one task: `teacher-rte`, `student-rte-seed0`.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.environment = self.path / "environment.json"
        self.data = self.path / "data.json"
        self.measurements = self.path / "measurements.json"
        self.metrics = self.path / "metrics.jsonl"
        self.report = self.path / "report.json"
        self.preflight = self.path / "preflight.json"

    def fit(self, name: str) -> Path:
        """What is known about a finished fit."""
        return self.path / "fits" / f"{name}.json"

    def predictions(self, name: str, task: str) -> Path:
        """A fit's answers on a task's validation examples (the RTE fit also answers the diagnostics)."""
        return self.path / "predictions" / f"{name}.{task}.jsonl"

    def choices(self, name: str) -> Path:
        """Of a teacher of plain text: the token it found likeliest at each place of the validation passages."""
        return self.path / "predictions" / f"{name}.choices.safetensors"

    def checkpoints(self, name: str) -> Path:
        """Where an unfinished fit keeps its checkpoints."""
        return self.path / "checkpoints" / name

    def model(self, role: Role, task: str, member: int | None = None) -> Path:
        """A model folder for transformers' auto classes: the teacher (or one of several), or the first seed's student."""
        return self.path / (role if member is None else f"{role}{member}") / task

    @property
    def is_measured(self) -> bool:
        """Whether all is known of what the models cost to run; early versions measured less."""
        return self.measurements.is_file() and "measured" in read_json(self.measurements)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process from working in the same folder at the same time.

        Raises:
            DistillError: another process is at work there, or the folder cannot be written.
        """
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(self.path))
            except OSError as error:
                raise DistillError(
                    f"{self.path}: cannot be written ({error.strerror}); choose another --out"
                ) from error
            yield


def fit_name(role: Role, task: str, seed: int, member: int | None = None) -> str:
    """`teacher-rte`; `student-rte-seed0`. A run has one teacher a task, or several: `teacher0-rte`, `teacher1-rte`."""
    if role == "teacher":
        return f"teacher{'' if member is None else member}-{task}"
    return f"{role}-{task}-seed{seed}"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write aside and rename: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".writing-{path.name}")
    try:
        aside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise DistillError(f"{path}: cannot be written ({error.strerror}); free some space there") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of the run.

    Raises:
        DistillError: it is missing or not JSON.
    """
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DistillError(
            f"{path}: is missing; is this a finished run's folder? `distill run` finishes it"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DistillError(f"{path}: cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise DistillError(f"{path}: cannot be read (it is no JSON object)")
    return value
