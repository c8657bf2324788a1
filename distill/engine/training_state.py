"""What a checkpoint holds of a training, and going on from it."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from distill.engine.checkpoint import Checkpoint
from distill.engine.optimizer import optimizer_tensors, restore_optimizer
from distill.engine.random_state import own_random, random_tensors, restore_random
from distill.engine.sharded import gathered, part_of
from distill.errors import CheckpointError
from distill.losses import Total

if TYPE_CHECKING:
    from torch import Tensor

    from distill.engine.engine import Engine


def state_of(engine: Engine) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by file and name, and plain values, as a checkpoint keeps them. All processes must call this together."""
    main = engine.processes.main
    states = engine.processes.gather(own_random(engine.accelerator))
    tensors = {
        "student": gathered(_weights(engine.accelerator.unwrap_model(engine.student.model)), kept=main),
        "optimizer": gathered(optimizer_tensors(engine.optimizer), kept=main),
        "random": random_tensors(states),
        "figures": engine.figures.tensors(),
        **({"projections": _weights(engine.projections)} if engine.projections else {}),
    }
    values = {
        "owner": engine.owner,
        "scheduler": engine.scheduler.state_dict(),
        "tokens": engine.tokens,
        "seconds": engine.seconds,
        "at_once": engine.plan.at_once,
        "losses": engine.spikes.losses,
        # A scheduled loss is its own state.
        "loss": {
            name: asdict(term)
            for name, term in zip(engine.loss.names, engine.loss, strict=True)
            if term.scheduled
        },
        "own_texts": engine.own_texts.unsaid if engine.own_texts else None,
    }
    return tensors, values


def go_back(engine: Engine, checkpoint: Checkpoint) -> None:
    """Put a training where a checkpoint of it was made.

    Raises:
        CheckpointError: the checkpoint lacks what this training goes on from, or holds something else.
    """
    of = engine.checkpoints
    missing = {"student", "optimizer", "random", "figures"} - checkpoint.tensors.keys()
    if missing:
        raise CheckpointError(f"{of}: the checkpoint holds no {min(missing)}")
    if checkpoint.step and not checkpoint.tensors["optimizer"]:
        raise CheckpointError(f"{of}: the checkpoint's optimizer is empty")
    student = engine.accelerator.unwrap_model(engine.student.model)
    for what, module in (("student", student), ("projections", engine.projections)):
        weights, stored = _weights(module), checkpoint.tensors.get(what, {})
        if {name: tensor.shape for name, tensor in weights.items()} != {
            name: tensor.shape for name, tensor in stored.items()
        }:
            raise CheckpointError(f"{of}: the checkpoint's {what} tensors are others")
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(part_of(stored[name], tensor))
    restore_optimizer(engine.optimizer, checkpoint.tensors["optimizer"])
    engine.scheduler.load_state_dict(checkpoint.state["scheduler"])
    # A scheduler's state does not reach the optimizer before its next step: put the rate back by hand.
    for group, rate in zip(engine.optimizer.param_groups, engine.scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
    restore_random(engine.accelerator, checkpoint.tensors["random"])
    engine.step_number = checkpoint.step
    engine.tokens = int(checkpoint.state["tokens"])
    engine.seconds_before = float(checkpoint.state["seconds"])
    engine.plan = replace(engine.plan, at_once=checkpoint.state["at_once"])
    engine.spikes.losses = checkpoint.state["losses"]
    terms = zip(engine.loss.names, engine.loss, strict=True)
    engine.loss = Total(
        type(term)(**checkpoint.state["loss"][name]) if term.scheduled else term for name, term in terms
    )
    engine.figures.restore(checkpoint.tensors["figures"], engine.accelerator.device)
    if engine.own_texts:
        engine.own_texts.remember(checkpoint.state["own_texts"])


def _weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters that are trained (tied ones once) and buffers, by name. Frozen ones stay what they were made of."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad} | {
        f"buffer:{name}": buffer for name, buffer in model.named_buffers()
    }
