"""The files of one run, and how they are named. Everything a report says is computed from them alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from distill.disk import locked, reason_of, sha256_of, whole
from distill.errors import CheckpointError, DistillError, ResourceError
from distill.manifest import is_sealed, sealed_text

Role = Literal["teacher", "student", "baseline"]
ONNX_FILE = "onnx/model.onnx"  # in a student's folder, where the hub looks for it


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
        self.excerpts = self.path / "excerpts.json"
        self.onnx = self.path / "onnx.json"

    def fit(self, name: str) -> Path:
        """What is known about a finished fit."""
        return self.path / "fits" / f"{name}.json"

    def write_fit(self, name: str, record: Mapping[str, Any]) -> None:
        """Write down what is known about a finished fit, with the sha256 of its answers and of the record itself."""
        answers = sorted((self.path / "predictions").glob(f"{name}.*"))
        write_text(
            self.fit(name),
            sealed_text({**record, "answers": {path.name: sha256_of(path) for path in answers}}),
        )

    def read_fit(self, name: str) -> dict[str, Any]:
        """What is known about a finished fit.

        Raises:
            DistillError: there is none.
            CheckpointError: the record is damaged, or one of the answers.
        """
        path, again = self.fit(name), "; remove it, and `distill run` makes this fit again"
        record = read_json(path)
        if "sha256" not in record:
            raise CheckpointError(f"{path}: was made by an older version, without a sha256{again}")
        if not is_sealed(path.read_text(encoding="utf-8")):
            raise CheckpointError(f"{path}: is damaged (its content has another sha256){again}")
        for answers, digest in record["answers"].items():
            file = self.path / "predictions" / answers
            if file.is_file() and sha256_of(file) != digest:
                raise CheckpointError(f"{file}: is damaged (its sha256 is not the one in {path.name}){again}")
        return record

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; none where there is no such file. A line that was torn is left out."""
        if not self.metrics.is_file():
            return []
        found = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                found.append(entry)
        return found

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
            DistillError: another process is at work there.
            ResourceError: the folder cannot be written.
        """
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(self.path))
            except OSError as error:
                reason, cure = reason_of(error) or (str(error), "")
                raise ResourceError(
                    f"{self.path}: cannot be written ({reason}); {cure}, or choose another --out"
                ) from error
            yield


def fit_name(role: Role, task: str, seed: int, member: int | None = None) -> str:
    """`teacher-rte`; `student-rte-seed0`. A run has one teacher a task, or several: `teacher0-rte`, `teacher1-rte`."""
    if role == "teacher":
        return f"teacher{'' if member is None else member}-{task}"
    return f"{role}-{task}-seed{seed}"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one object as `write_text` writes.

    Raises:
        ResourceError: it cannot be written; the old file stands.
    """
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write aside and rename: a reader sees the old file or the new one, never half of one.

    Raises:
        ResourceError: it cannot be written; the old file stands.
    """
    with whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


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
