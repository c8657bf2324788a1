"""A disk that takes no more: one line, nothing half-written, the old file as it was, and the same call works later."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from distill.cache import CacheSpec, header_of, write_cache
from distill.disk import reason_of, shortage, whole
from distill.engine.checkpoint import latest_checkpoint, save_checkpoint
from distill.errors import CheckpointError, DistillError, ResourceError
from distill.models import NextTokens, Prediction
from distill.report.plot import plot_compression
from distill.run_folder import RunFolder, write_json, write_text
from distill.runs.cache import CacheEntry
from distill.runs.metrics_log import MetricsLog
from distill.tasks import Answer, write_predictions

Write = Callable[[Path, int], object]


def _checkpoint(folder: Path, number: int) -> None:
    save_checkpoint(folder, number, {"student": {"w": torch.full((5_000,), float(number))}}, {"owner": "a"})


def _predictions(folder: Path, number: int) -> None:
    answers = [
        Answer(id=f"{number}-{i}", group="", gold=0, logits=(0.1, 0.2), answer="no", golds=("no",))
        for i in range(50)
    ]
    write_predictions(folder / "predictions" / "rte.jsonl", answers)


def _plot(folder: Path, number: int) -> None:
    score = {"mean": 50.0 + number, "ci95": [40.0, 60.0]}
    models = {role: {"parameters": 10, "score": score} for role in ("teacher", "student")}
    report = {"name": "x", "majority": {"score": 40.0}, "data": {"score_name": "RTE"}, **models}
    plot_compression(report, folder / "compression.png")


def _shared(folder: Path, number: int) -> None:
    source = Path(__file__) if number == 1 else Path(__file__).with_name("conftest.py")
    with _no_links():
        CacheEntry(folder / "teacher-rte").put({"fit.json": source})


@contextlib.contextmanager
def _no_links() -> Iterator[None]:
    """As between two disks, where files are copied."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", refuse)
        yield


WRITERS: dict[str, Write] = {
    "checkpoint": _checkpoint,
    "json": lambda folder, number: write_json(folder / "fits" / "a.json", {"n": [number] * 5_000}),
    "text": lambda folder, number: write_text(folder / "report.md", f"{number}" * 20_000),
    "predictions": _predictions,
    "plot": _plot,
    "shared fit": _shared,
}
SMALL = 1_000  # bytes: less than any of these files


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to write more than so many bytes into any file, which needs no rights."""
    resource = pytest.importorskip("resource", reason="this platform limits no files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@dataclass
class Disk:
    """A file system of its own."""

    path: Path

    def mount(self, options: str) -> None:
        """Mount it, or mount it again with other options."""
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)], check=True, capture_output=True
        )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A small file system in memory."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a file system needs root")
    path = tmp_path / "disk"
    path.mkdir()
    made = Disk(path)
    try:
        made.mount("size=2m")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine mounts no file system: {error.stderr.decode().strip()}")
    try:
        yield made
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)


def refused(write: Write, folder: Path, reason: str) -> str:
    """Try to write, and return the one line that names the folder and the reason."""
    with pytest.raises(DistillError) as raised:
        write(folder, 2)
    line = str(raised.value)
    assert isinstance(raised.value, ResourceError | CheckpointError)
    assert "\n" not in line
    assert re.search(rf"{re.escape(str(folder))}.*: cannot be written \({reason}\); ", line), line
    return line


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_the_system_cuts_short(tmp_path, name):
    write, folder = WRITERS[name], tmp_path / "run"
    write(folder, 1)
    before = contents(folder)
    with largest_file(SMALL):
        line = refused(write, folder, "File too large")
    assert "ulimit -f" in line
    assert contents(folder) == before
    write(folder, 2)
    assert contents(folder) != before
    assert not [path for path in folder.rglob("*") if "writing" in path.name]


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk(disk, name):
    write, folder = WRITERS[name], disk.path / "run"
    write(folder, 1)
    before = contents(folder)
    ballast = disk.path / "ballast"
    with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    line = refused(write, folder, "No space left on device")
    assert "free some space there" in line
    assert contents(folder) == before
    ballast.unlink()
    write(folder, 2)
    assert contents(folder) != before


@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_can_only_be_read(disk, name):
    write, folder = WRITERS[name], disk.path / "run"
    write(folder, 1)
    before = contents(folder)
    disk.mount("remount,ro")
    line = refused(write, folder, "Read-only file system")
    assert "choose a folder that can be written" in line
    assert contents(folder) == before


@pytest.mark.parametrize("name", WRITERS)
def test_a_path_that_is_too_long(tmp_path, name):
    folder = tmp_path / ("x" * 300)
    line = refused(WRITERS[name], folder, "File name too long")
    assert "choose a shorter path" in line
    assert not folder.parent.joinpath("x" * 255).exists()


def test_older_checkpoints_stay_usable_when_the_next_does_not_fit(tmp_path):
    for step in (1, 2):
        _checkpoint(tmp_path, step)
    with largest_file(SMALL), pytest.raises(CheckpointError, match=r"checkpoint .*step-00000003: cannot be"):
        _checkpoint(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
    found, problems = latest_checkpoint(tmp_path, "a")
    assert found is not None
    assert (found.step, problems) == (2, [])
    assert torch.equal(found.tensors["student"]["w"], torch.full((5_000,), 2.0))


def test_a_torn_line_of_the_metrics_is_dropped_when_the_fit_continues(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, "student-rte-seed0")
    log({"step": 10, "loss": 0.5})
    whole_lines = path.read_text()
    with (
        largest_file(len(whole_lines) + 7),
        pytest.raises(ResourceError, match=r"metrics\.jsonl: cannot be written \(File too large\)"),
    ):
        log({"step": 20, "loss": 0.25})
    assert path.read_text().startswith(whole_lines)
    log.start_at(10)
    assert path.read_text() == whole_lines
    log({"step": 20, "loss": 0.25})
    whole_lines = path.read_text()
    with largest_file(3), pytest.raises(ResourceError, match=r"metrics\.jsonl: cannot be written"):
        log.start_at(10)
    assert path.read_text() == whole_lines
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.jsonl"]


class Tokens:
    """As much of a tokenizer as a data set needs."""

    pad_token_id = 0


def test_a_cache_that_no_longer_fits_goes_on_behind_its_last_whole_shard(tmp_path, teacher):
    asked = []

    def ask(batch) -> Prediction:
        asked.append(batch.index_B.tolist())
        rows = int(batch.rows_BT.sum())
        return Prediction(torch.arange(rows * 300.0).view(rows, 300))

    texts = NextTokens([[i, i + 1, i + 2] for i in range(1, 41)], None, Tokens())
    header = header_of(teacher.model, teacher.tokenizer, labels=("no", "yes"), max_length=32)

    def write(folder: Path, number: int = 0) -> object:
        return write_cache(folder, header, texts, ask, CacheSpec(), shard_bytes=5_000)

    straight = tmp_path / "straight"
    write(straight)
    asked.clear()
    folder = tmp_path / "starved"
    with pytest.MonkeyPatch.context() as patch:
        replace, shards = os.replace, []

        def full(source, target):
            shards.append(target)
            if len(shards) == 10:
                raise OSError(errno.EDQUOT, "Disk quota exceeded")
            replace(source, target)

        patch.setattr(os, "replace", full)
        line = refused(write, folder, "Disk quota exceeded")
    assert "your quota" in line
    assert not list(folder.glob(".writing*"))
    done = len(asked)
    write(folder)
    assert 0 < done < len(asked) < 2 * len(texts)
    assert contents(folder) == contents(straight)


def test_a_student_that_does_not_fit_is_said_in_one_line(tmp_path, new_student):
    folder = tmp_path / "student"
    with largest_file(20_000), pytest.raises(ResourceError) as raised:
        new_student().save(folder)
    assert str(raised.value) == (
        f"{folder}: cannot be written (File too large); raise the limit on the size of a file (ulimit -f), then run "
        "again to continue"
    )


def test_a_run_folder_that_cannot_be_made_is_said_in_one_line(disk, tmp_path):
    disk.mount("remount,ro")
    for folder, reason in (
        (disk.path / "run", "Read-only file system"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with (
            pytest.raises(
                ResourceError, match=rf"cannot be written \({reason}\); .*, or choose another --out$"
            ),
            RunFolder(folder).locked(),
        ):
            pass


def half_write(path: Path, error: BaseException) -> None:
    with whole(path) as aside:
        aside.write_text("half")
        raise error


@pytest.mark.parametrize(
    ("error", "reason", "cure"),
    [
        (OSError(errno.ENOSPC, "?"), "No space left on device", "free some space"),
        (OSError(errno.EDQUOT, "?"), "Disk quota exceeded", "quota"),
        (OSError(errno.EMFILE, "?"), "Too many open files", "ulimit -n"),
        (OSError(errno.EIO, "?"), "Input/output error", "look at the disk"),
        (OSError("encoder error -2 when writing image file"), "encoder error -2", "look at the disk"),
        (
            SafetensorError("I/O error: No space left on device (os error 28)"),
            "No space left",
            "free some space",
        ),
        (Exception("No space left on device (os error 28)"), "No space left on device", "free some space"),
    ],
)
def test_why_it_cannot_be_written_and_what_to_do(tmp_path, error, reason, cure):
    path = tmp_path / "file"
    with pytest.raises(ResourceError, match=rf"file: cannot be written \({reason}.*\); .*{cure}"):
        half_write(path, error)
    assert not list(tmp_path.iterdir())


def test_other_errors_while_writing_stay_what_they_are(tmp_path):
    path = tmp_path / "file"
    for error in (ValueError("a bug"), KeyboardInterrupt(), CheckpointError("named already")):
        with pytest.raises(type(error)) as raised:
            half_write(path, error)
        assert raised.value is error
        assert not list(tmp_path.iterdir())
    assert reason_of(ValueError("a bug")) is None


def test_only_what_runs_out_is_a_shortage():
    assert shortage(OSError(errno.ENOSPC, "?", "/data/x")) == (
        "/data/x: No space left on device; free some space there, then run again to continue"
    )
    assert shortage(OSError(errno.EMFILE, "?")).startswith("a file: Too many open files; raise the limit")
    assert shortage(PermissionError(errno.EACCES, "?", "/data/x")) is None
    assert shortage(FileNotFoundError(errno.ENOENT, "?", "/data/x")) is None
    assert shortage(ValueError("no space")) is None
