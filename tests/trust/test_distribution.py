"""Two processes train what one does, say it once, and stop together; started by `accelerate launch` as a user does."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill.losses import ForwardKL, Labels
from distill.recipe import (
    CacheRecipe,
    DataRecipe,
    FromTeacher,
    Recipe,
    StudentRecipe,
    TeacherRecipe,
    TrainRecipe,
    write_recipe,
)

pytestmark = pytest.mark.trust
HERE = Path(__file__).parent
# Far more than a step takes, far less than any time after which a network gives up by itself.
PROMPT = 60.0
SHARDED = ("forward_kl", "accumulated", "sinkhorn over devices", "scheduled", "match", "tied")


def launch(*command: object, processes: int = 2, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script or `-m module` by itself, or on several processes of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--main_process_port", str(port)]
    # A launcher's own configuration must not matter.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}
    environment |= variables
    return subprocess.run(
        [sys.executable, "-P", *(launcher if processes > 1 else []), *map(str, command)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )


def said(result: subprocess.CompletedProcess[str]) -> list[str]:
    """What distill, not the launcher, has complained of."""
    return [line for line in result.stderr.splitlines() if line.startswith("distill: ")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_bert, tiny_llama) -> Path:
    """Every case of train_together.py, on one process and on two, and some with the student divided between two."""
    folder = tmp_path_factory.mktemp("cases")
    shutil.copytree(tiny_bert, folder / "bert")
    shutil.copytree(tiny_llama, folder / "llama")
    for processes, sharded in ((1, False), (2, False), (2, True)):
        chosen = SHARDED if sharded else ()
        command = (HERE / "train_together.py", folder, *chosen)
        result = launch(*command, processes=processes, SHARDED=str(int(sharded)))
        assert result.returncode == 0, result.stderr
        assert "Warning" not in result.stderr, result.stderr
    return folder


def cases() -> list[str]:
    source = (HERE / "train_together.py").read_text()
    return re.findall(r'^    "([^"]+)": lambda', source, flags=re.MULTILINE)


@pytest.mark.parametrize("case", cases())
def test_two_processes_train_what_one_does(trained, case):
    """Student and projections to 1e-9 (it is computed in float64); the log's figures too."""
    assert_trained_alike(trained, case, "2")


@pytest.mark.parametrize("case", SHARDED)
def test_two_processes_that_divide_a_student_train_what_one_does(trained, case):
    """FSDP 2. What they hand back is whole, and "accumulated" also continues from a checkpoint, which is whole too."""
    assert_trained_alike(trained, case, "2sharded")


def assert_trained_alike(trained: Path, case: str, together: str) -> None:
    alone = load_file(trained / "1" / f"{case}.0.safetensors")
    first, second = (load_file(trained / together / f"{case}.{rank}.safetensors") for rank in (0, 1))
    assert any(name.startswith("loss.") for name in alone) == (
        case.startswith(("projections", "features", "cross"))
    )
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=0, atol=1e-9, msg=name)
    logs = [
        json.loads((trained / count / f"{case}.0.json").read_text())["lines"] for count in ("1", together)
    ]
    for one, two in zip(*logs, strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"tokens_per_second", "on_policy/written_tokens_per_second"}:
            assert two[name] == pytest.approx(one[name], rel=1e-7, abs=1e-9), name


def test_a_cached_teacher_is_the_live_one_on_two_processes(trained):
    """Each example was asked about alone, so nothing but its tokens decides what is read for it."""
    cached, live = (load_file(trained / "2" / f"{case}.0.safetensors") for case in ("cached", "live alone"))
    assert all(torch.equal(cached[name], live[name]) for name in live)


@pytest.fixture(scope="module")
def job(tmp_path_factory, tiny_llama) -> Path:
    """A folder with a recipe that trains a teacher, caches what it says, and trains student and baseline."""
    folder = tmp_path_factory.mktemp("job")
    text = "".join(f"The {'very ' * (n % 7)}old cat {n} sat on mat {n * n}.\n" for n in range(60))
    (folder / "cats.txt").write_text(text)
    train = TrainRecipe(
        max_steps=6,
        learning_rate=1e-3,
        per_device_train_batch_size=8,
        dropout=0.0,
        save_steps=2,
        eval_steps=3,
        logging_steps=1,
    )
    recipe = Recipe(
        name="together",
        architecture="decoder",
        data=DataRecipe(source="text", path=str(folder / "cats.txt"), max_length=40, characters=70),
        teacher=TeacherRecipe(model=str(tiny_llama), train=replace(train, max_steps=3), cache=CacheRecipe()),
        student=StudentRecipe(from_teacher=FromTeacher(layers=2)),
        loss=0.5 * Labels() + 0.5 * ForwardKL(),
        train=train,
    )
    (folder / "recipe.yaml").write_text(write_recipe(recipe))
    half = replace(train, per_device_train_batch_size=4)
    teacher = replace(recipe.teacher, train=replace(half, max_steps=3))
    (folder / "half.yaml").write_text(write_recipe(replace(recipe, train=half, teacher=teacher)))
    taken = replace(recipe.teacher, train=None, cache=None)
    quick = replace(recipe, train=half, teacher=taken, baseline=False, preflight=False)
    (folder / "quick.yaml").write_text(write_recipe(quick))
    return folder


@pytest.fixture(scope="module")
def runs(job) -> dict[int, subprocess.CompletedProcess[str]]:
    """The recipe's run on one process, in `run1`, and on two, in `run2`."""
    done = {}
    for processes, name in ((1, "recipe"), (2, "half")):
        command = ("-m", "distill", "run", job / f"{name}.yaml", "--out", job / f"run{processes}")
        done[processes] = launch(*command, processes=processes)
        assert done[processes].returncode == 0, done[processes].stderr
    return done


def without_times(text: str) -> list[str]:
    """What a run said, without figures, folders and how far it was every 30 seconds, which may differ."""
    lines = (line for line in text.splitlines() if "preflight" not in line and ": step " not in line)
    return [re.sub(r"[\d.,]+|run\d", "#", line) for line in lines]


def test_a_run_on_two_processes_speaks_once_and_as_one_does(runs):
    # Preflight measures the memory and the time of half a batch.
    measured = ("  memory", "  time", "  gradient")
    alone, together = (
        [line for line in without_times(runs[count].stderr) if not line.startswith(measured)]
        for count in (1, 2)
    )
    assert together == alone
    assert len(runs[2].stdout.splitlines()) == len(runs[1].stdout.splitlines())


def test_a_run_on_two_processes_leaves_what_one_does(job, runs):
    files = [
        sorted(str(path.relative_to(job / run)) for path in (job / run).rglob("*"))
        for run in ("run1", "run2")
    ]
    assert files[0] == files[1]
    assert sum(name.endswith(".safetensors") and "teacher-cache" in name for name in files[1]) == 1
    logs = [
        [json.loads(line) for line in (job / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("run1", "run2")
    ]
    for one, two in zip(*logs, strict=True):
        assert one.keys() == two.keys()
        assert (one.pop("fit"), one.pop("step")) == (two.pop("fit"), two.pop("step"))
        for name in one.keys() - {"tokens_per_second"}:
            assert two[name] == pytest.approx(one[name], rel=2e-6, abs=1e-6), name
    for path in (job / "run1" / "predictions").glob("*.jsonl"):
        lines = [(job / run / "predictions" / path.name).read_text().splitlines() for run in ("run1", "run2")]
        for one, two in zip(*(map(json.loads, each) for each in lines), strict=True):
            assert two["id"] == one["id"]
            assert two["logits"] == pytest.approx(one["logits"], rel=1e-5)


@pytest.mark.parametrize(
    ("what", "rank", "code", "lines"),
    [
        (
            "raises",
            1,
            1,
            [
                "internal error, OSError: the cable is out (DISTILL_TRACEBACK=1 shows where)",
                "process 1 of 2: internal error, OSError: the cable is out",
            ],
        ),
        (
            "nan",
            1,
            1,
            [r"step 5 on device 1: .*teacher logits: row 0 of .*the weights are those of the step before"],
        ),
        ("no-space", 0, 1, [r".*step-00000006.*No space left on device.*"]),
        (
            "killed",
            1,
            1,
            ["process 0 of 2 has lost another one, .*; the same command continues where it was"],
        ),
    ],
)
def test_a_process_that_fails_stops_the_other_with_its_message(job, tmp_path, what, rank, code, lines):
    settings = ("--set", "train.max_steps=8", "--out", tmp_path / "run")
    at = 5 if what == "no-space" else 4
    result = launch(HERE / "fail_together.py", what, rank, at, "run", job / "quick.yaml", *settings)
    ended = time.time()
    (wrong,) = re.findall(r"it goes wrong at ([\d.]+)", result.stderr)
    assert ended - float(wrong) < PROMPT
    assert result.returncode == code
    found = sorted(said(result), reverse="raises" not in what)
    assert len(found) == len(lines), result.stderr
    for line, wanted in zip(sorted(found), sorted(lines), strict=True):
        pattern = wanted if what != "raises" else re.escape(wanted)
        assert re.fullmatch(f"distill: {pattern}", line), line
    assert not list(tmp_path.rglob(".writing*"))
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("*/*"))
    assert saved == ["step-00000002", "step-00000004"]


def test_a_run_whose_processes_are_killed_continues_to_the_same_weights(job, tmp_path):
    """Bitwise: each process goes back to its own random numbers."""
    command = ("run", job / "quick.yaml", "--set", "train.dropout=0.2", "--out")
    killed = launch(HERE / "fail_together.py", "killed", "all", 5, *command, tmp_path / "killed")
    assert killed.returncode != 0
    assert not (tmp_path / "killed" / "report.json").exists()
    for name in ("killed", "straight"):
        result = launch("-m", "distill", *command, tmp_path / name)
        assert result.returncode == 0, result.stderr
        assert ("continues at step 4" in result.stderr) == (name == "killed")
    straight, continued = (
        load_file(tmp_path / name / "student" / "text" / "model.safetensors")
        for name in ("straight", "killed")
    )
    assert all(torch.equal(continued[name], tensor) for name, tensor in straight.items())


def test_a_mistake_that_every_process_finds_is_said_once(job, tmp_path, tiny_bert):
    """Whichever of them finds it first."""
    other = ("--set", f"student.model={tiny_bert}", "--set", "student.from_teacher=null")
    result = launch("-m", "distill", "run", job / "quick.yaml", *other, "--out", tmp_path / "run")
    assert result.returncode != 0
    assert len(said(result)) == 1, result.stderr
