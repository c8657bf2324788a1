"""Files that outlive a crash and are written by one process at a time: whole, synced, digested, locked."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from distill.errors import DistillError


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a power cut."""
    if os.name == "nt" and path.is_dir():  # where a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The digest of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file that then takes its place: whoever reads it sees the old one or the new one, never half.

    An error leaves the old file and nothing else. Death (a kill, a power cut) leaves what was half written in a folder
    `.writing-NAME` beside it, also what a library wrote aside there; the next writing of the file removes that.

    Raises:
        OSError: the file cannot be written.
    """
    aside = path.with_name(f".writing-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside / path.name
        sync(aside / path.name)
        os.replace(aside / path.name, path)
        sync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path, *, waiting: Callable[[], object] | None = None) -> Iterator[None]:
    """Keep a second process from writing in the same folder at the same time; the folder is made if it is not there.

    Args:
        folder: whose `.lock` is held.
        waiting: called once before this process waits for another to be done; None refuses instead.

    Raises:
        OSError: the folder cannot be written.
        DistillError: another process is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            import fcntl
        except ImportError:  # no such lock on this platform
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if waiting is None:
                raise DistillError(f"{folder}: another process is running in this folder") from None
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
