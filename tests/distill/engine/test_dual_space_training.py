"""Training a language model in two spaces: it learns, resumes bitwise, splits exactly, and the maps stay behind."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open

from distill.engine import Engine
from distill.errors import RecipeError
from distill.losses import DualSpace, Labels
from distill.models import NextTokens, Student, Teacher, keep_tokenizer_tokens, needed_tokens
from distill.recipe import TrainRecipe

from .weights import assert_bitwise_equal, weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LOSS = 0.5 * Labels() + 0.5 * DualSpace()


def language_model(tokenizer: PreTrainedTokenizerBase, width: int, seed: int) -> Student:
    config = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "tie_word_embeddings": seed % 2 == 0,
    }
    return Student.from_config(config, tokenizer, kind="causal_lm", labels=(), seed=seed)


@pytest.fixture(scope="module")
def few_tokens(tokenizer):
    """A tokenizer with few tokens, so that little training will do."""
    return keep_tokenizer_tokens(tokenizer, needed_tokens(tokenizer, range(60)))


@pytest.fixture(scope="module")
def texts(few_tokens):
    """Texts of a rule that can be learnt (each token is followed by the next but two), of which answers alone count."""
    draw = random.Random(0)
    made, counted = [], []
    for _ in range(24):
        start, length = draw.randrange(5, 30), draw.randrange(4, 10)
        made.append([start + 3 * at for at in range(length)])
        counted.append([at >= 2 for at in range(length)])
    return NextTokens(made, counted, few_tokens)


@pytest.fixture(scope="module")
def taught(few_tokens, texts):
    """A teacher that has learnt the rule."""
    student = language_model(few_tokens, 24, seed=1)
    train = TrainRecipe(max_steps=60, learning_rate=1e-2, per_device_train_batch_size=12)
    Engine(student, Labels(), texts, train).run()
    return Teacher(student.model, few_tokens)


@pytest.mark.parametrize("seed", [0, 3], ids=["tied", "untied"])
def test_the_student_learns_in_both_spaces(few_tokens, texts, taught, seed, tmp_path):
    lines = []
    train = TrainRecipe(max_steps=150, learning_rate=1e-2, per_device_train_batch_size=12, logging_steps=10)
    before = weights(taught.model)
    engine = Engine(
        language_model(few_tokens, 16, seed), LOSS, texts, train, teacher=taught, log=lines.append
    )
    started = weights(engine.projections)
    student = engine.run()
    assert lines[-1]["loss/labels"] < 0.2 * lines[0]["loss/labels"]
    assert lines[-1]["loss/dual_space"] < 0.8 * lines[0]["loss/dual_space"]
    assert lines[-1]["dual_space/disagreement"] < lines[0]["dual_space/disagreement"]
    assert_bitwise_equal(before, weights(taught.model))
    assert not any(torch.equal(started[name], tensor) for name, tensor in weights(engine.projections).items())
    student.save(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as stored:
        assert not [name for name in stored.keys() if "t2s" in name or "s2t" in name]  # noqa: SIM118


def test_an_interrupted_run_ends_with_bitwise_the_same_weights_and_maps(
    few_tokens, texts, taught, tmp_path, stop_at
):
    train = TrainRecipe(max_steps=6, save_steps=2, learning_rate=1e-3, per_device_train_batch_size=6)

    def engine(folder):
        student = language_model(few_tokens, 16, 3)
        return Engine(student, LOSS, texts, train, teacher=taught, checkpoints=folder, owner="a")

    whole = engine(tmp_path / "straight")
    straight = weights(whole.run().model)
    broken = engine(tmp_path / "broken")
    stop_at(broken, 3)
    continued = engine(tmp_path / "broken")
    assert continued.resume() == 2
    assert_bitwise_equal(straight, weights(continued.run().model))
    assert_bitwise_equal(weights(whole.projections), weights(continued.projections))


def test_the_gradient_does_not_depend_on_how_a_batch_is_split(few_tokens, texts, taught):
    found = []
    for each, times in ((12, 1), (3, 4)):
        train = TrainRecipe(
            max_steps=1,
            learning_rate=1e-3,
            per_device_train_batch_size=each,
            gradient_accumulation_steps=times,
            max_grad_norm=None,
            dropout=0.0,
        )
        engine = Engine(language_model(few_tokens, 16, 3), LOSS, texts, train, teacher=taught)
        gradients = {}
        engine.optimizer.optimizer.register_step_pre_hook(
            lambda *_, engine=engine, gradients=gradients: gradients.update(
                {name: parameter.grad.clone() for name, parameter in engine._trained()}
            )
        )
        engine.run()
        found.append(gradients)
    assert "loss.dual_space.t2s.weight" in found[0]
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_classifiers_are_refused(new_student, teacher, features):
    with pytest.raises(RecipeError, match="loss: dual_space: compares language models"):
        Engine(new_student(), DualSpace(), features, TrainRecipe(), teacher=teacher)
