"""What tests do to an engine: stop it between two steps, catch the gradient of one batch, run it in processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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


@pytest.fixture
def train_in_processes():
    """A function that runs a script with accelerate's variables and returns what its processes saved.

    The script is given a model's folder, a folder to save `<rank>.safetensors` to, and examples a forward pass.
    """

    def run(
        script: str, folder: Path, tmp_path: Path, processes: int, *, micro: int
    ) -> list[dict[str, torch.Tensor]]:
        out = tmp_path / str(processes)
        out.mkdir()
        file = tmp_path / "train.py"
        file.write_text(textwrap.dedent(script))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        running = []
        for rank in range(processes):
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
            if processes > 1:
                environment |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(processes),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                }
            command = [sys.executable, "-P", str(file), str(folder), str(out), str(micro)]
            running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        for process in running:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
        return [load_file(out / f"{rank}.safetensors") for rank in range(processes)]

    return run
