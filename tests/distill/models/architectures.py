"""Small models of every architecture whose depth and width the factory changes, with uneven weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from distill.models import Batch

WORDS, LAYERS, HIDDEN, HEADS, NEURONS = 60, 4, 24, 4, 20
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": NEURONS,
    "pad_token_id": 0,
}
GROUPS = {"num_key_value_heads": 2}
T5 = {
    "vocab_size": WORDS,
    "d_model": HIDDEN,
    "d_kv": 5,
    "d_ff": NEURONS,
    "num_layers": LAYERS,
    "num_heads": HEADS,
}
CONFIGS: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "bert": (BertForSequenceClassification, BertConfig(**SIZES, max_position_embeddings=40)),
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, **GROUPS, tie_word_embeddings=True)),
    "llama untied": (
        LlamaForCausalLM,
        LlamaConfig(**SIZES, num_key_value_heads=1, head_dim=8, attention_bias=True, mlp_bias=True),
    ),
    "llama own keys": (LlamaForCausalLM, LlamaConfig(**SIZES)),
    "mistral": (MistralForCausalLM, MistralConfig(**SIZES, **GROUPS, head_dim=8)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES, **GROUPS, tie_word_embeddings=True)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, **GROUPS, head_dim=8)),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(vocab_size=WORDS, n_positions=40, n_embd=HIDDEN, n_layer=LAYERS, n_head=4),
    ),
    "t5": (T5ForConditionalGeneration, T5Config(**T5, num_decoder_layers=3)),
    "t5 gated": (
        T5ForConditionalGeneration,
        T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    ),
}


def made(name: str) -> PreTrainedModel:
    """The model of that name, its norms and biases as uneven as a trained model's."""
    kind, config = CONFIGS[name]
    torch.manual_seed(7)
    model = kind(config).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
        elif not parameter_name.endswith(("lm_head.weight", "shared.weight")):
            parameter.data *= 4
    return model


def texts(model: PreTrainedModel, rows: int = 3, length: int = 8, seed: int = 0) -> Batch:
    """Random tokens with some padding at the end."""
    torch.manual_seed(seed)
    ids = torch.randint(1, WORDS, (rows, length))
    mask = torch.ones_like(ids)
    mask[0, length - 3 :] = 0
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        target = torch.randint(1, WORDS, (rows, length - 2))
        target[:, 0] = 0
        target[1, 4:] = 0
        inputs["decoder_input_ids"] = target
    one = torch.ones(rows)
    return Batch(inputs, torch.arange(rows), None, one, one.long())


def logits(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(**batch.inputs).logits
