"""What a folder holds: `manifest.json` names every file with its sha256, and carries its own.

    {"sha256": of the rest as it stands here, "format": "distill checkpoint 1", "files": {"state.json": "5f70…", …}}

A folder is sealed when it is whole. From then on a file that is missing, cut off or changed by one bit is found, and so
is a manifest that was changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.disk import refused, remove, sha256_of, sync, whole
from distill.errors import CheckpointError, DistillError, ResourceError

MANIFEST = "manifest.json"


def sealed_text(body: Mapping[str, Any]) -> str:
    """JSON that carries the sha256 of the rest of itself."""
    return _text({"sha256": hashlib.sha256(_text(body).encode()).hexdigest(), **body})


def is_sealed(text: str) -> bool:
    """Whether every byte of a text is as `sealed_text` made it."""
    try:
        body = json.loads(text)
        body.pop("sha256")
        return sealed_text(body) == text
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return False


def seal(folder: Path, kind: str) -> None:
    """Write down what a folder holds, and make all of it survive a power cut.

    Args:
        folder: with its files as they will stay, which then are as readable as any new file.
        kind: what it is, with the number of its format: "checkpoint 1".

    Raises:
        OSError: the folder cannot be written.
    """
    manifest = folder / MANIFEST
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != manifest)
    digests = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
    manifest.write_text(_listed(kind, digests), encoding="utf-8")
    mode = manifest.stat().st_mode & 0o777
    for path in files:
        if path.stat().st_mode & 0o777 != mode:  # safetensors lets the owner alone read
            path.chmod(mode)
        sync(path)
    sync(manifest)
    for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        sync(path)


def relist(folder: Path, kind: str, files: Mapping[str, str]) -> None:
    """Give a sealed folder, of which something has changed, another list of its files.

    Args:
        folder: sealed.
        kind: see `seal`.
        files: all of its files with their sha256, as `verified` gave them and the change has it.

    Raises:
        ResourceError: it cannot be written; the old list stands.
    """
    with whole(folder / MANIFEST) as aside:
        aside.write_text(_listed(kind, files), encoding="utf-8")


@contextlib.contextmanager
def sealed(
    folder: Path, kind: str, what: str = "", raises: type[DistillError] = ResourceError
) -> Iterator[Path]:
    """Where to write the files of a folder that then takes its place, sealed: it is whole or absent.

    An error leaves the old folder and nothing else. What death leaves (a kill, a power cut) stands aside under another
    name, and the next writing of the folder removes it.

    Args:
        folder: the final place.
        kind: see `seal`.
        what: stands before the folder in an error.
        raises: the class of the error.

    Raises:
        DistillError: of the class `raises`: there is no space, no right to write, ….
    """
    aside = folder.with_name(f".writing-{folder.name}")
    with refused(folder, what, raises):
        try:
            remove(aside)
            aside.mkdir(parents=True)
            yield aside
            seal(aside, kind)
            # Without its manifest, what is left of the old folder is none.
            (folder / MANIFEST).unlink(missing_ok=True)
            remove(folder)
            aside.rename(folder)
            sync(folder.parent)
        except BaseException:
            remove(aside)
            raise


def verified(folder: Path, kind: str) -> dict[str, str]:
    """The files of a sealed folder with their digests, each compared with what is on the disk.

    Raises:
        CheckpointError: one line with the folder, the file and what is wrong with it.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: {MANIFEST} is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: {MANIFEST} is damaged (it cannot be read: {error})") from error
    if not is_sealed(text):
        raise CheckpointError(f"{folder}: {MANIFEST} is damaged (its content has another sha256)")
    body = json.loads(text)
    if body.get("format") != f"distill {kind}":
        raise CheckpointError(
            f"{folder}: {MANIFEST} has format {body.get('format')!r}, but this version reads 'distill {kind}'"
        )
    files: dict[str, str] = body["files"]
    for name, digest in files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(f"{folder}: {MANIFEST} names {name!r}, which is no file of it")
        try:
            found = sha256_of(folder / name)
        except FileNotFoundError:
            raise CheckpointError(f"{folder}: {name} is missing") from None
        except OSError as error:
            raise CheckpointError(f"{folder}: {name} cannot be read ({error.strerror or error})") from error
        if found != digest:
            raise CheckpointError(f"{folder}: {name} is damaged (its sha256 is not the manifest's)")
    return files


def _listed(kind: str, files: Mapping[str, str]) -> str:
    return sealed_text({"format": f"distill {kind}", "files": {name: files[name] for name in sorted(files)}})


def _text(body: Mapping[str, Any]) -> str:
    return json.dumps(body, indent=1) + "\n"
