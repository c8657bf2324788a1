"""Two processes that share a batch train what one does, a loss's own weights included."""

from __future__ import annotations

import pytest
import torch

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


@pytest.mark.slow
def test_two_processes_train_the_same_student_and_projections_as_one(tmp_path, tiny_bert, train_in_processes):
    (alone,) = train_in_processes(SCRIPT, tiny_bert, tmp_path, 1, micro=16)
    first, second = train_in_processes(SCRIPT, tiny_bert, tmp_path, 2, micro=8)
    assert [name for name in alone if name.startswith("hidden_states.maps")]
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
