"""SIGTERM and SIGINT at any moment of a run: a checkpoint, the right exit code, one line; and nothing is lost."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.trust

STOPPED = "distill: stopped; the same command continues where it was"
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


def newest(folder: Path) -> str:
    """Where the training under way stands: its newest checkpoint, behind the fits that are done."""
    fits = len(list((folder / "run" / "fits").glob("*.json")))
    return f"{fits} {max((path.name for path in folder.glob('run/checkpoints/*/step-*')), default='')}"


def test_a_run_stopped_ten_times_goes_on_each_time_and_ends_as_the_undisturbed_one(
    start: Any, recipe_file: Path, straight: Any, outcome: Any, tmp_path: Path
):
    expected, duration, _ = straight
    draw = random.Random(19)
    stops = finished = 0
    while stops < 10 or not finished:
        folder = tmp_path / str(finished)
        folder.mkdir(exist_ok=True)
        before = newest(folder)
        (folder / "said.txt").unlink(missing_ok=True)
        process = start(folder, "run", str(recipe_file), "--out", "run")
        number = (signal.SIGTERM, signal.SIGINT)[stops % 2]
        asked = 0.0
        if stops < 10:
            time.sleep(draw.uniform(0.05, 0.5) * duration)
            asked = time.monotonic()
            process.send(number)
        code = process.wait()
        if code:
            stops += 1
            assert code == CODES[number], process.said
            assert time.monotonic() - asked < duration / 2  # of 90 steps and three evaluations
            assert process.said.count(STOPPED) == 1
            assert "Traceback" not in process.said
            assert newest(folder) >= before
            continue
        assert outcome(folder / "run") == expected
        finished += 1


def test_what_was_trained_when_a_signal_came_is_kept(start: Any, recipe_file: Path, tmp_path: Path):
    """No checkpoint is due in this run: one that is there was made because of the signal."""
    command = ("run", str(recipe_file), "--out", "run", "--set", "teacher.train.save_steps=1000")
    process = start(tmp_path, *command, "--set", "teacher.train.max_steps=100000")
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists():
        time.sleep(0.01)
    process.send(signal.SIGTERM)
    assert process.wait() == 143
    (kept,) = (tmp_path / "run" / "checkpoints" / "teacher-rte").glob("step-*")
    step = int(kept.name.removeprefix("step-"))
    assert step >= 4  # where the first line was logged
    process = start(tmp_path, *command, "--set", "teacher.train.max_steps=100000")
    while f"teacher-rte: continues at step {step} of" not in process.said:
        time.sleep(0.01)
    process.send(signal.SIGTERM)
    process.send(signal.SIGTERM)
    assert process.wait() == 143
