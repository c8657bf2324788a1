"""Finished fits that several runs share, each in a folder named after its content."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from distill.disk import locked, refuse_links_out, refused, whole
from distill.manifest import MANIFEST, sealed, verified
from distill.run_folder import read_json

RECORD = "fit.json"
KIND = "shared fit 1"


class CacheEntry:
    """One finished fit in the cache: its record, its predictions, and the model where it is kept."""

    def __init__(self, folder: Path):
        self.folder = folder

    def take(self, key: str, files: Mapping[str, Path]) -> bool:
        """Give a run the entry's files, if it holds them all for this key.

        Args:
            key: the whole digest of what was fitted.
            files: where the run wants each file or folder, by its name here; the record last, so that an
                interrupted copy is not taken for a finished fit.

        Raises:
            CheckpointError: a file of the entry is missing or damaged; nothing was taken.
        """
        if not (self.folder / MANIFEST).is_file() or not all((self.folder / name).exists() for name in files):
            return False
        refuse_links_out(self.folder)
        verified(self.folder, KIND)
        if read_json(self.folder / RECORD).get("key") != key:
            return False
        for name, target in files.items():
            _link(self.folder / name, target)
        return True

    def put(self, files: Mapping[str, Path]) -> None:
        """Keep a finished fit: gathered aside, sealed, then renamed, so that an entry is whole or absent.

        Raises:
            ResourceError: it cannot be written; nothing half-written stays behind.
        """
        lock = self.folder.with_name(".putting")
        with (
            refused(self.folder, "cache "),
            locked(lock, waiting=lambda: None),
            sealed(self.folder, KIND, "cache ") as aside,
        ):
            for name, source in files.items():
                _link(source, aside / name)


def _link(source: Path, target: Path) -> None:
    """A second name for a finished file (or each file of a folder) where the file system can, else a copy."""
    if source.is_dir():
        for file in source.iterdir():
            _link(file, target / file.name)
        return
    with refused(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with whole(target) as aside:
            shutil.copyfile(source, aside)
