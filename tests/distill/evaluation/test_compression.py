"""Sizes, latencies and what students share are measured, not guessed."""

from __future__ import annotations

import pytest
import torch

from distill.evaluation import latency, ratios, shareable, size
from distill.models import Student


def test_tied_parameters_count_once(tiny_bert, tmp_path):
    student = Student.from_teacher(str(tiny_bert), layers=1, kind="classification", labels=("a", "b"))
    student.save(tmp_path)
    measured = size(student.model, tmp_path)
    by_hand = sum(p.numel() for p in {id(p): p for p in student.model.parameters()}.values())
    assert measured.parameters == by_hand
    assert measured.embedding_parameters == 32 * (30522 + 512 + 2)
    assert measured.bytes == (tmp_path / "model.safetensors").stat().st_size

    tied = torch.nn.Linear(32, 30522, bias=False)
    tied.weight = student.model.bert.embeddings.word_embeddings.weight
    student.model.add_module("tied", tied)
    assert size(student.model, tmp_path).parameters == by_hand


def test_ratios_are_teacher_over_student():
    teacher = {
        "parameters": 100,
        "embedding_parameters": 20,
        "bytes": 400,
        "latency_ms": {"batch_1": 9.0, "batch_32": 30.0},
    }
    student = {
        "parameters": 50,
        "embedding_parameters": 10,
        "bytes": 100,
        "latency_ms": {"batch_1": 3.0, "batch_32": 20.0},
    }
    assert ratios(teacher, student) == {
        "parameters": 2.0,
        "non_embedding_parameters": 2.0,
        "bytes": 4.0,
        "latency": {"batch_1": 3.0, "batch_32": 1.5},
    }


def test_a_deeper_model_takes_longer(tiny_bert, features):
    def of(layers):
        return Student.from_teacher(
            str(tiny_bert), layers=layers, kind="classification", labels=("a", "b")
        ).model.eval()

    deep = of(4)
    deep.bert.encoder.layer.extend([deep.bert.encoder.layer[0]] * 36)
    figures = latency(
        {"deep": deep, "shallow": of(1)}, {"deep": features, "shallow": features}, torch.device("cpu")
    )
    assert figures["deep"]["batch_1"] > 2 * figures["shallow"]["batch_1"]
    assert figures["deep"]["tokens_32"] == figures["shallow"]["tokens_32"] == max(features.lengths[:32])


def test_common_parameters_are_those_of_bitwise_equal_rows():
    table = torch.arange(12.0).view(4, 3)
    changed = table.clone()
    changed[2, 1] += 1e-6
    first = {"words": table, "head": torch.zeros(2, 3), "scale": torch.tensor(1.0)}
    second = {"words": changed, "head": torch.zeros(5, 3), "scale": torch.tensor(1.0)}
    assert shareable({"a": first, "b": second}) == {"models": 2, "parameters": 19 + 28, "common": 9 + 1}
    assert shareable({"a": first}) == {"models": 1, "parameters": 19, "common": 0}


@pytest.mark.parametrize("kept", [1, 3])
def test_fewer_layers_weigh_less(tiny_bert, tmp_path, kept):
    student = Student.from_teacher(str(tiny_bert), layers=kept, kind="classification", labels=("a", "b"))
    student.save(tmp_path)
    layer = sum(p.numel() for p in student.model.bert.encoder.layer[0].parameters())
    whole = Student.from_teacher(str(tiny_bert), layers=4, kind="classification", labels=("a", "b"))
    whole.save(tmp_path / "whole")
    assert (
        size(whole.model, tmp_path / "whole").parameters - size(student.model, tmp_path).parameters
        == (4 - kept) * layer
    )
