"""Two processes that share a batch train what one does, a loss's own weights included."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
    import sys
    import torch
    from safetensors.torch import save_file
    from distill.engine import Engine
    from distill.losses import HiddenStates, Labels, Relations
    from distill.models import Features, Student, Teacher
    from distill.models.loading import load_model, load_tokenizer
    from distill.models.source import find_model
    from distill.recipe import TrainRecipe

    folder, out, micro = sys.argv[1], sys.argv[2], int(sys.argv[3])
    source = find_model(folder)
    tokenizer = load_tokenizer(source)
    labels = ("no", "yes")
    teacher = Teacher(load_model(source, kind="classification", labels=labels, seed=7), tokenizer)
    config = {"model_type": "bert", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
              "intermediate_size": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    student = Student.from_config(config, tokenizer, kind="classification", labels=labels, seed=1)
    rows = [[{"input_ids": [101, *range(2000, 2003 + i % 5), 102], "attention_mask": [1] * (5 + i % 5)}]
            for i in range(32)]
    features = Features(rows, [i % 2 for i in range(32)], tokenizer)
    train = TrainRecipe(max_steps=3, learning_rate=1e-3, per_device_train_batch_size=micro, precision="fp32")
    engine = Engine(student, Labels() + HiddenStates() + Relations(heads=8), features, train, teacher=teacher)
    engine.run()
    rank = engine.accelerator.process_index
    assert engine.accelerator.num_processes == 16 // micro
    trained = {**engine.projections.state_dict(), **student.model.state_dict()}
    save_file({name: tensor.contiguous().clone() for name, tensor in trained.items()}, f"{out}/{rank}.safetensors")
"""


def train(tmp_path, folder, processes: int) -> list[dict[str, torch.Tensor]]:
    out = tmp_path / str(processes)
    out.mkdir()
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
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
        command = [sys.executable, "-P", str(script), str(folder), str(out), str(16 // processes)]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return [load_file(out / f"{rank}.safetensors") for rank in range(processes)]


@pytest.mark.slow
def test_two_processes_train_the_same_student_and_projections_as_one(tmp_path, tiny_bert):
    (alone,) = train(tmp_path, tiny_bert, 1)
    first, second = train(tmp_path, tiny_bert, 2)
    assert [name for name in alone if name.startswith("hidden_states.maps")]
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
