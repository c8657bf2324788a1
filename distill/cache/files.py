"""The files of a cache: shards of safetensors, and a manifest that names each with its sha256.

A shard is written whole or not at all, and only then named in the manifest, which is replaced in the same way: a writer
that is killed leaves every shard that the manifest names whole. No pickle is written or read.

    manifest.json            format, spec, header, classes, dtype, complete, shards
    shard-00000.safetensors  key [examples, 32], start [examples + 1] (of each example's rows), and what is kept of the rows
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from distill.cache.spec import CacheSpec
from distill.disk import sha256_of, whole
from distill.errors import CheckpointError
from distill.manifest import MANIFEST, sealed_text

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1


@dataclass(frozen=True)
class Shard:
    """A finished file of a cache.

    Attributes:
        file: its name.
        sha256: of its bytes.
        bytes: its size.
        examples: how many it holds.
        rows: how many rows these have.
    """

    file: str
    sha256: str
    bytes: int
    examples: int
    rows: int


@dataclass(frozen=True)
class Manifest:
    """What a cache's folder holds.

    Attributes:
        spec: what is kept of each row.
        header: whose predictions, as `Header.as_json` says it.
        classes: columns of a row of logits.
        dtype: of the teacher's logits.
        complete: whether the last writer came to its end.
        shards: in the order they were written.
    """

    spec: CacheSpec
    header: dict[str, Any]
    classes: int
    dtype: str
    complete: bool
    shards: tuple[Shard, ...]

    def text(self) -> str:
        """The manifest as its file holds it, where every changed byte of it is found."""
        return sealed_text({"format": FORMAT, **asdict(self)})


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest.

    Raises:
        CheckpointError: it cannot be written; the old one stands.
    """
    with whole(folder / MANIFEST, "cache ", CheckpointError) as aside:
        aside.write_text(manifest.text(), encoding="utf-8")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, or None where there is none.

    Raises:
        CheckpointError: it is damaged, or of another format.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cache {path}: cannot be read ({error})") from error
    try:
        body = json.loads(text)
        if body["format"] != FORMAT:
            raise CheckpointError(
                f"cache {path}: has format {body['format']}, but this version reads {FORMAT}; write it again"
            )
        body = {field.name: body[field.name] for field in fields(Manifest)}
        spec, shards = CacheSpec(**body.pop("spec")), tuple(Shard(**shard) for shard in body.pop("shards"))
        manifest = Manifest(spec=spec, shards=shards, **body)
        whole = manifest.text() == text and all(Path(shard.file).name == shard.file for shard in shards)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise CheckpointError(
            f"cache {path}: is damaged (its content has another sha256); remove {folder} and write it again"
        )
    return manifest


def write_shard(folder: Path, number: int, tensors: dict[str, Tensor]) -> Shard:
    """Write one shard.

    Raises:
        CheckpointError: it cannot be written; nothing half-written stays behind.
    """
    path = folder / f"shard-{number:05d}.safetensors"
    with whole(path, "cache ", CheckpointError) as aside:
        save_file(tensors, aside)
        # safetensors lets the owner alone read; a cache that people share is readable as its manifest is.
        aside.chmod((folder / MANIFEST).stat().st_mode & 0o777)
    with _said_of(path):
        return Shard(
            path.name, sha256_of(path), path.stat().st_size, len(tensors["key"]), int(tensors["start"][-1])
        )


def keys_of(folder: Path, shard: Shard) -> list[bytes]:
    """The keys of a shard's examples, in their order.

    Raises:
        CheckpointError: the file is missing, or cannot be read.
    """
    with _said_of(folder / shard.file), safe_open(folder / shard.file, "pt") as file:
        keys = file.get_tensor("key").numpy()
        return [key.tobytes() for key in keys]


def verify(folder: Path, shard: Shard) -> None:
    """Compare a shard with what the manifest says of it.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = folder / shard.file
    with _said_of(path):
        whole = path.stat().st_size == shard.bytes and sha256_of(path) == shard.sha256
    if not whole:
        raise CheckpointError(
            f"cache {path}: is damaged (its sha256 is not the manifest's); remove {folder} and write it again"
        )


@contextlib.contextmanager
def _said_of(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"cache {path}: is missing; remove {path.parent} and write it again") from error
    except PermissionError as error:
        raise CheckpointError(f"cache {path}: cannot be read ({error.strerror})") from error
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"cache {path}: is damaged ({error}); remove {path.parent} and write it again"
        ) from error


class OpenShard:
    """A verified shard, mapped into memory: what is read of it is copied, the rest stays on disk."""

    def __init__(self, folder: Path, shard: Shard):
        self.path = folder / shard.file
        verify(folder, shard)
        with _said_of(self.path):
            file: Any = safe_open(self.path, "pt")
            self._file = file
            self._start: Tensor = self._file.get_tensor("start").clone()

    def rows(self, number: int) -> dict[str, Tensor]:
        """What is kept of the rows of an example."""
        first, last = int(self._start[number]), int(self._start[number + 1])
        with _said_of(self.path):
            return {
                name: self._file.get_slice(name)[first:last].clone()
                for name in self._file.keys()  # noqa: SIM118 - not a mapping
                if name not in ("key", "start")
            }


def packed(keys: list[bytes], rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a shard."""
    counts = torch.tensor([len(next(iter(kept.values()))) for kept in rows])
    start = torch.zeros(len(keys) + 1, dtype=torch.int64)
    start[1:] = counts.cumsum(0)
    key = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), -1)
    parts = {name: torch.cat([kept[name] for kept in rows]).contiguous() for name in rows[0]}
    return {"key": key, "start": start, **parts}
