"""Files that outlive a crash and are written by one process at a time: synced, digested, locked."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from distill.errors import CheckpointError, DistillError


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The digest of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def refuse_links_out(folder: Path) -> None:
    """Nothing is read or written elsewhere through a folder that somebody else may have filled.

    Raises:
        CheckpointError: a link in it leads out of it.
    """
    root = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise CheckpointError(
                f"{path}: is a link that leads out of {folder}; remove it, or use another folder"
            )


@contextlib.contextmanager
def locked(folder: Path, *, waiting: Callable[[], object] | None = None) -> Iterator[None]:
    """Keep a second process from writing in the same folder at the same time; the folder is made if it is not there.

    Args:
        folder: whose `.lock` is held.
        waiting: called once before this process waits for another to be done; None refuses instead.

    Raises:
        OSError: the folder cannot be written.
        DistillError: another process is at work there.
        CheckpointError: a link in it leads out of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links_out(folder)
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
