"""A signal has asked the command line to stop: it does at once, or where Python swallows that, at the next step."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

from distill.progress import Progress

# The signal that asked this process to stop.
_asked_by: int | None = None


def begin() -> None:
    """Nothing has asked yet."""
    global _asked_by
    _asked_by = None


def asked() -> bool:
    """Whether a signal has asked."""
    return _asked_by is not None


def stop(number: int) -> NoReturn:
    """Stop as the signal of this number asks.

    Raises:
        KeyboardInterrupt: of SIGINT.
        SystemExit: of any other, with 128 + number.
    """
    global _asked_by
    _asked_by = number
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


class Stopping:
    """A progress that also ends the work once a signal has asked for it.

    The handler raises, but Python ignores what is raised while it destroys an object, and so may a library's hook:
    the next step then notices that the signal has come.
    """

    def __init__(self, progress: Progress):
        self._progress = progress

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """As `Progress` says."""
        self._check()
        self._progress.begin(what, total, done)

    def advance(self, done: int, detail: str = "") -> None:
        """As `Progress` says."""
        self._check()
        self._progress.advance(done, detail)

    def end(self, outcome: str = "") -> None:
        """As `Progress` says."""
        self._check()
        self._progress.end(outcome)

    def say(self, line: str) -> None:
        """As `Progress` says."""
        self._check()
        self._progress.say(line)

    def _check(self) -> None:
        if _asked_by is not None:
            stop(_asked_by)
