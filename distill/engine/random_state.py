"""The random number generators that training draws from, as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from distill.errors import CheckpointError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor


def own_random(accelerator: Accelerator) -> dict[str, Tensor]:
    """The generator states of this process, by the kind of device."""
    mine = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        mine["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    return mine


def restore_own(accelerator: Accelerator, states: Mapping[str, Tensor]) -> None:
    """Put this process's generators where they were."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], accelerator.device)


def random_tensors(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The generator states of every process, in their order, by the names of a checkpoint."""
    return {f"{name}.{rank}": state for rank, named in enumerate(states) for name, state in named.items()}


def restore_random(accelerator: Accelerator, tensors: Mapping[str, Tensor]) -> None:
    """Put this process's generators where they were.

    Raises:
        CheckpointError: the checkpoint was made by another number of processes or kind of device.
    """
    rank = accelerator.process_index
    wanted = ["cpu", *(["cuda"] if accelerator.device.type == "cuda" else [])]
    missing = [name for name in wanted if f"{name}.{rank}" not in tensors]
    held = sum(name.startswith("cpu.") for name in tensors)
    if missing or held != accelerator.num_processes:
        raise CheckpointError(
            f"the checkpoint is of {held} processes{f' and holds no {missing[0]} random state' if missing else ''}: "
            "continue with as many processes and the same kind of device as it was made with"
        )
    restore_own(accelerator, {name: tensors[f"{name}.{rank}"] for name in wanted})
