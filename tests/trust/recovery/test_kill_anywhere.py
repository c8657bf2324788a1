"""Killed at any moment and started again, a run ends as if nothing had happened: P1."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.trust

KILLS = 20


def test_a_run_killed_twenty_times_decides_bitwise_what_the_undisturbed_one_does(
    start: Any, recipe_file: Path, straight: Any, outcome: Any, tmp_path: Path
):
    expected, duration, _ = straight
    draw = random.Random(17)
    kills = finished = 0
    killed_in = []
    while kills < KILLS or not finished:
        folder = tmp_path / str(finished)
        process = start(folder, "run", str(recipe_file), "--out", "run")
        if kills < KILLS:
            time.sleep(draw.uniform(0.03, 0.6) * duration)
            process.send(signal.SIGKILL)
        code = process.wait()
        if code == -signal.SIGKILL:
            kills += 1
            killed_in.append(len(list((folder / "run" / "fits").glob("*.json"))))
            continue
        assert code == 0, process.said
        assert outcome(folder / "run") == expected
        assert not list((folder / "run" / "checkpoints").iterdir())
        finished += 1
    # Killed in the teacher's training, the student's and the baseline's.
    assert {0, 1, 2} <= set(killed_in), killed_in
