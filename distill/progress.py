"""How a long run tells a person where it is: bars on a terminal, plain lines elsewhere, nothing for a library."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


class Progress(Protocol):
    """What the engine tells while it works."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """A piece of work of `total` steps starts, `done` of them behind it already."""

    def advance(self, done: int, detail: str = "") -> None:
        """`done` steps are behind us."""

    def end(self, outcome: str = "") -> None:
        """The piece of work is over."""

    def say(self, line: str) -> None:
        """One line a person should read."""


class Silent:
    """Tells nothing."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """See Progress."""

    def advance(self, done: int, detail: str = "") -> None:
        """See Progress."""

    def end(self, outcome: str = "") -> None:
        """See Progress."""

    def say(self, line: str) -> None:
        """See Progress."""


class Lines:
    """Plain lines: one when a piece of work ends, and one every `every` seconds while it runs."""

    def __init__(self, stream: TextIO | None = None, every: float = 30.0):
        self._stream = stream or sys.stderr
        self._every = every
        self._what, self._total = "", 0
        self._started = self._last = 0.0

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """See Progress."""
        self._what, self._total = what, total
        self._started = self._last = time.monotonic()
        if done:
            self.say(f"{what}: continues at step {done} of {total}")

    def advance(self, done: int, detail: str = "") -> None:
        """See Progress."""
        if time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            self.say(f"{self._what}: step {done} of {self._total}  {detail}".rstrip())

    def end(self, outcome: str = "") -> None:
        """See Progress."""
        self.say(f"{self._what}: {outcome or 'done'} ({time.monotonic() - self._started:.0f} s)")

    def say(self, line: str) -> None:
        """See Progress."""
        print(line, file=self._stream, flush=True)


class Bars:
    """A rich bar for the piece of work under way; finished pieces stay as lines above it."""

    def __init__(self, console: Console):
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._console = console
        self._bars = RichProgress(
            TextColumn("{task.description:<26}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[detail]}"),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._what, self._started = "", 0.0

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """See Progress."""
        self._what, self._started = what, time.monotonic()
        self._task = self._bars.add_task(what, total=total, completed=done, detail="")
        self._bars.start()

    def advance(self, done: int, detail: str = "") -> None:
        """See Progress."""
        if self._task is not None:
            self._bars.update(self._task, completed=done, detail=detail)

    def end(self, outcome: str = "") -> None:
        """See Progress."""
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._bars.stop()
            self._task = None
        seconds = time.monotonic() - self._started
        self._console.print(
            f"[green]✓[/] {self._what:<26} {outcome} [dim]{seconds:.0f} s[/]", highlight=False
        )

    def say(self, line: str) -> None:
        """See Progress."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
