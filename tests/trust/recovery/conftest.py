"""A run small enough to be killed twenty times, and processes to kill."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Imports once what every run needs, and then starts each run as a process of its own that has it already.
STARTER = """
import json, os, signal, sys
import accelerate, matplotlib.pyplot, torch
import transformers.models.bert.modeling_bert, transformers.models.llama.modeling_llama
import distill.cache.writer, distill.cli, distill.runs.run
distill.cache.writer.write_cache.__kwdefaults__["shard_bytes"] = 300_000  # so that a small cache has many files
print("ready", flush=True)
for line in sys.stdin:
    folder, arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1), os.dup2(said, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner may have ignored it
        sys.argv = ["distill", *arguments]
        try:
            distill.cli.main()
        except SystemExit as left:
            os._exit(left.code or 0)
        os._exit(99)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


LEFT_OUT = ("compression.png", "report.md", "report.html", "measurements.json", "environment.json")


@dataclass
class Process:
    """A `distill` command at work; one at a time."""

    pid: int
    folder: Path
    _starter: subprocess.Popen[str]

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it came to its end
            os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit code, or minus the signal that it died of."""
        return int(self._starter.stdout.readline())

    @property
    def said(self) -> str:
        return (self.folder / "said.txt").read_text(encoding="utf-8", errors="replace")


@pytest.fixture(scope="session")
def start() -> Iterator[Any]:
    """A function that starts `distill ARGUMENTS…` in a folder."""
    starter = subprocess.Popen(
        [sys.executable, "-P", "-c", STARTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert starter.stdout.readline() == "ready\n"

    def begin(folder: Path, *arguments: str) -> Process:
        folder.mkdir(parents=True, exist_ok=True)
        starter.stdin.write(json.dumps([str(folder), arguments]) + "\n")
        starter.stdin.flush()
        return Process(int(starter.stdout.readline()), folder, starter)

    with starter:
        yield begin


@pytest.fixture(scope="session")
def small_bert(tmp_path_factory: pytest.TempPathFactory, minilm_folder: Path) -> Path:
    """A BERT of 3 layers and 16 dimensions that knows the letters and few words."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from distill.models import Student

    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    BertForSequenceClassification(config).save_pretrained(root / "whole")
    AutoTokenizer.from_pretrained(minilm_folder).save_pretrained(root / "whole")
    student = Student.from_teacher(
        str(root / "whole"),
        kind="classification",
        labels=("entailment", "not_entailment"),
        used_tokens=[2000],
    )
    student.save(root / "small")
    return root / "small"


@pytest.fixture(scope="session")
def recipe_file(small_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teacher, student and baseline with dropout, warm-up, accumulation and clipping; the loss is scheduled and has maps."""
    from distill.losses import TAID, HiddenStates, Labels
    from distill.recipe import (
        DataRecipe,
        FromTeacher,
        Recipe,
        StudentRecipe,
        TeacherRecipe,
        TrainRecipe,
        write_recipe,
    )

    train = TrainRecipe(
        max_steps=30,
        learning_rate=5e-3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        warmup_steps=0.2,
        max_grad_norm=0.5,
        dropout=0.1,
        save_steps=3,
        logging_steps=4,
        eval_steps=10,
    )
    recipe = Recipe(
        name="killed",
        data=DataRecipe(
            source="demo", tasks=("rte",), train_examples=60, validation_examples=24, max_length=48
        ),
        teacher=TeacherRecipe(model=str(small_bert), train=train),
        student=StudentRecipe(from_teacher=FromTeacher(layers=2)),
        loss=0.5 * Labels() + 0.5 * TAID(rate=0.1) + 0.1 * HiddenStates(layers=((0, 0), (-1, -1))),
        train=train,
        seeds=(0,),
    )
    path = tmp_path_factory.mktemp("recipes") / "killed.yaml"
    path.write_text(write_recipe(recipe), encoding="utf-8")
    return path


def without_times(value: Any) -> Any:
    """A report, a look ahead or a line of metrics without what a clock, a memory gauge or the machine said."""
    times = (
        "environment",
        "seconds",
        "latency",
        "latency_ms",
        "throughput",
        "memory_bytes",
        "tokens_per_second",
        "written_tokens_per_second",
    )
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items() if key not in times}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


@pytest.fixture(scope="session")
def outcome() -> Any:
    """A function that reads everything a finished run decided: files as they are, figures without times."""

    def read(run: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path in sorted(run.rglob("*")):
            name = path.relative_to(run).as_posix()
            if path.is_dir() or name in LEFT_OUT:
                continue
            if name == "metrics.jsonl":
                found[name] = [without_times(json.loads(line)) for line in path.read_text().splitlines()]
            elif name.startswith("fits/"):  # which carries its own digest, times included
                found[name] = without_times(json.loads(path.read_text()) | {"sha256": None})
            elif name in ("report.json", "preflight.json"):
                found[name] = without_times(json.loads(path.read_text()))
            else:
                found[name] = path.read_bytes()
        return found

    return read


@pytest.fixture(scope="session")
def straight(start: Any, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory, outcome: Any) -> Any:
    """The run that nobody disturbs: what it decided, the seconds that it took, and where it is."""
    import time

    folder = tmp_path_factory.mktemp("straight")
    began = time.monotonic()
    process = start(folder, "run", str(recipe_file), "--out", "run")
    assert process.wait() == 0, process.said
    return outcome(folder / "run"), time.monotonic() - began, folder / "run"
