"""What commands show: text on a terminal or in a pipe, JSON for machines, and progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from distill.cli.stopping import Stopping
from distill.errors import DistillError
from distill.processes import speaks

if TYPE_CHECKING:
    from rich.console import Console

    from distill.progress import Progress


def progress_of(*, quiet: bool) -> Progress:
    """Bars on a terminal, lines elsewhere, nothing where it shall be quiet; each ends the work that a signal stops."""
    from distill.progress import Bars, Lines, Silent

    if quiet:
        return Stopping(Silent())
    if not sys.stderr.isatty():
        return Stopping(Lines())
    from rich.console import Console

    return Stopping(Bars(Console(stderr=True)))


def present(data: Any, as_json: bool, show: Callable[[Console], None]) -> None:
    """One JSON object, or what a person reads."""
    if not speaks():
        return
    if as_json:
        say_json(data)
        return
    from rich.console import Console

    show(Console(width=None if sys.stdout.isatty() else 120))


def show_scores(results: dict[str, dict[str, Any]]) -> None:
    """Scores by task, beside those of lm-evaluation-harness where it was asked."""
    from distill.independent_check import comparison
    from distill.tasks import TASKS

    if any("lm_eval" in result for result in results.values()):
        say(comparison(results))
    for task, result in results.items():
        if "lm_eval" not in result:
            for name, value in result["metrics"].items():
                beside = f"   (majority {100 * result['majority'][name]:.1f})" if "majority" in result else ""
                say(f"{TASKS[task].title} {name}: {100 * value:.1f}{beside}")
            for name, value in result.get("language", {}).items():
                say(f"{TASKS[task].title} {name}: {value:.3f}")
        for note in result.get("notes", []):
            say(f"note: {note}")


def show_submission(found: dict[str, Any]) -> None:
    """What a leaderboard's zip holds, and what it lacks."""
    from distill.tasks import TASKS

    for name, count in found["units"].items():
        cut = found.get("truncated", {}).get(name, 0)
        nameless = found["unnamed"].get(name, 0)
        say(
            f"{TASKS[name].title + '.jsonl':<13} {count:>6,} {TASKS[name].unit[count != 1]}"
            + (f", {cut:,} inputs cut" if cut else "")
            + (f", {nameless:,} answers named no class" if nameless else "")
        )
    for line in found["missing"]:
        say(f"missing: {line}")
    whole = (
        "not a whole submission" if found["missing"] else "a whole submission, in the leaderboard's layout"
    )
    say(f"{found['submission']}: {whole}")


def say_json(data: Any) -> None:
    """One JSON object, for machines."""
    say(json.dumps(data, indent=1, ensure_ascii=False))


def say(text: str, *, to_stderr: bool = False) -> None:
    """A line of output.

    Raises:
        BrokenPipeError: nobody reads standard output any more.
        DistillError: it cannot be written.
    """
    try:
        print(text, file=sys.stderr if to_stderr else sys.stdout, flush=True)
    except OSError as error:
        if to_stderr:  # nobody can be told, and the exit code says it
            return
        if isinstance(error, BrokenPipeError):
            raise
        raise DistillError(f"standard output: cannot be written ({error.strerror})") from error
