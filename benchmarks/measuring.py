"""What the speed benchmarks share: peak memory of a call, and figures beside their goals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def peak_beyond(call: Callable[[], Any]) -> int:
    """Bytes that a call needs at its peak beyond what was there before; what it returns counts.

    Meant for a process of its own (`in_fresh_process`), which has not yet asked the system for memory to reuse.
    """
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _status("VmRSS")
    returned = call()
    peak = _status("VmHWM") - before
    del returned
    return peak


def in_fresh_process(script: str, arguments: Sequence[str]) -> float | None:
    """The number that a script prints last, run by itself with every block of memory given back when it is freed.

    None where the system does not tell a process its peak.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    done = subprocess.run(
        [sys.executable, script, *arguments],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key + ":")).split()[1])


@dataclass
class Goals:
    """Figures beside what they should be, printed as they come."""

    lines: list[dict[str, Any]] = field(default_factory=list)

    def at_least(self, what: str, found: float | None, goal: float) -> None:
        """A ratio that should not be smaller; nothing where there is none."""
        if found is not None:
            self._add(what, found, f">= {goal:g}", found >= goal)

    def at_most(self, what: str, found: float | None, goal: float) -> None:
        """A ratio or an error that should not be larger; nothing where there is none."""
        if found is not None:
            self._add(what, found, f"<= {goal:g}", found <= goal)

    @property
    def summary(self) -> str:
        """How many are met."""
        return f"{sum(line['met'] for line in self.lines)} of {len(self.lines)} goals met"

    def _add(self, what: str, found: float, goal: str, met: bool) -> None:
        self.lines.append({"what": what, "found": found, "goal": goal, "met": met})
        print(f"  {'met   ' if met else 'MISSED'} {found:10.3g}  {goal:>9}  {what}", flush=True)
