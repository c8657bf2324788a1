"""Dropout is where modules keep it and where attention functions are given it."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from distill.models import set_dropout

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}
MODELS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**SMALL, intermediate_size=32)),
    "llama": lambda: LlamaForSequenceClassification(
        LlamaConfig(**SMALL, intermediate_size=32, attention_dropout=0.3)
    ),
    "bart": lambda: BartForSequenceClassification(
        BartConfig(
            vocab_size=50,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            pad_token_id=0,
            eos_token_id=2,
            attention_dropout=0.2,
            activation_dropout=0.2,
        )
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_without_dropout_training_mode_says_the_same_twice_and_with_it_does_not(name):
    torch.manual_seed(0)
    model = MODELS[name]().train()
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8, 9, 2]]), "attention_mask": torch.ones(1, 6).long()}

    def twice() -> bool:
        with torch.no_grad():
            return torch.equal(model(**inputs).logits, model(**inputs).logits)

    assert not twice()
    set_dropout(model, 0.0)
    assert twice()
    with torch.no_grad():
        in_training = model(**inputs).logits
        assert torch.equal(in_training, model.eval()(**inputs).logits)
    model.train()
    set_dropout(model, 0.5)
    assert not twice()
