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
CACHE_KILLS = 8


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


def test_a_teacher_cache_whose_writer_is_killed_ends_bitwise_as_the_undisturbed_one(
    start: Any, tiny_llama: Path, tmp_path: Path
):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"Cat {n} sat on {'a very ' * (n % 5)}old mat {n * n}.\n" for n in range(400)))
    recipe = tmp_path / "cached.yaml"
    recipe.write_text(
        f"""
name: cached
architecture: decoder
data: {{source: text, path: {corpus}, max_length: 40, characters: 60}}
teacher: {{model: {tiny_llama}, cache: {{keep: full}}}}
student: {{from_teacher: {{layers: 2}}}}
loss: [{{kind: labels}}, {{kind: forward_kl}}]
train: {{max_steps: 3}}
baseline: false
"""
    )

    def files(run: Path) -> dict[str, bytes]:
        cache = run / "teacher-cache" / "teacher-text"
        return {path.name: path.read_bytes() for path in cache.iterdir() if path.is_file()}

    began = time.monotonic()
    process = start(tmp_path / "straight", "cache", str(recipe), "--out", "run")
    assert process.wait() == 0, process.said
    duration = time.monotonic() - began
    expected = files(tmp_path / "straight" / "run")
    assert len(expected) > 8
    draw = random.Random(18)
    kills = finished = 0
    while kills < CACHE_KILLS or not finished:
        folder = tmp_path / str(finished)
        process = start(folder, "cache", str(recipe), "--out", "run")
        if kills < CACHE_KILLS:
            time.sleep(draw.uniform(0.2, 0.9) * duration)
            process.send(signal.SIGKILL)
        code = process.wait()
        if code == -signal.SIGKILL:
            kills += 1
            continue
        assert code == 0, process.said
        assert files(folder / "run") == expected
        finished += 1
