"""What tests do to an engine: stop it between two steps, and catch the gradient of one batch."""

from __future__ import annotations

import pytest
import torch

from distill.engine import Engine
from distill.recipe import TrainRecipe


@pytest.fixture
def stop_at():
    """A function that runs an engine and stops it before a step, as a crash would."""

    class Stop(Exception):
        """Stands for a crash."""

    def run(engine: Engine, step: int) -> None:
        original = engine.step

        def stopping(batch: list[int]) -> None:
            if engine.step_number == step:
                raise Stop
            original(batch)

        engine.step = stopping
        with pytest.raises(Stop):
            engine.run()
        torch.manual_seed(999)  # whatever happens in between must not matter

    return run


@pytest.fixture
def gradient_of_one_batch(teacher, features):
    """A function that returns the gradient of one batch of 32 examples, caught before the optimizer uses it."""

    def caught(student, loss, micro: int, accumulation: int) -> torch.Tensor:
        train = TrainRecipe(
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=None,
            dropout=0.0,  # its masks depend on the shape of a forward pass
        )
        engine = Engine(student, loss, features, train, teacher=teacher)
        gradients = []
        engine.optimizer.optimizer.register_step_pre_hook(
            lambda *_: gradients.append(
                torch.cat([p.grad.flatten() for _, p in engine._trained() if p.grad is not None])
            )
        )
        engine.step(list(range(32)))
        return gradients[0]

    return caught
