"""A run that finds its own files damaged: it says which, uses none of them, and ends as the undisturbed one where it can."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.trust


def flip(path: Path) -> None:
    """One bit in the middle of a file; of a file of its own, should it have another name elsewhere."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_the_newest_checkpoint_is_damaged(
    start: Any, recipe_file: Path, straight: Any, outcome: Any, tmp_path: Path
):
    process = start(tmp_path, "run", str(recipe_file), "--out", "run")
    checkpoints = tmp_path / "run" / "checkpoints" / "student-rte-seed0"
    while len(list(checkpoints.glob("step-*"))) < 2:
        time.sleep(0.005)
    process.send(signal.SIGTERM)
    assert process.wait() == 143, process.said
    older, newer = sorted(checkpoints.glob("step-*"))[-2:]
    flip(newer / "optimizer.safetensors")
    process = start(tmp_path, "run", str(recipe_file), "--out", "run")
    assert process.wait() == 0, process.said
    (line,) = (line for line in process.said.splitlines() if "damaged" in line)
    assert line.endswith(
        f"{newer.name}: optimizer.safetensors is damaged (its sha256 is not the manifest's); the one before it is used"
    )
    step = int(older.name.removeprefix("step-"))
    assert f"student-rte-seed0: continues at step {step} of 30" in process.said
    assert outcome(tmp_path / "run") == straight[0]


@pytest.mark.parametrize(
    ("damaged", "code", "says"),
    [
        ("teacher/rte/model.safetensors", 2, "model run/teacher/rte: model.safetensors is damaged"),
        ("student/rte/config.json", 2, "model run/student/rte: config.json is damaged"),
    ],
)
def test_a_model_of_a_run_is_damaged(
    start: Any,
    recipe_file: Path,
    straight: Any,
    outcome: Any,
    tmp_path: Path,
    damaged: str,
    code: int,
    says: str,
):
    shutil.copytree(straight[2], tmp_path / "run")
    (tmp_path / "run" / "measurements.json").unlink()  # as if it had been killed before it measured
    flip(tmp_path / "run" / damaged)
    process = start(tmp_path, "run", str(recipe_file), "--out", "run")
    assert process.wait() == code
    assert f"distill: {says} (its sha256 is not the manifest's); make it again" in process.said
    assert "Traceback" not in process.said
    # What it says to do helps.
    shutil.rmtree(tmp_path / "run" / Path(damaged).parent)
    process = start(tmp_path, "run", str(recipe_file), "--out", "run")
    assert process.wait() == 0, process.said
    assert outcome(tmp_path / "run")[damaged] == straight[0][damaged]


def test_a_fit_that_runs_share_is_damaged(start: Any, recipe_file: Path, outcome: Any, tmp_path: Path):
    command = ("run", str(recipe_file), "--out", "run", "--set", f"cache={tmp_path / 'shared'}")
    process = start(tmp_path / "one", *command)
    assert process.wait() == 0, process.said
    (entry,) = (tmp_path / "shared").glob("teacher-rte-*")
    flip(entry / "model" / "model.safetensors")
    process = start(tmp_path / "two", *command)
    assert process.wait() == 0, process.said
    assert f"{entry.name}: model/model.safetensors is damaged" in process.said
    assert "; it is made again" in process.said
    assert "baseline-rte-seed0: taken from the cache" in process.said
    one, two = outcome(tmp_path / "one" / "run"), outcome(tmp_path / "two" / "run")
    # The second run trained no baseline.
    assert {**one, "metrics.jsonl": 0} == {**two, "metrics.jsonl": 0}
    process = start(tmp_path / "three", *command)
    assert process.wait() == 0, process.said
    assert "teacher-rte: taken from the cache" in process.said
