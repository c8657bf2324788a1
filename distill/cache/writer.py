"""Ask a teacher about every example once and keep what it says.

Shapes: N rows of an example, C classes.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from distill.cache.alone import examples, key_of
from distill.cache.files import (
    Manifest,
    keys_of,
    packed,
    read_manifest,
    verify,
    write_manifest,
    write_shard,
)
from distill.cache.header import Header
from distill.cache.spec import CacheSpec
from distill.disk import locked, reason_of
from distill.errors import CheckpointError, MismatchError
from distill.manifest import MANIFEST
from distill.models import Batch, DataSet, Prediction
from distill.progress import Progress, Silent
from distill.signals import HeldBack

if TYPE_CHECKING:
    from torch import Tensor

# Large enough that a file's own header does not count, small enough to be lost to a crash.
SHARD_BYTES = 64 * 2**20

_READ_TOGETHER = 16
_OF_AN_EXAMPLE = 32 + 8


@dataclass(frozen=True)
class CacheSummary:
    """What a cache holds.

    Attributes:
        folder: where it is.
        examples: different ones.
        rows: of all of them.
        bytes: of the shards.
        computed: examples that this call asked the teacher about; the others were there already, or came twice.
    """

    folder: Path
    examples: int
    rows: int
    bytes: int
    computed: int

    @property
    def bytes_per_row(self) -> float:
        """Bytes a token (of a language model) or an example."""
        return self.bytes / max(self.rows, 1)


def estimated_bytes(
    spec: CacheSpec, features: DataSet, *, classes: int, epochs: int = 1, element_size: int = 4
) -> int:
    """What a cache will weigh, were no example to come twice: `element_size` bytes a logit of the teacher."""
    count = len(features)
    rows = features.rows_of(range(count))
    return epochs * (rows * spec.bytes_of_row(classes, element_size) + count * _OF_AN_EXAMPLE)


def write_cache(
    folder: Path,
    header: Header,
    features: DataSet,
    teacher: Callable[[Batch], Prediction],
    spec: CacheSpec,
    *,
    epochs: int = 1,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> CacheSummary:
    """Write what a teacher says of a data set, or the part of it that a folder does not hold yet.

    Each example is asked about alone and unpadded (see `EachAlone`), and kept once, whatever its place. A writer that
    was killed goes on behind the last whole shard when it is called again; one that SIGINT or SIGTERM asks to stop
    first keeps what it has (a second signal takes its course at once).

    Args:
        folder: of the cache; made if it is not there.
        header: whose predictions these are, from `header_of`.
        features: the examples.
        teacher: a live one.
        spec: what is kept.
        epochs: how many of a data set that is drawn anew in each (masked tokens).
        device: where the teacher stands.
        progress: told how many examples are done.
        shard_bytes: size at which a file is full; so much is held in memory.

    Raises:
        CheckpointError: the folder holds another teacher's or another kind of predictions, is damaged or cannot be
            written, or the disk is too small.
    """
    progress = progress or Silent()
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(folder, waiting=lambda: progress.say(_waits(folder))))
        except OSError as error:
            # Where nobody can write, a finished cache can still be read.
            if not (folder / MANIFEST).is_file():
                reason, cure = reason_of(error) or (str(error), "")
                raise CheckpointError(f"cache {folder}: cannot be written ({reason}); {cure}") from error
        stop = held.enter_context(HeldBack())
        return _write(folder, header, features, teacher, spec, epochs, device, progress, shard_bytes, stop)


def _waits(folder: Path) -> str:
    return f"teacher cache: another process is at work in {folder}; waiting for it"


def _write(
    folder: Path,
    header: Header,
    features: DataSet,
    teacher: Callable[[Batch], Prediction],
    spec: CacheSpec,
    epochs: int,
    device: torch.device | str,
    progress: Progress,
    shard_bytes: int,
    stop: HeldBack,
) -> CacheSummary:
    manifest = read_manifest(folder)
    known: set[bytes] = set()
    if manifest is not None:
        check_header(folder, manifest, header)
        if manifest.spec != spec:
            raise MismatchError(f"cache {folder}: keeps {manifest.spec}, not {spec}; choose another folder")
        for shard in manifest.shards:
            verify(folder, shard)
            known.update(keys_of(folder, shard))
    keys: list[bytes] = []
    rows: list[dict[str, Tensor]] = []
    size = computed = 0
    total = epochs * len(features)
    progress.begin("teacher cache", total)
    for place in range(0, total, _READ_TOGETHER):
        for at in range(place, min(place + _READ_TOGETHER, total)):
            if stop.asked is not None:
                if manifest is not None and keys:
                    manifest = _append(folder, manifest, keys, rows)
                    keys, rows, size = [], [], 0
                stop.deliver()
            epoch, index = divmod(at, len(features))
            (example,) = examples(features.batch([index], epoch=epoch))
            key = key_of(example)
            if key in known:
                continue
            with torch.inference_mode():
                logits_NC = teacher(example.to(device)).logits_NC
            if manifest is None:
                manifest = _begin(folder, header, features, spec, logits_NC, epochs, progress)
            kept = spec.tensors(logits_NC, key)
            known.add(key)
            keys.append(key)
            rows.append(kept)
            computed += 1
            size += sum(tensor.nbytes for tensor in kept.values()) + _OF_AN_EXAMPLE
            if size >= shard_bytes:
                manifest = _append(folder, manifest, keys, rows)
                keys, rows, size = [], [], 0
        progress.advance(min(place + _READ_TOGETHER, total))
    if manifest is None:
        raise CheckpointError(f"cache {folder}: there are no examples to ask the teacher about")
    if keys:
        manifest = _append(folder, manifest, keys, rows)
    if not manifest.complete:
        manifest = replace(manifest, complete=True)
        write_manifest(folder, manifest)
    summary = CacheSummary(
        folder=folder,
        examples=sum(shard.examples for shard in manifest.shards),
        rows=sum(shard.rows for shard in manifest.shards),
        bytes=sum(shard.bytes for shard in manifest.shards),
        computed=computed,
    )
    progress.end(f"{summary.rows} rows, {summary.bytes_per_row:.0f} bytes a row")
    return summary


def check_header(folder: Path, manifest: Manifest, header: Header) -> None:
    """Refuse a cache of other predictions.

    Raises:
        MismatchError: it names what differs.
    """
    different = header.differences(manifest.header)
    if different:
        raise MismatchError(
            f"cache {folder}: was made with another {'; another '.join(different)}; write a new cache in another folder"
        )


def _begin(
    folder: Path,
    header: Header,
    features: DataSet,
    spec: CacheSpec,
    logits_NC: Tensor,
    epochs: int,
    progress: Progress,
) -> Manifest:
    """The manifest of an empty cache, if the disk has room for a full one."""
    need = estimated_bytes(
        spec,
        features,
        classes=logits_NC.shape[1],
        epochs=epochs,
        element_size=logits_NC.element_size(),
    )
    free = shutil.disk_usage(folder).free
    if need > free:
        raise CheckpointError(
            f"cache {folder}: needs about {need / 1e9:.3g} GB, but the disk has {free / 1e9:.3g} GB free; keep less of "
            "each row (top_k, sampled) or use another folder"
        )
    progress.say(
        f"teacher cache: about {need / 1e6:.3g} MB, "
        f"{spec.bytes_of_row(logits_NC.shape[1], logits_NC.element_size()):,} bytes a row, in {folder} "
        f"({free / 1e9:.3g} GB free)"
    )
    manifest = Manifest(
        spec=spec,
        header=header.as_json(),
        classes=int(logits_NC.shape[1]),
        dtype=str(logits_NC.dtype).removeprefix("torch."),
        complete=False,
        shards=(),
    )
    write_manifest(folder, manifest)
    return manifest


def _append(folder: Path, manifest: Manifest, keys: list[bytes], rows: list[dict[str, Tensor]]) -> Manifest:
    shard = write_shard(folder, len(manifest.shards), packed(keys, rows))
    manifest = replace(manifest, complete=False, shards=(*manifest.shards, shard))
    write_manifest(folder, manifest)
    return manifest
