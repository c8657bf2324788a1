"""Dead at any file operation of a save, with half of it written or nothing: what was committed is there, and no more is needed.

Random kills hardly ever meet a save. Here a process of its own dies at its first file operation, the next one at its
second, and so on until one comes to its end: once before the operation, and once with half of a file written by it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import safetensors.torch
import torch

from distill.cache import CachedTeacher, CacheSpec, Header, write_cache
from distill.engine.checkpoint import latest_checkpoint, save_checkpoint
from distill.errors import MismatchError, ModelError
from distill.models import NextTokens, Prediction, Student
from distill.models.source import find_model
from distill.report import report as report_module
from distill.runs.cache import CacheEntry

pytestmark = pytest.mark.trust

DIED = 9
OPERATIONS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link")


class Death:
    """Ends this process at its nth file operation; nothing is cleaned up."""

    def __init__(self, folder: Path, moment: int, *, half: bool):
        self.folder, self.moment, self.half = folder, moment, half
        self.seen, self.dying = 0, False

    def wait(self) -> None:
        sys.addaudithook(self._audit)
        fsync, serialize = os.fsync, safetensors.torch.serialize_file

        def syncing(descriptor: int) -> None:
            self._operation()
            fsync(descriptor)

        def serializing(tensors: Any, path: Any, metadata: Any = None) -> None:
            self._operation(lambda: self._half_of_tensors(serialize, tensors, Path(path), metadata))
            serialize(tensors, path, metadata)

        os.fsync, safetensors.torch.serialize_file = syncing, serializing

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.dying or event not in (*OPERATIONS, "open"):
            return
        path = arguments[0]
        if not isinstance(path, str) or (os.path.isabs(path) and not path.startswith(str(self.folder))):
            return
        if event != "open":
            self._operation()
        elif arguments[2] & (os.O_WRONLY | os.O_RDWR):
            self._operation(lambda: Path(path).write_bytes(b'{"half": "of'))

    def _operation(self, leave_half: Callable[[], object] | None = None) -> None:
        self.seen += 1
        if self.seen == self.moment:
            self.dying = True
            if self.half and leave_half:
                leave_half()
            os._exit(DIED)

    def _half_of_tensors(self, serialize: Any, tensors: Any, path: Path, metadata: Any) -> None:
        serialize(tensors, path, metadata)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        # Where safetensors writes before it renames.
        path.with_name(".tmpAb12Cd").write_bytes(whole[: len(whole) // 3])


def in_process(work: Callable[[], object], death: Death) -> int:
    """Do something in a process of its own; its exit code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: this process has threads
        child = os.fork()
    if child == 0:
        _live(work, death)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _live(work: Callable[[], object], death: Death) -> NoReturn:
    try:
        death.wait()
        work()
    except BaseException:  # noqa: BLE001 - no test may go on here
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def files(folder: Path) -> dict[str, bytes]:
    """All files under a folder, leftovers included."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def crash_everywhere(
    tmp_path: Path,
    prepare: Callable[[Path], object],
    work: Callable[[Path], object],
    check: Callable[[Path], object],
    *,
    least: int,
    counts: Callable[[str], bool] = lambda name: True,
) -> None:
    """Die at each operation of `work`; then `check`, do it again, and find the files of an undisturbed one that count."""

    def made(folder: Path) -> dict[str, bytes]:
        return {name: content for name, content in files(folder).items() if counts(name)}

    whole = tmp_path / "whole"
    prepare(whole)
    work(whole)
    check(whole)
    expected = made(whole)
    for half in (False, True):
        moment, code = 0, DIED
        while code == DIED:
            moment += 1
            folder = tmp_path / f"{'half' if half else 'none'}-{moment}"
            prepare(folder)
            code = in_process(lambda: work(folder), Death(folder, moment, half=half))  # noqa: B023
            check(folder)
            work(folder)
            check(folder)
            assert made(folder) == expected, f"dead at operation {moment}"
            shutil.rmtree(folder)
        assert code == 0
        assert moment > least, f"only {moment - 1} operations were seen"


def an_empty_folder(folder: Path) -> None:
    folder.mkdir()


def state_of(step: int) -> dict[str, dict[str, torch.Tensor]]:
    """What training would stand at: a function of the step."""
    draw = torch.Generator().manual_seed(step)
    return {
        name: {"weights": torch.randn(50, generator=draw), "step": torch.tensor(step)}
        for name in ("student", "optimizer", "random")
    }


def test_checkpoints_with_rotation(tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    committed = 0

    def train(folder: Path) -> None:
        found, _ = latest_checkpoint(folder / "checkpoints", "me")
        for step in range(found.step + 1 if found else 1, 4):
            save_checkpoint(folder / "checkpoints", step, state_of(step), {"owner": "me"})
            os.write(writing, bytes([step]))

    def check(folder: Path) -> None:
        nonlocal committed
        committed = 0
        try:
            committed = os.read(reading, 100)[-1]
        except BlockingIOError:
            committed = 0
        found, problems = latest_checkpoint(folder / "checkpoints", "me")
        assert problems == []
        assert (found.step if found else 0) >= committed
        if found:
            for name, tensors in state_of(found.step).items():
                for key, tensor in tensors.items():
                    assert torch.equal(found.tensors[name][key], tensor)

    # An older one that was to be removed may stay until the next save, or the end of the training.
    newest = ("checkpoints/step-00000002", "checkpoints/step-00000003", "checkpoints/.")
    crash_everywhere(
        tmp_path, an_empty_folder, train, check, least=50, counts=lambda name: name.startswith(newest)
    )
    os.close(reading), os.close(writing)


def test_a_checkpoint_in_the_place_of_a_damaged_one(tmp_path):
    def prepare(folder: Path) -> None:
        for step in (1, 2):
            save_checkpoint(folder, step, state_of(step), {"owner": "me"})
        (folder / "step-00000002" / "student.safetensors").write_bytes(b"")

    def check(folder: Path) -> None:
        found, _ = latest_checkpoint(folder, "me")
        assert found is not None
        assert torch.equal(found.tensors["student"]["weights"], state_of(found.step)["student"]["weights"])

    crash_everywhere(
        tmp_path,
        prepare,
        lambda folder: save_checkpoint(folder, 2, state_of(2), {"owner": "me"}),
        check,
        least=20,
    )


class Tokens:
    """As much of a tokenizer as a data set needs."""

    pad_token_id = 0


def formula(batch: Any) -> Prediction:
    """A teacher whose logits are a function of the tokens."""
    ids = batch.inputs["input_ids"].float()
    grid = torch.arange(50, dtype=torch.float32)
    return Prediction(torch.sin(ids.cumsum(-1)[..., None] * (grid + 1) * 0.37)[batch.rows_BT])


def test_a_teacher_cache(tmp_path):
    data = NextTokens([[i + 2, i + 5, 7, 9] for i in range(9)], None, Tokens())
    head = Header(
        weights={},
        config="",
        vocabulary="",
        special_tokens="",
        tokenizer_rules="",
        template="",
        token_map="",
        dtype="float32",
        architecture="",
        labels=(),
        max_length=8,
        versions={},
    )

    def write(folder: Path) -> None:
        write_cache(folder, head, data, formula, CacheSpec(), shard_bytes=1_500)

    def check(folder: Path) -> None:
        if not (folder / "manifest.json").exists():
            return
        cached = CachedTeacher.open(folder, head)
        for index in range(len(data)):
            batch = data.batch([index])
            try:
                said = cached(batch)
            except MismatchError:  # not asked about yet
                continue
            assert torch.equal(said.logits_NC, formula(batch).logits_NC)

    crash_everywhere(tmp_path, an_empty_folder, write, check, least=30)


@pytest.mark.parametrize("over", ["nothing", "another student"])
def test_an_exported_student(tmp_path, tiny_llama, over):
    def student(layers: int) -> Student:
        return Student.from_teacher(str(tiny_llama), layers=layers, kind="causal_lm", labels=())

    new, old = student(2), student(1)
    new.save(tmp_path / "new")
    old.save(tmp_path / "old")
    exports = files(tmp_path / "new"), files(tmp_path / "old")

    def prepare(folder: Path) -> None:
        folder.mkdir()
        if over != "nothing":
            old.save(folder / "student")

    def check(folder: Path) -> None:
        with contextlib.suppress(ModelError):
            find_model(str(folder / "student"))
            found = files(folder / "student")
            assert {name: found[name] for name in found if not name.startswith(".writing")} in exports

    crash_everywhere(tmp_path, prepare, lambda folder: new.save(folder / "student"), check, least=30)


def test_a_fit_that_runs_share(tmp_path, tiny_llama):
    student = Student.from_teacher(str(tiny_llama), layers=1, kind="causal_lm", labels=())

    def prepare(folder: Path) -> None:
        student.save(folder / "run" / "model")
        (folder / "run" / "rte.jsonl").write_text("answers\n")
        (folder / "run" / "fit.json").write_text('{"key": "k"}')
        # An older entry, which is replaced.
        (folder / "cache" / "entry" / "model").mkdir(parents=True)
        (folder / "cache" / "entry" / "fit.json").write_text('{"key": "k"}')

    def names(folder: Path) -> dict[str, Path]:
        return {name: folder / name for name in ("rte.jsonl", "model", "fit.json")}

    def put(folder: Path) -> None:
        CacheEntry(folder / "cache" / "entry").put(names(folder / "run"))

    def check(folder: Path) -> None:
        taken = folder / "taken"
        if CacheEntry(folder / "cache" / "entry").take("k", names(taken)):
            assert files(taken) == files(folder / "run")
        shutil.rmtree(taken, ignore_errors=True)

    crash_everywhere(tmp_path, prepare, put, check, least=20)


def test_a_report(tmp_path, start, straight, recipe_file, monkeypatch):
    _, _, run = straight
    content = report_module.build_report(report_module.RunFolder(run))
    monkeypatch.setattr(report_module, "build_report", lambda folder: content)
    shown = ("report.json", "report.md", "compression.png")
    old = {name: b'{"old": "report"}\n' for name in shown}
    new = {name: (run / name).read_bytes() for name in shown}

    def prepare(folder: Path) -> None:
        folder.mkdir()
        for name, text in old.items():
            (folder / name).write_bytes(text)

    def check(folder: Path) -> None:
        for name in shown:
            assert (folder / name).read_bytes() in (old[name], new[name]), name

    crash_everywhere(tmp_path, prepare, lambda folder: report_module.write_report(folder), check, least=12)
