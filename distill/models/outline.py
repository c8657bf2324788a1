"""A model's sizes in a few numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distill.models.recording import unwrapped

if TYPE_CHECKING:
    from torch import nn

# What configurations call each size; the first that one has counts.
SIZES = {
    "layers": ("num_hidden_layers", "encoder_layers"),
    "decoder_layers": ("num_decoder_layers", "decoder_layers"),
    "width": ("hidden_size",),
    "heads": ("num_attention_heads",),
    "neurons": ("intermediate_size", "d_ff", "encoder_ffn_dim", "ffn_dim", "n_inner", "hidden_dim"),
    "tokens": ("vocab_size",),
}


def outline(model: nn.Module) -> dict[str, int]:
    """Layers, width of the hidden states, attention heads and neurons a layer, and tokens: what its configuration says."""
    config: Any = unwrapped(model).config
    found = {}
    for size, names in SIZES.items():
        if size == "decoder_layers" and not config.is_encoder_decoder:
            continue
        values = [getattr(config, name, None) for name in names]
        known = [value for value in values if isinstance(value, int)]
        if known:
            found[size] = known[0]
    return found
