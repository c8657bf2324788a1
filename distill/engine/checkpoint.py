"""Checkpoints that are whole or absent: written aside, digested, synced, then renamed into place.

A checkpoint is a folder `step-00000123` with safetensors files, `state.json`, and the manifest of `distill.manifest`. No
pickle is written or read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from distill.errors import CheckpointError, MismatchError
from distill.manifest import sealed, verified

if TYPE_CHECKING:
    from torch import Tensor

KIND = "checkpoint 1"
STATE = "state.json"
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: tensors by file and name, and plain values."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Write checkpoint `step` under `folder`; older ones beyond the newest two are removed afterwards.

    A crash at any moment leaves either the whole new checkpoint or none of it, and the older ones as they were.

    Raises:
        CheckpointError: the disk is full or not writable; nothing half-written stays behind.
    """
    final = folder / f"step-{step:08d}"
    with sealed(final, KIND, "checkpoint ", CheckpointError) as aside:
        for name, group in tensors.items():
            save_file(
                {key: tensor.detach().cpu().contiguous() for key, tensor in group.items()},
                aside / f"{name}.safetensors",
            )
        (aside / STATE).write_text(json.dumps({"step": step, **state}))
    for old in _steps(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest_checkpoint(folder: Path, owner: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of `owner` under `folder`, and a line for each damaged one passed over.

    Raises:
        CheckpointError: every checkpoint there is damaged.
        MismatchError: the newest whole one belongs to another run.
    """
    problems: list[str] = []
    for path in _steps(folder):
        try:
            checkpoint = _read(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if checkpoint.state.get("owner") != owner:
            raise MismatchError(
                f"checkpoint {path}: belongs to a run with other settings; use another output folder or remove it"
            )
        return checkpoint, problems
    if problems:
        raise CheckpointError("; ".join(problems) + "; remove the folder to start this part again")
    return None, []


def _read(path: Path) -> Checkpoint:
    try:
        files = verified(path, KIND)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {error}") from error.__cause__
    try:
        state = json.loads((path / STATE).read_text())
        tensors = {
            name.removesuffix(".safetensors"): load_file(path / name)
            for name in files
            if name.endswith(".safetensors")
        }
        return Checkpoint(int(state["step"]), tensors, state)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path}: {STATE} cannot be read ({error})") from error


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []
