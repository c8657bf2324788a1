"""Signals that ask a process to stop, held back while it works on what must come to a good end first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


class HeldBack:
    """Remembers the first SIGINT or SIGTERM until the work asks for it; a second one goes through at once.

    Inside the `with` block a signal sets `asked`. `deliver` hands it to whoever handled it before (Python raises
    KeyboardInterrupt, the command line exits, a script's own handler is called), and so does the end of the block.
    Afterwards the handlers are what they were. A signal that was ignored stays ignored. Only the main thread can hold
    signals back: elsewhere nothing is ever asked.

        with HeldBack() as stop:
            for part in parts:
                work(part)
                if stop.asked:
                    save()
                    stop.deliver()

    Attributes:
        asked: the number of the signal that came; None as long as none did.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int] = {}

    def __enter__(self) -> HeldBack:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                handler = signal.getsignal(number)
                # None: not installed by Python, so that Python could not put it back.
                if handler is not None and handler != signal.SIG_IGN:
                    self._before[number] = handler
                    signal.signal(number, self._hold)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.deliver()
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before = {}

    def deliver(self) -> None:
        """Do now what the signal would have done. Comes back only where its own handler does."""
        number, self.asked = self.asked, None
        if number is not None:
            self._let_through(number)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked = number
        else:
            self._let_through(number)

    def _let_through(self, number: int) -> None:
        signal.signal(number, self._before[number])
        signal.raise_signal(number)
        signal.signal(number, self._hold)
