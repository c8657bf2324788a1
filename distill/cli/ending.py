"""How the command line ends: 0 done, 1 our failure, 2 the user's input, 130 and 143 for signals; one line a mistake."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

import typer

from distill.cli import stopping
from distill.cli.commands import app
from distill.cli.screen import say
from distill.errors import (
    AlignmentError,
    DataError,
    DistillError,
    LossError,
    MismatchError,
    ModelError,
    PublishError,
    RecipeError,
)
from distill.processes import exit_alone, failure_elsewhere, speaks

# What a user can mend.
USERS = (RecipeError, DataError, ModelError, AlignmentError, LossError, MismatchError, PublishError)
STOPPED = "distill: stopped; the same command continues where it was"


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 our failure, 2 the user's input, 130 and 143 for signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = exit_code()
    except SystemExit as stopped:  # by a signal
        code = stopped.code if isinstance(stopped.code, int) else 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code:
        exit_alone(code)
    sys.exit(0)


def exit_code() -> int:
    """Run the command line, say what went wrong, and return the exit code; signals raise."""
    stopping.begin()
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored by who started us
        signal.signal(signal.SIGINT, _stop)
    try:
        code = app(standalone_mode=False)
    except DistillError as error:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a launcher stops all processes when one has failed
        if speaks(error):
            for line in error.problems if isinstance(error, RecipeError) else [error]:
                say(f"distill: {line}", to_stderr=True)
        return 2 if isinstance(error, USERS) else 1
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        # The reader of our output has gone (| head): nothing more to say, and Python must not say it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        # Wrong usage: the class of these is typer's own or click's, by typer's version.
        if hasattr(error, "exit_code") and hasattr(error, "show"):
            error.show()
            return int(error.exit_code)
        if os.environ.get("DISTILL_TRACEBACK"):
            raise
        if speaks(error):
            say(f"distill: {_failure(error)}", to_stderr=True)
        return 1
    if code == 130 and speaks():  # typer turns an interrupt into this code
        say(STOPPED, to_stderr=True)
    return code if isinstance(code, int) else 0


def _failure(error: Exception) -> str:
    """One line for what no part of distill expected."""
    from distill.disk import shortage
    from distill.memory import ran_out_of_memory, what_was_wanted

    if ran_out_of_memory(error):
        return (
            f"out of memory ({what_was_wanted(error)}); lower train.per_device_train_batch_size, "
            "train.per_device_eval_batch_size or data.max_length, or take smaller models"
        )
    short = shortage(error)
    if short is not None:
        return short
    first = str(error).strip().splitlines()
    return f"internal error, {type(error).__name__}: {first[0] if first else ''} (DISTILL_TRACEBACK=1 shows where)"


def _stop(number: int, frame: object) -> None:
    failure = failure_elsewhere()
    if not stopping.asked() and number != signal.SIGINT and speaks():
        say(f"distill: {failure}" if failure else STOPPED, to_stderr=True)
    stopping.stop(number)
