"""The outline of a model that is divided among devices, and what cannot be divided."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from distill.engine.sharded import Outline, gathered, part_of, tied_weights, total_norm

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 32}


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_is_made_again_from_its_outline_and_whole_weights(tied):
    model = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=tied)).eval()
    model.model.norm.weight.requires_grad_(False)
    outline = Outline(model)
    torch.nn.init.normal_(model.model.embed_tokens.weight)  # what is learnt later is what counts
    again = outline.filled(model)
    ids = torch.arange(12).view(2, 6)
    assert again is not model
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    assert not again.model.norm.weight.requires_grad
    assert not {p.data_ptr() for p in again.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_what_is_shared_beyond_a_decoders_head_is_named():
    def made(kind, config, **more):
        return kind(config(**SMALL, **more))

    assert tied_weights(made(LlamaForCausalLM, LlamaConfig, tie_word_embeddings=True)) == []
    assert tied_weights(made(LlamaForCausalLM, LlamaConfig, tie_word_embeddings=False)) == []
    assert tied_weights(made(BertForSequenceClassification, BertConfig)) == []
    assert "cls.predictions.decoder.bias" in tied_weights(made(BertForMaskedLM, BertConfig))
    t5 = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    assert "shared.weight" in tied_weights(T5ForConditionalGeneration(t5))


def test_tensors_that_are_whole_already_stay_as_they_are():
    tensor = torch.randn(3, 2)
    assert part_of(tensor, torch.zeros(3, 2)) is tensor
    assert torch.equal(gathered({"a": tensor}, kept=True)["a"], tensor)
    assert gathered({"a": tensor}, kept=False) == {}
    assert torch.equal(total_norm([tensor]), torch.nn.utils.get_total_norm([tensor]))
