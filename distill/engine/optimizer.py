"""AdamW, its schedule, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from distill.engine.sharded import part_of
from distill.errors import CheckpointError
from distill.recipe import TrainRecipe

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


def make_optimizer(model: nn.Module, train: TrainRecipe, steps: int) -> tuple[Optimizer, LRScheduler]:
    """AdamW without decay on biases and norms, with warm-up and the recipe's decay over `steps`."""
    from transformers import get_scheduler

    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": train.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=train.learning_rate,
        fused=True,
    )
    warmup = round(train.warmup_steps * steps) if train.warmup_steps < 1 else round(train.warmup_steps)
    return optimizer, get_scheduler(
        train.lr_scheduler_type, optimizer, num_warmup_steps=warmup, num_training_steps=steps
    )


def optimizer_tensors(optimizer: Any) -> dict[str, Tensor]:
    """Every tensor of the optimizer's state, named `<parameter number>.<what>`."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": tensor for number, entry in state.items() for name, tensor in entry.items()}


def restore_optimizer(optimizer: Any, tensors: Mapping[str, Tensor]) -> None:
    """Put stored tensors back. What the optimizer holds besides (learning rates) is the scheduler's to restore.

    Raises:
        CheckpointError: they are another optimizer's, or only a part of one's.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = tensor
    whole = optimizer.state_dict()
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if state.keys() - set(range(len(held))):
        raise CheckpointError("the checkpoint's optimizer has other parameters than the student")
    of_each = {name for entry in state.values() for name in entry}
    for parameter, entry in state.items():
        if of_each - entry.keys():
            raise CheckpointError(
                f"the checkpoint's optimizer lacks {min(of_each - entry.keys())} of parameter {parameter}"
            )
    for parameter, moments in ((held[place], moments) for place, moments in state.items()):
        for name, tensor in moments.items():
            if tensor.shape == parameter.shape:
                moments[name] = part_of(tensor, parameter)
    optimizer.load_state_dict({**whole, "state": state})
