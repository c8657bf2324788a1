"""Which layers are kept, measured on texts, against the formulas written again in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration

from distill.errors import ModelError
from distill.models import (
    block_influence,
    choose_layers,
    keep_layers,
    layer_importance,
    linearity,
    refit,
    refit_before_dropped,
)

from .architectures import CONFIGS, LAYERS, logits, made, texts

EVERYTHING = {"layers": tuple(range(LAYERS))}


def states(model, batch):
    """Inputs and outputs [N, H] of every layer at real tokens, by part: transformers' own hidden states."""
    seen = {"layers": [], "decoder_layers": []}
    parts = [("layers", "encoder.block"), ("decoder_layers", "decoder.block")]
    if not model.config.is_encoder_decoder:
        parts = [("layers", {"bert": "bert.encoder.layer", "gpt2": "transformer.h"}.get(model.config.model_type, "model.layers"))]  # fmt: skip
    mask = {"layers": batch.inputs["attention_mask"].bool()}
    if model.config.is_encoder_decoder:
        target = batch.inputs["decoder_input_ids"]
        mask["decoder_layers"] = (target != 0) | (torch.arange(target.shape[1]) == 0)
    hooks = []
    for part, name in parts:
        for block in model.get_submodule(name):

            def see(module, inputs, output, part=part):
                output = output[0] if isinstance(output, tuple) else output
                seen[part].append([one[mask[part]].numpy().astype(float) for one in (inputs[0], output)])

            hooks.append(block.register_forward_hook(see))
    logits(model, batch)
    for hook in hooks:
        hook.remove()
    return {part: found for part, found in seen.items() if found}


@pytest.mark.parametrize("name", CONFIGS)
def test_keeping_every_layer_gives_the_same_logits_bitwise(name):
    model = made(name)
    batch = texts(model)
    copy = keep_layers(model, **choose_layers(model))
    assert torch.equal(logits(copy, batch), logits(model, batch))
    assert copy.config.to_dict() == model.config.to_dict()


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5"])
def test_block_influence_is_one_minus_the_mean_cosine(name):
    model = made(name)
    batches = [texts(model, seed=seed) for seed in (1, 2)]
    found = block_influence(model, batches)
    for part, score_L in found.items():
        both = [states(model, batch)[part] for batch in batches]
        for layer, score in enumerate(score_L.tolist()):
            x, y = (np.concatenate([one[layer][side] for one in both]) for side in (0, 1))
            cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
            assert score == pytest.approx(1 - cosine.mean(), abs=1e-6)


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_linearity_is_the_best_linear_maps_share(name):
    model = made(name)
    batches = [texts(model, rows=16, length=12, seed=seed) for seed in (1, 2, 3)]
    found = linearity(model, batches)
    for part, score_L in found.items():
        both = [states(model, batch)[part] for batch in batches]
        for layer, score in enumerate(score_L.tolist()):
            x, y = (np.concatenate([one[layer][side] for one in both]) for side in (0, 1))
            d = y - x
            x, d = x - x.mean(0), d - d.mean(0)
            x, d = x / np.linalg.norm(x), d / np.linalg.norm(d)
            best = np.linalg.lstsq(x, d, rcond=1e-6)[0]
            assert 0.05 < score < 0.999
            assert score == pytest.approx(1 - np.square(x @ best - d).sum(), abs=1e-4)


class LinearLayer(torch.nn.Module):
    """A map in place of a layer; its neighbours pass what it takes and gives."""

    def __init__(self, width):
        super().__init__()
        self.map = torch.nn.Linear(width, width)

    def forward(self, hidden_states, *rest, **more):
        return self.map(hidden_states)


def test_a_linear_layer_has_linearity_1_and_one_that_turns_nothing_influence_0():
    model = made("llama")
    model.model.layers[1] = LinearLayer(24)
    batches = [texts(model, rows=20, length=16)]
    score_L = linearity(model, batches)["layers"]
    assert score_L[1] == pytest.approx(1, abs=1e-6)
    assert max(score_L[0], score_L[2], score_L[3]) < 0.99
    with torch.no_grad():
        model.model.layers[1].map.weight.copy_(3 * torch.eye(24))
        model.model.layers[1].map.bias.zero_()
    assert block_influence(model, batches)["layers"][1] == pytest.approx(0, abs=1e-6)


def test_padding_does_not_count():
    model = made("llama")
    short = texts(model)
    longer = texts(model)
    longer.inputs["input_ids"] = torch.cat([short.inputs["input_ids"], torch.full((3, 4), 9)], 1)
    longer.inputs["attention_mask"] = torch.nn.functional.pad(short.inputs["attention_mask"], (0, 4))
    torch.testing.assert_close(block_influence(model, [short]), block_influence(model, [longer]))


def test_what_matters_most_is_kept_and_of_equals_the_first():
    model = made("t5")
    importance = {"layers": torch.tensor([0.0, 3, 1, 3]), "decoder_layers": torch.tensor([1.0, 1, 1])}
    assert choose_layers(model, 2, None, importance) == {"layers": (1, 3), "decoder_layers": (0, 1)}
    assert choose_layers(model, 2, (2,), importance) == {"layers": (1, 3), "decoder_layers": (2,)}
    assert choose_layers(model, None, 1) == {"layers": (0, 1, 2, 3), "decoder_layers": (0,)}
    model = made("llama")
    batches = [texts(model, rows=16, length=16)]
    linear = layer_importance(model, batches, "linearity")["layers"]
    torch.testing.assert_close(linear, 1 - linearity(model, batches)["layers"])


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("llama", {"layers": 5}, r"^student\.from_teacher\.layers: 5 asked for, the teacher has 4$"),
        (
            "llama",
            {"decoder_layers": 2},
            r"^student\.from_teacher\.decoder_layers: is for encoder–decoder models",
        ),
        ("t5", {"layers": 4}, r"^student\.from_teacher\.layers: 4 asked for, the teacher has 3$"),
        (
            "t5",
            {"decoder_layers": (1, 3)},
            r"decoder_layers: layer 3 asked for, the teacher's layers are 0 to 2$",
        ),
    ],
)
def test_layers_that_are_not_there_are_refused(name, asked, message):
    with pytest.raises(ModelError, match=message):
        choose_layers(made(name), **asked)


def test_too_few_tokens_for_linearity_are_refused():
    model = made("llama")
    with pytest.raises(
        ModelError, match=r"choose: linearity needs 240 tokens of .* found 21; take block_influence"
    ):
        linearity(model, [texts(model)])
    with pytest.raises(ModelError, match="no text to measure on"):
        block_influence(model, [])


def test_a_t5_without_its_first_layers_keeps_their_position_biases(tmp_path):
    model = made("t5")
    student = keep_layers(model, (1, 3), (2,))
    ours, theirs = student.state_dict(), model.state_dict()
    for side in ("encoder", "decoder"):
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        assert torch.equal(ours[bias], theirs[bias])
    assert torch.equal(ours["encoder.block.1.layer.1.layer_norm.weight"], theirs["encoder.block.3.layer.1.layer_norm.weight"])  # fmt: skip
    assert torch.equal(ours["decoder.block.0.layer.1.EncDecAttention.q.weight"], theirs["decoder.block.2.layer.1.EncDecAttention.q.weight"])  # fmt: skip
    student.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert (loaded.config.num_layers, loaded.config.num_decoder_layers) == (2, 1)
    batch = texts(model)
    torch.testing.assert_close(logits(loaded, batch), logits(student, batch))


def test_a_bart_loses_layers_of_both_stacks(tmp_path):
    config = {
        "vocab_size": 60,
        "d_model": 16,
        "encoder_ffn_dim": 8,
        "decoder_ffn_dim": 8,
        "max_position_embeddings": 40,
    }
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 0}
    model = BartForConditionalGeneration(BartConfig(**config, **heads, encoder_layers=4, decoder_layers=3))
    student = keep_layers(model, **choose_layers(model, 2))
    student.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert (len(loaded.model.encoder.layers), len(loaded.model.decoder.layers)) == (2, 2)
    batch = texts(model)
    torch.testing.assert_close(logits(loaded, batch), logits(student, batch))


# Linear maps in place of dropped layers.


@pytest.mark.parametrize("name", ["llama", "llama untied", "gpt2", "bert", "t5", "t5 gated"])
def test_a_refitted_layer_is_nearer_to_the_dropped_ones_output(name):
    model = made(name)
    batches = [texts(model, rows=24, length=12, seed=seed) for seed in range(4)]
    fresh = texts(model, rows=24, length=12, seed=9)
    kept = choose_layers(model, (0, 1, 3), (0, 2) if model.config.is_encoder_decoder else None)
    plain = keep_layers(model, **kept)
    made_new = refit_before_dropped(model, kept, batches)
    assert set(made_new) <= set(model.state_dict())
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    better = made(name)
    better.load_state_dict(made_new, strict=False)
    better = keep_layers(better, **kept)
    distance = [(logits(one, fresh) - logits(model, fresh)).square().mean() for one in (plain, better)]
    assert distance[1] < distance[0]
    for key, tensor in model.state_dict().items():  # the teacher is as it was
        assert torch.equal(tensor, before[key])


def test_what_is_linear_in_the_neurons_is_fitted_exactly(monkeypatch):
    """A dropped layer that adds M (W a) for the neurons a of the layer before it needs no layer."""

    class Adds(torch.nn.Module):
        def __init__(self, host):
            super().__init__()
            self.host, self.map = [host], 0.5 * torch.randn(24, 24)

        def forward(self, hidden_states, *rest, **more):
            return hidden_states + self.host[0].last @ self.map

    model = made("llama")
    host = model.model.layers[1].mlp.down_proj
    host.register_forward_hook(lambda module, inputs, output: setattr(module, "last", output))
    model.model.layers[2] = Adds(host)
    batches = [texts(model, rows=24, length=16, seed=seed) for seed in range(4)]
    monkeypatch.setattr(refit, "RIDGE", 1e-9)
    plain = made("llama")
    made_new = refit_before_dropped(model, {"layers": (0, 1, 3)}, batches)
    assert list(made_new) == ["model.layers.1.mlp.down_proj.weight"]
    plain.load_state_dict(made_new, strict=False)
    student = keep_layers(plain, (0, 1, 3))
    fresh = texts(model, rows=4, length=16, seed=9)
    torch.testing.assert_close(logits(student, fresh), logits(model, fresh), rtol=1e-3, atol=1e-3)


def test_nothing_dropped_nothing_fitted_and_no_hook_stays(tmp_path):
    model = made("llama")
    batches = [texts(model)]
    assert refit_before_dropped(model, EVERYTHING, batches) == {}
    assert (
        refit_before_dropped(model, {"layers": (1, 2, 3)}, batches) == {}
    )  # nothing stands before the first
    made_new = refit_before_dropped(model, {"layers": (0, 2)}, batches)
    assert [name.split(".")[2] for name in made_new] == ["0", "2"]
    assert not any(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules())
    student = keep_layers(model, (0, 2))
    student.save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is type(model)
