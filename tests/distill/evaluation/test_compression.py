"""Sizes, latencies and what students share are measured, not guessed."""

from __future__ import annotations

import pytest
import torch

from distill.evaluation import latency, measure, ratios, shareable, size, together
from distill.evaluation.compression import flops, peak_memory, throughput
from distill.models import Batch, Student


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


def texts(count, tokens):
    """A batch of texts without padding."""
    ids = torch.randint(1000, 30000, (count, tokens), generator=torch.Generator().manual_seed(0))
    return Batch(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        torch.arange(count),
        None,
        torch.ones(count),
        torch.zeros(count),
    )


def test_flops_are_those_of_all_matrix_products_attention_among_them(tiny_bert):
    """By hand: four projections and two feed-forward matrices a layer, scores and mixing, pooler and classifier."""
    model = Student.from_teacher(str(tiny_bert), layers=2, kind="classification", labels=("a", "b")).model
    hidden, inner, length = 32, 64, 20
    layer = 2 * length * (4 * hidden**2 + 2 * hidden * inner) + 4 * length**2 * hidden
    by_hand = 2 * layer + 2 * hidden * (hidden + 2)
    assert flops(model.eval(), texts(1, length)) == {
        "per_token": round(by_hand / length, 1),
        "tokens": length,
    }


def test_peak_memory_is_weights_and_the_tensors_alive_together(tiny_bert):
    class Steps(torch.nn.Module):
        """At most four tensors of 400 bytes live at a time; views and changes in place need none."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(10))
            self.again = self.weight  # counted once

        def forward(self, input_ids):
            first = input_ids * 1.0
            second = (first + 1).view(-1, 10).add_(self.weight)
            del first
            third = second.view(10, 10).t() * 2
            return second.relu() + third.reshape(second.shape)

    batch = texts(1, 100)
    batch.inputs.pop("attention_mask")
    model = Steps().requires_grad_(requires_grad=False)
    found = peak_memory(model, {1: batch}, torch.device("cpu"))
    # second, third, relu(second) and the sum
    assert found == {"weights": 40, "batch_1": 40 + 4 * 400}

    bert = Student.from_teacher(str(tiny_bert), layers=2, kind="classification", labels=("a", "b")).model
    one, again = (peak_memory(bert.eval(), {1: texts(1, 20), 32: texts(32, 20)}, torch.device("cpu")) for _ in range(2))  # fmt: skip
    assert one == again
    weights = sum(p.nbytes for p in bert.parameters()) + sum(b.nbytes for b in bert.buffers())
    assert one["weights"] == weights < one["batch_1"] < one["batch_32"]
    assert one["batch_32"] - weights == pytest.approx(32 * (one["batch_1"] - weights), rel=0.1)


def test_throughput_does_not_count_padding():
    batch = texts(4, 10)
    batch.inputs["attention_mask"][:, 7:] = 0
    assert throughput(200.0, batch) == {
        "batch": 4,
        "examples_per_second": 20.0,
        "tokens_per_second": 140.0,
    }


def test_models_that_all_answer_cost_their_sum(tiny_bert, features):
    models = {
        str(layers): Student.from_teacher(
            str(tiny_bert), layers=layers, kind="classification", labels=("a", "b")
        ).model.eval()
        for layers in (1, 3)
    }
    found = list(measure(models, dict.fromkeys(models, features), torch.device("cpu")).values())
    both = together(found)
    for key in ("batch_1", "batch_32"):
        assert both["latency_ms"][key] == pytest.approx(sum(each["latency_ms"][key] for each in found))
    assert both["flops"]["per_token"] == sum(each["flops"]["per_token"] for each in found)
    assert both["throughput"]["examples_per_second"] == pytest.approx(
        32_000 / both["latency_ms"]["batch_32"], rel=1e-3
    )
    memory = [each["peak_memory"] for each in found]
    assert both["peak_memory"]["weights"] == sum(each["weights"] for each in memory)
    assert both["peak_memory"]["batch_32"] == both["peak_memory"]["weights"] + max(
        each["batch_32"] - each["weights"] for each in memory
    )
    assert together(found[:1]) == found[0]
