"""Whatever happens to a file of a checkpoint, a student or a shared fit: it is named, and never used. P2."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distill.engine.checkpoint import latest_checkpoint, save_checkpoint
from distill.errors import CheckpointError, DistillError, ModelError
from distill.evaluate import evaluate_model
from distill.manifest import seal, sealed_text, verified
from distill.models import Student, Teacher
from distill.models.source import find_model
from distill.run_folder import RunFolder
from distill.runs.cache import CacheEntry

FLIPS = 200
CHECKPOINT = ("student", "optimizer", "random")
STUDENT = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "provenance.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def damages(path: Path) -> Iterator[str]:
    """Damage a file in every way in turn; it is whole again in the end."""
    whole = path.read_bytes()
    draw = random.Random(path.name)
    for share in (0, 0.01, 0.5, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        yield f"cut at {share:.0%}"
    for _ in range(FLIPS):
        at, bit = draw.randrange(len(whole)), draw.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        yield f"bit {bit} of byte {at} flipped"
    path.write_bytes(whole + b"\0")
    yield "one byte longer"
    path.unlink()
    yield "deleted"
    path.mkdir()
    yield "a folder"
    path.rmdir()
    path.write_bytes(whole)


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second), other.write_bytes(first)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    for step in (2, 4):
        draw = torch.Generator().manual_seed(step)
        tensors = {name: {"w": torch.randn(30, generator=draw)} for name in CHECKPOINT}
        save_checkpoint(tmp_path, step, tensors, {"owner": "me", "tokens": 10 * step})
    return tmp_path


def assert_step_2_is_used(folder: Path, *names: str) -> None:
    found, problems = latest_checkpoint(folder, "me")
    assert found is not None
    assert found.step == 2
    (line,) = problems
    assert "\n" not in line
    assert line.startswith(f"checkpoint {folder}/step-00000004: ")
    assert any(name in line for name in names), line


@pytest.mark.parametrize(
    "name", [*(f"{name}.safetensors" for name in CHECKPOINT), "state.json", "manifest.json"]
)
def test_a_damaged_file_of_a_checkpoint_is_named_and_the_checkpoint_before_it_used(checkpoints, name):
    for _ in damages(checkpoints / "step-00000004" / name):
        assert_step_2_is_used(checkpoints, name)
    found, problems = latest_checkpoint(checkpoints, "me")
    assert found is not None
    assert (found.step, problems) == (4, [])


def test_swapped_files_are_named(checkpoints):
    newest = checkpoints / "step-00000004"
    for pair in (
        (newest / "student.safetensors", newest / "optimizer.safetensors"),
        (newest / "student.safetensors", checkpoints / "step-00000002" / "student.safetensors"),
    ):
        swap(*pair)
        try:
            assert_step_2_is_used(checkpoints, *(path.name for path in pair))
        except CheckpointError as error:  # the second pair damages both
            assert pair[1].parent != newest
            assert str(error).count("student.safetensors is damaged") == 2  # noqa: PT017
        swap(*pair)
    swap(newest / "manifest.json", checkpoints / "step-00000002" / "manifest.json")
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors is damaged"):
        latest_checkpoint(checkpoints, "me")


def test_without_a_whole_checkpoint_every_one_is_named_in_one_line(checkpoints):
    for step, name in ((2, "random.safetensors"), (4, "state.json")):
        (checkpoints / f"step-0000000{step}" / name).write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        latest_checkpoint(checkpoints, "me")
    line = str(caught.value)
    assert "\n" not in line
    for part in ("step-00000004: state.json is damaged", "step-00000002: random.safetensors is damaged"):
        assert part in line
    assert line.endswith("; remove the folder to start this part again")


@pytest.fixture(scope="module")
def exported(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student's folder."""
    folder = tmp_path_factory.mktemp("exported") / "student"
    Student.from_teacher(str(tiny_llama), layers=2, kind="causal_lm", labels=()).save(folder)
    return folder


@pytest.fixture
def ones_own(exported: Path, tmp_path: Path) -> Path:
    shutil.copytree(exported, tmp_path / "student")
    return tmp_path / "student"


def test_a_student_carries_a_manifest_of_all_its_files_that_everybody_can_read(exported):
    assert tuple(verified(exported, "model 1")) == STUDENT
    assert len({path.stat().st_mode for path in exported.iterdir()}) == 1
    assert not [path for path in exported.iterdir() if path.name.startswith(".")]
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(exported)


@pytest.mark.parametrize("name", [*STUDENT, "manifest.json"])
def test_a_damaged_file_of_a_student_is_named_and_the_student_not_loaded(ones_own, name):
    find_model(str(ones_own))
    for damage in damages(ones_own / name):
        with pytest.raises(ModelError, match=name.replace(".", r"\.")) as caught:
            find_model(str(ones_own))
        assert "\n" not in str(caught.value), damage
    find_model(str(ones_own))


def test_nobody_loads_or_scores_a_damaged_student(ones_own):
    swap(ones_own / "config.json", ones_own / "generation_config.json")
    for use in (
        lambda: Student.load(str(ones_own), kind="causal_lm", labels=()),
        lambda: Teacher.load(str(ones_own), kind="causal_lm", labels=()),
        lambda: Student.from_teacher(str(ones_own), layers=1, kind="causal_lm", labels=()),
        lambda: evaluate_model(str(ones_own), "rte", architecture="decoder"),
    ):
        with pytest.raises(
            ModelError, match=r"config\.json is damaged .*; make it again, or remove manifest\.json"
        ):
            use()


def test_a_student_that_its_owner_changed_is_anybodys_model(ones_own):
    (ones_own / "generation_config.json").unlink()
    for name in ("manifest.json", "provenance.json"):
        (ones_own / name).unlink()
    assert Student.load(str(ones_own), kind="causal_lm", labels=()).model.config.model_type == "llama"


def test_a_student_written_over_another_is_whole_and_other_files_stay(ones_own, tiny_llama):
    (ones_own / "README.md").write_text("about this model\n")
    before = find_model(str(ones_own)).digest
    Student.from_teacher(str(tiny_llama), layers=1, kind="causal_lm", labels=()).save(ones_own)
    assert find_model(str(ones_own)).digest != before
    assert (ones_own / "README.md").read_text() == "about this model\n"


@pytest.fixture
def entry(exported: Path, tmp_path: Path) -> tuple[CacheEntry, dict[str, Path]]:
    """A shared fit, and where a run wants its files."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "rte.jsonl").write_text("answers\n")
    (run / "fit.json").write_text('{"key": "k"}')
    entry = CacheEntry(tmp_path / "cache" / "teacher-rte")
    entry.put({"rte.jsonl": run / "rte.jsonl", "model": exported, "fit.json": run / "fit.json"})
    return entry, {name: tmp_path / "other" / name for name in ("rte.jsonl", "model", "fit.json")}


@pytest.mark.parametrize("name", ["rte.jsonl", "fit.json", "model/model.safetensors"])
def test_a_damaged_file_of_a_shared_fit_is_named_and_nothing_taken(entry, name):
    shared, wanted = entry
    # A second name for the run's own file is damaged with it: here only the entry's.
    path = shared.folder / name
    copy = path.with_name("copy")
    shutil.copyfile(path, copy), copy.replace(path)
    for damage in damages(path):
        if damage in ("deleted", "a folder") and "/" not in name:
            continue  # an incomplete entry is none
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            shared.take("k", wanted)
    assert not wanted["fit.json"].exists()
    assert not shared.take("another key", wanted)
    assert shared.take("k", wanted)


def test_a_shared_fit_without_a_manifest_is_none(entry):
    shared, wanted = entry
    (shared.folder / "manifest.json").unlink()
    assert not shared.take("k", wanted)


@pytest.mark.parametrize("name", ["fits/teacher-rte.json", "predictions/teacher-rte.rte.jsonl"])
def test_a_damaged_record_or_answer_of_a_finished_fit_is_named(tmp_path, name):
    folder = RunFolder(tmp_path)
    for fit in ("teacher-rte", "student-rte-seed1"):
        answers = folder.predictions(fit, "rte")
        answers.parent.mkdir(exist_ok=True)
        answers.write_text('{"id": "1", "logits": [0.25, -1.5]}\n')
        folder.write_fit(fit, {"key": "k", "seconds": 1.25, "provenance": {"layers": [0, 2]}})
    for damage in damages(tmp_path / name):
        if damage in ("deleted", "a folder"):
            continue  # what is missing is made again
        with pytest.raises(DistillError, match=name.replace(".", r"\.")):
            folder.read_fit("teacher-rte")
        assert folder.read_fit("student-rte-seed1")["key"] == "k"
    assert folder.read_fit("teacher-rte")["seconds"] == 1.25


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside"])
def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path, name):
    (tmp_path / "outside").write_text("content")
    (tmp_path / "folder" / "a").mkdir(parents=True)
    files = {name: "0" * 64}
    (tmp_path / "folder" / "manifest.json").write_text(
        sealed_text({"format": "distill model 1", "files": files})
    )
    with pytest.raises(CheckpointError, match="which is no file of it"):
        verified(tmp_path / "folder", "model 1")


def test_a_sealed_folder_that_says_another_kind_is_refused(tmp_path):
    (tmp_path / "file").write_text("content")
    seal(tmp_path, "checkpoint 1")
    assert list(verified(tmp_path, "checkpoint 1")) == ["file"]
    with pytest.raises(
        CheckpointError, match=r"has format 'distill checkpoint 1', but this version reads 'distill model 1'"
    ):
        verified(tmp_path, "model 1")


def test_a_damaged_student_from_the_hub_is_named_and_a_whole_one_may_have_a_chat_template(
    tiny_llama, tmp_path, monkeypatch
):
    student = Student.from_teacher(str(tiny_llama), layers=1, kind="causal_lm", labels=())
    student.tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    student.save(tmp_path / "published")
    asked_for: list[str] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        """As the hub's: of a commit, what the patterns name."""
        asked_for.append(name)
        commit = tmp_path / "snapshots" / f"c0ffee{len(asked_for)}"
        commit.mkdir(parents=True)
        for path in (tmp_path / "published").iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copyfile(path, commit / path.name)
        return str(commit)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    assert find_model("someone/student").digest == "hub:someone/student@c0ffee1"
    read = Student.load("someone/student", kind="causal_lm", labels=())
    assert read.tokenizer.chat_template == student.tokenizer.chat_template
    (tmp_path / "published" / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(ModelError, match=r"model someone/student: tokenizer\.json is damaged"):
        find_model("someone/student")


def test_an_export_does_not_depend_on_what_its_tokenizer_read_last(ones_own, tmp_path):
    student = Student.load(str(ones_own), kind="causal_lm", labels=())
    student.tokenizer.pad_token = student.tokenizer.eos_token
    student.save(tmp_path / "before")
    student.tokenizer(["a text", "another and longer text"], padding=True, truncation=True, max_length=3)
    student.save(tmp_path / "after")
    for path in (tmp_path / "before").iterdir():
        assert path.read_bytes() == (tmp_path / "after" / path.name).read_bytes(), path.name
