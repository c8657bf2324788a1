"""The figures of training, one JSON object a line, in `metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.disk import refused, whole

if TYPE_CHECKING:
    from distill.runs.trackers import Trackers


class MetricsLog:
    """Appends the figures of one fit.

    Args:
        path: the run's metrics.jsonl, shared by all its fits.
        fit: the fit's name, written into every line.
        trackers: told every line too.
    """

    def __init__(self, path: Path, fit: str, trackers: Trackers | None = None):
        self._path = path
        self._fit = fit
        self._trackers = trackers

    def start_at(self, step: int) -> None:
        """Drop this fit's lines after `step`: they will be written again. A torn last line is dropped too."""
        if not self._path.is_file():
            return
        *lines, torn = self._path.read_bytes().split(b"\n")
        kept = b"".join(line + b"\n" for line in lines if not self._is_after(line, step))
        if torn or len(kept) < sum(map(len, lines)) + len(lines):
            with whole(self._path) as aside:
                aside.write_bytes(kept)

    def _is_after(self, line: bytes, step: int) -> bool:
        try:
            entry = json.loads(line)
            return bool(entry["fit"] == self._fit and entry["step"] > step)
        except (ValueError, TypeError, KeyError):  # damaged: who reads it must see that
            return False

    def __call__(self, figures: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
            ResourceError: it cannot be written, and what is there of it will be dropped.
        """
        with refused(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"fit": self._fit, **figures}) + "\n")
        if self._trackers is not None:
            self._trackers.log(self._fit, figures)
