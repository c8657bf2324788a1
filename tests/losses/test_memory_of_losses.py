"""A loss of materialised logits needs, at its peak, one more matrix like the student's logits and a little: at most 1.35."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("memory_of_a_loss.py")
KINDS = (
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "skew_kl",
    "taid",
    "adaptive_kl",
    "ghost_token_kl",
    "mean_squared_logits",
    "labels",
    "sorted_transport",
)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process its peak")
@pytest.mark.parametrize(("kind", "rows"), [("forward_kl", 4096), *((kind, 512) for kind in KINDS)])
def test_the_peak_beyond_the_logits_is_at_most_1_35_of_them(kind, rows):
    done = subprocess.run(
        [sys.executable, SCRIPT, kind, str(rows), "50000"],
        # What is freed goes back to the system, and so is not counted.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
    )
    # The gradient itself is 1.
    assert 1 <= float(done.stdout) <= 1.35
