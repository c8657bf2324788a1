"""Processes that do one run together: the first writes and speaks, and all stop when one has failed."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from distill.errors import DistillError, RecipeError

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

# How long one process may work while the others wait. They notice at once if it is gone.
PATIENCE = timedelta(days=7)
# How long a process that fails waits for the main one to fail with the same words.
SAME_WORDS = 2.0
# How long the main process, which holds what all share, is still there for the others after a failure.
LAST_WORDS = 0.5

_FAILED = "distill/failed"
_MAIN_FAILED = "distill/main-failed"
_STOPPED = "was stopped by a signal"

# Whether work of all processes has failed in this one.
_failing = False


class ElsewhereError(DistillError):
    """Another process of the run has failed, and this one cannot go on."""


def new_accelerator(trackers: Sequence[str] = (), folder: Path | None = None) -> Accelerator:
    """Accelerate, with nothing in it that decides what is learnt.

    Precision and accumulation are the recipe's, whatever a launcher's configuration says.

    Args:
        trackers: which of its trackers it shall have, not yet started.
        folder: where those of them write that keep files.

    Raises:
        RecipeError: the launcher wants what `check_accelerator` refuses.
    """
    for name in ("DeepSpeed", "Megatron-LM"):
        if _wanted(f"ACCELERATE_USE_{name.upper().replace('-', '_')}"):
            raise RecipeError(
                [f"accelerate: distill does not support {name}; use --multi_gpu (DDP) or FSDP 2"]
            )
    import torch
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    if _wanted("ACCELERATE_USE_FSDP") and not torch.accelerator.is_available():
        raise RecipeError(
            ["accelerate: FSDP needs GPUs (accelerate would leave it out here); use --multi_gpu"]
        )

    # Without this, processes that a launcher starts on a machine without accelerators take no notice of each other,
    # and each trains alone.
    alone_on_cpu = "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
    made = Accelerator(
        cpu=alone_on_cpu,
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=list(trackers) or None,
        project_dir=folder,
    )
    check_accelerator(made)
    if made.num_processes > 1:
        atexit.register(_leave)
    return made


def check_accelerator(accelerator: Accelerator) -> None:
    """Refuse what accelerate can do and the engine cannot.

    Raises:
        RecipeError: the student is to be divided among devices by anything but FSDP 2, or the accelerator decides
            what is the recipe's to decide.
    """
    kind = accelerator.distributed_type.value
    plugin = accelerator.state.fsdp_plugin if kind == "FSDP" else None
    problems = []
    if kind in ("DEEPSPEED", "MEGATRON_LM"):
        problems.append(f"distill does not support {kind}; use --multi_gpu (DDP) or FSDP 2")
    if plugin and plugin.fsdp_version != 2:
        problems.append(f"fsdp_version must be 2, found {plugin.fsdp_version}")
    if plugin and plugin.cpu_ram_efficient_loading:
        problems.append(
            "fsdp_cpu_ram_efficient_loading must be false: only the main process would load the teacher"
        )
    if accelerator.mixed_precision != "no":
        problems.append(
            f"mixed_precision must be no, found {accelerator.mixed_precision}: train.precision decides"
        )
    if accelerator.gradient_accumulation_steps != 1:
        problems.append(
            f"gradient_accumulation_steps must be 1, found {accelerator.gradient_accumulation_steps}: "
            "train.gradient_accumulation_steps decides"
        )
    if problems:
        raise RecipeError([f"accelerate: {problem}" for problem in problems])


def _wanted(flag: str) -> bool:
    """Whether accelerate's launcher has set a variable."""
    return os.environ.get(flag, "false").lower() == "true"


class Processes:
    """What the processes of a run tell each other.

    Args:
        accelerator: knows how many there are.
    """

    def __init__(self, accelerator: Accelerator):
        self.count: int = accelerator.num_processes
        self.rank: int = accelerator.process_index

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """A plain value of every process, in their order."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=_talk(dist.group.WORLD))
        return values

    def first(self, work: Callable[[], T]) -> T:
        """Let the main process do some work while the others wait, and give its plain result to all.

        Raises:
            ElsewhereError: in the others, if the work fails. In the main process it raises what it raises.
        """
        if self.count == 1:
            return work()
        import torch.distributed as dist

        # What came of it, and why nothing did.
        told: list[Any] = [None, None]
        if self.main:
            try:
                told[0] = work()
            except Exception as error:
                dist.broadcast_object_list([None, line_of(error)], src=0, group=_talk(dist.group.WORLD))
                raise
        dist.broadcast_object_list(told, src=0, group=_talk(dist.group.WORLD))
        result, failure = told
        if failure is not None:
            raise ElsewhereError(self._of(0, failure))
        return result  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def failing_together(self) -> Iterator[None]:
        """Tell the others what went wrong here, and say what went wrong elsewhere where it ends the work here.

        A process that waits for one that is gone gets an error of the network. What a person should read is why that
        one has gone.

        Raises:
            ElsewhereError: another process failed first, or was lost.
        """
        if self.count == 1:
            yield
            return
        global _failing
        _failing = False
        try:
            yield
        except BaseException as error:
            _failing = True
            mine, signalled = line_of(error), not isinstance(error, Exception)
            first = _told_first(f"{self.rank}|{_STOPPED if signalled else mine}")
            rank, failure = first.split("|", 1) if first else (str(self.rank), mine)
            if self.main:
                _set(_MAIN_FAILED, mine)
            elif not signalled and _said_by_main(mine):
                error._said = True  # type: ignore[attr-defined]
            if signalled:
                raise
            if int(rank) != self.rank and failure != mine:
                raise ElsewhereError(self._of(int(rank), failure)) from error
            if _is_of_the_network(error):
                raise ElsewhereError(
                    f"process {self.rank} of {self.count} has lost another one, which ended without a word; the same "
                    "command continues where it was"
                ) from error
            raise

    def _of(self, rank: int, failure: str) -> str:
        return f"process {rank} of {self.count}: {failure}"


def speaks(error: BaseException | None = None) -> bool:
    """Whether this process should print an error, or, without one, anything: the main process, or whose own it is."""
    if os.environ.get("RANK", "0") == "0":
        return True
    if error is None or isinstance(error, ElsewhereError) or hasattr(error, "_said"):
        return False
    # Before the processes know of each other, those of one machine read the same files and find the same mistakes.
    return _store() is not None or os.environ.get("LOCAL_RANK", "0") == "0"


def exit_alone(code: int) -> NoReturn:
    """End this process after a failure, at once where there are others.

    They may wait for it in the middle of a collective operation. Threads of gloo that then still hold a tensor abort a
    process whose interpreter is going, and its exit code with it.
    """
    if _store() is not None:
        if os.environ.get("RANK") == "0":
            time.sleep(LAST_WORDS)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def failure_elsewhere() -> str | None:
    """What another process of the run has failed with, if one has."""
    try:
        store = _store()
        if store is None or not store.check([_FAILED]):
            return None
        rank, failure = store.get(_FAILED).decode().split("|", 1)
    except Exception:  # noqa: BLE001 - the store is gone with the process that held it
        return None
    return None if failure == _STOPPED or rank == os.environ.get("RANK") else f"process {rank}: {failure}"


def line_of(error: BaseException) -> str:
    """An error in one line, or one line a mistake."""
    if isinstance(error, DistillError):
        return str(error)
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
        return f"stopped by {signal.Signals(error.code - 128).name}"
    first = str(error).strip().splitlines()
    return f"internal error, {type(error).__name__}: {first[0] if first else ''}"


@functools.cache
def _talk(world: object) -> Any:
    """A group for plain values, apart from the one that tensors go through, which must not be kept waiting."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=PATIENCE)


def _leave() -> None:
    """Leave the other processes at the end of a program that went well.

    Otherwise a thread of gloo may let go of the last plain value when the interpreter it needs for that is gone, which
    aborts the process. Destroying the groups and letting go of ours waits for its threads.
    """
    if _failing or hasattr(sys, "last_value") or _store() is None:
        return
    import torch.distributed as dist

    dist.destroy_process_group()
    _talk.cache_clear()


def _store() -> Any:
    """The memory that all processes share; None before they know of each other. Loads no torch."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.distributed_c10d._get_default_store()


def _told_first(mine: str) -> str | None:
    """Tell a failure, and return that of the process that failed first; None if nobody listens any more."""
    try:
        return _store().compare_set(_FAILED, "", mine).decode()  # type: ignore[no-any-return]
    except Exception:  # noqa: BLE001 - the store is gone with the process that held it
        return None


def _set(key: str, value: str) -> None:
    with contextlib.suppress(Exception):
        _store().set(key, value)


def _said_by_main(mine: str) -> bool:
    """Whether the main process fails with the same words, now or soon."""
    until = time.monotonic() + SAME_WORDS
    try:
        store = _store()
        while not store.check([_MAIN_FAILED]):
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return store.get(_MAIN_FAILED).decode() == mine  # type: ignore[no-any-return]
    except Exception:  # noqa: BLE001 - the store is gone with the process that held it
        return False


def _is_of_the_network(error: BaseException) -> bool:
    """Whether an error says that another process does not answer."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "onnection " in str(error))
