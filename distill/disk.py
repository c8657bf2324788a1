"""Files that outlive a crash and are written by one process at a time: whole, synced, digested, locked."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from distill.errors import CheckpointError, DistillError, ResourceError

_CURES = {
    errno.ENOSPC: "free some space there, then run again to continue",
    errno.EDQUOT: "free some of your quota there, then run again to continue",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f), then run again to continue",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that can be written",
    errno.EPERM: "choose a folder that can be written",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "raise the limit on open files (ulimit -n), then run again to continue",
    errno.ENFILE: "close programs that hold files open, then run again to continue",
}


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


def reason_of(error: BaseException) -> tuple[str, str] | None:
    """Why a file could not be written, and what to do about it; None where it is not the system that refused.

    Libraries written in Rust (safetensors, tokenizers) raise classes of their own with the system's number in the text.
    """
    number, other = _number_of(error), "look at the disk, then run again to continue"
    if number is None:
        return (str(error), other) if isinstance(error, OSError) else None
    return os.strerror(number), _CURES.get(number, other)


def shortage(error: BaseException) -> str | None:
    """One line for an error that says that there is no space, no more open files, …; None for any other."""
    number = _number_of(error)
    if number not in _CURES or number in (errno.EACCES, errno.EPERM):  # these may be about reading
        return None
    name = getattr(error, "filename", None) or "a file"
    return f"{name}: {os.strerror(number)}; {_CURES[number]}"


def _number_of(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


@contextlib.contextmanager
def refused(path: Path, what: str = "", raises: type[DistillError] = ResourceError) -> Iterator[None]:
    """Say in one line that a file cannot be written, and why.

    Args:
        path: to name.
        what: stands before the path.
        raises: the class of the error.

    Raises:
        DistillError: of the class `raises`, where the system refused.
    """
    try:
        yield
    except DistillError:
        raise
    except Exception as error:
        found = reason_of(error)
        if found is None:
            raise
        reason, cure = found
        raise raises(f"{what}{path}: cannot be written ({reason}); {cure}") from error


@contextlib.contextmanager
def whole(path: Path, what: str = "", raises: type[DistillError] = ResourceError) -> Iterator[Path]:
    """Where to write a file that then takes its place: whoever reads it sees the old one or the new one, never half.

    An error leaves the old file and nothing else. Death (a kill, a power cut) leaves what was half written in a folder
    `.writing-NAME` beside it, also what a library wrote aside there; the next writing of the file removes that. The
    folder above is made if it is not there.

    Args:
        path: the final place.
        what: stands before the path in an error.
        raises: the class of the error.

    Raises:
        DistillError: of the class `raises`: there is no space, no right to write, ….
    """
    aside = path.with_name(f".writing-{path.name}")
    with refused(path, what, raises):
        try:
            remove(aside)
            aside.mkdir(parents=True)
            yield aside / path.name
            sync(aside / path.name)
            os.replace(aside / path.name, path)
            sync(path.parent)
        finally:
            remove(aside)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, if it is there and can be deleted."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
