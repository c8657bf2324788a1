"""A teacher that is read from disk.

Shapes: N rows of a batch, C classes, K kept classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from distill.cache.alone import examples, key_of, rows_of_examples
from distill.cache.files import Manifest, OpenShard, keys_of, read_manifest, verify
from distill.cache.header import Header
from distill.cache.spec import CacheSpec
from distill.cache.writer import check_header
from distill.errors import CheckpointError, MismatchError
from distill.losses import Ensemble, SparseTeacher
from distill.models import Batch, Prediction, SparsePrediction

if TYPE_CHECKING:
    from torch import Tensor


class CachedTeacher:
    """What a teacher said, found by each example's content: the order, size and padding of batches are free.

    Open it with `CachedTeacher.open`. A shard is compared with its sha256 when it is first needed; what a batch needs
    is read from the mapped file, so that memory holds the keys (some 150 bytes an example) and one batch.

    It holds no activations: losses that compare those need a `Teacher` that runs.

    Attributes:
        spec: what was kept: a loss must have its temperature.
        classes: columns of a row of logits.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.spec: CacheSpec = manifest.spec
        self.classes = manifest.classes
        self._manifest = manifest
        self._open: dict[int, OpenShard] = {}
        self._place: dict[bytes, tuple[int, int]] = {}
        for number, shard in enumerate(manifest.shards):
            for at, key in enumerate(keys_of(folder, shard)):
                self._place[key] = (number, at)

    @classmethod
    def open(cls, folder: Path, header: Header) -> CachedTeacher:
        """Open a cache of the teacher that `header` describes.

        Raises:
            CheckpointError: there is none, it is damaged, or it was made with another teacher, tokenizer or format; one
                line that names what differs.
        """
        manifest = read_manifest(folder)
        if manifest is None:
            raise CheckpointError(f"cache {folder}: there is no cache here; write one first")
        check_header(folder, manifest, header)
        return cls(folder, manifest)

    def __call__(self, batch: Batch) -> Prediction | SparsePrediction:
        """What the teacher said of the rows of a batch, in their order, on the batch's device.

        Raises:
            CheckpointError: an example that the teacher was not asked about, or a damaged file.
        """
        device = batch.index_B.device
        kept: list[dict[str, Tensor]] = []
        for example, count in zip(examples(batch.to("cpu")), rows_of_examples(batch), strict=True):
            rows = self._rows(example)
            if any(len(tensor) != count for tensor in rows.values()):
                raise MismatchError(
                    f"cache {self.folder}: holds another number of rows of example {int(example.index_B)}; write it again"
                )
            kept.append(rows)
        if self.spec.kept == "full":
            return Prediction(torch.cat([rows["logits"] for rows in kept]).to(device))
        return SparsePrediction(
            SparseTeacher(
                torch.cat([rows["index"].long() for rows in kept]).to(device),
                torch.cat([rows["probability"] for rows in kept]).to(device),
            )
        )

    def _rows(self, example: Batch) -> dict[str, Tensor]:
        place = self._place.get(key_of(example))
        if place is None:
            for shard in self._manifest.shards:  # a damaged key looks like a missing example
                verify(self.folder, shard)
            unfinished = "" if self._manifest.complete else " (its writer did not come to the end)"
            raise MismatchError(
                f"cache {self.folder}: the teacher was not asked about example {int(example.index_B)}: its tokens, or "
                f"which of them count, are not those of any example in the cache{unfinished}; write the cache with "
                "this data, which adds what is missing"
            )
        number, at = place
        if number not in self._open:
            self._open[number] = OpenShard(self.folder, self._manifest.shards[number])
        return self._open[number].rows(at)


class CachedEnsemble:
    """Several full caches read as one teacher: its members never had to be in memory together.

    Args:
        members: full caches of teachers with one vocabulary.
        mean: how their logits become one teacher's.
    """

    def __init__(self, members: Sequence[CachedTeacher], mean: Ensemble):
        if any(member.spec.kept != "full" for member in members):
            raise ValueError("a mean is taken of all classes: every member needs a full cache")
        self.members = tuple(members)
        self.mean = mean

    def __call__(self, batch: Batch) -> Prediction:
        """The mean of all members' logits, see `CachedTeacher`."""
        logits = []
        for member in self.members:
            said = member(batch)
            assert isinstance(said, Prediction)  # noqa: S101 - full caches say nothing else
            logits.append(said.logits_NC)
        return Prediction(self.mean(logits))
