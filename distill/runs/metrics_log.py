"""The figures of training, one JSON object a line, in `metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.disk import refused
from distill.run_folder import write_text


class MetricsLog:
    """Appends the figures of one fit.

    Args:
        path: the run's metrics.jsonl, shared by all its fits.
        fit: the fit's name, written into every line.
    """

    def __init__(self, path: Path, fit: str):
        self._path = path
        self._fit = fit

    def start_at(self, step: int) -> None:
        """Drop this fit's lines after `step`: they will be written again. A torn last line is dropped too."""
        if not self._path.is_file():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry.get("fit") != self._fit or entry.get("step", 0) <= step:
                kept.append(line)
        write_text(self._path, "".join(f"{line}\n" for line in kept))

    def __call__(self, figures: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
            ResourceError: it cannot be written, and what is there of it will be dropped.
        """
        with refused(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"fit": self._fit, **figures}) + "\n")
