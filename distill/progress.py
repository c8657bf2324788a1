"""How a long run tells a person where it is: bars on a terminal, plain lines elsewhere, nothing for a library."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import TaskID


class Progress(Protocol):
    """What the engine tells while it works."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """A piece of work of `total` steps starts, `done` of them behind it already."""

    def advance(self, done: int, detail: str = "") -> None:
        """`done` steps are behind us; no detail leaves the last one standing."""

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
        self._what, self._detail = "", ""
        self._total = self._begun = 0
        self._started = self._last = 0.0

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """See Progress."""
        self._what, self._detail = what, ""
        self._total, self._begun = total, done
        self._started = self._last = time.monotonic()
        if done:
            self.say(f"{what}: continues at step {done} of {total}")

    def advance(self, done: int, detail: str = "") -> None:
        """See Progress."""
        self._detail = detail or self._detail
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            left = (now - self._started) / max(done - self._begun, 1) * (self._total - done)
            parts = (f"step {done} of {self._total}", self._detail, f"{clock(left)} left")
            self.say(f"{self._what}: {', '.join(part for part in parts if part)}")

    def end(self, outcome: str = "") -> None:
        """See Progress."""
        self.say(f"{self._what}: {outcome or 'done'} ({time.monotonic() - self._started:.0f} s)")

    def say(self, line: str) -> None:
        """See Progress."""
        print(line, file=self._stream, flush=True)


class Bars:
    """A rich bar for the piece of work under way, with its figures below; finished pieces stay as lines above it."""

    def __init__(self, console: Console):
        from rich.padding import Padding
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
        from rich.text import Text

        class WithDetail(RichProgress):
            """The bar, and the figures below it."""

            detail = ""

            def get_renderables(self) -> Iterable[RenderableType]:
                yield from super().get_renderables()
                if self.detail:
                    yield Padding(Text(self.detail, style="dim"), (0, 0, 0, 2))

        self._console = console
        self._bars = WithDetail(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._what, self._started = "", 0.0

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """See Progress."""
        self._what, self._started = what, time.monotonic()
        self._bars.detail = ""
        self._task = self._bars.add_task(what, total=total, completed=done)
        self._bars.start()

    def advance(self, done: int, detail: str = "") -> None:
        """See Progress."""
        if self._task is not None:
            self._bars.detail = detail or self._bars.detail
            self._bars.update(self._task, completed=done)

    def end(self, outcome: str = "") -> None:
        """See Progress."""
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._bars.detail = ""
            self._bars.stop()
            self._task = None
        seconds = time.monotonic() - self._started
        self._console.print(
            f"[green]✓[/] {self._what:<26} {outcome} [dim]{seconds:.0f} s[/]", highlight=False
        )

    def say(self, line: str) -> None:
        """See Progress."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def losses(figures: Mapping[str, Any]) -> str:
    """The loss of a line of metrics.jsonl, and of several terms each one's mean without its weight.

    Example:
        >>> losses({"step": 10, "loss": 0.5, "loss/labels": 0.75, "loss/forward_kl": 0.25})
        '0.5000 (labels 0.7500, forward_kl 0.2500)'
    """
    terms = [f"{name[5:]} {value:.4f}" for name, value in figures.items() if name.startswith("loss/")]
    return f"{figures['loss']:.4f}" + (f" ({', '.join(terms)})" if len(terms) > 1 else "")


def clock(seconds: float) -> str:
    """A duration as a person says it: 48 s, 12 min, 3 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
