"""Where the parameters of a model are, counted in the model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from torch import nn

from distill.models.layers import layer_stacks
from distill.models.recording import unwrapped
from distill.recipe.budget import Budget

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NORM = re.compile(r"norm|\.ln_", re.IGNORECASE)


def parameter_budget(model: PreTrainedModel) -> Budget:
    """A model's parameters by what they are for; tied ones count once, where they come first.

    In a layer, norms are `other`, what stands under a name with "att" in it is attention, the rest feed-forward. The
    output table of a language model is an embedding.

    Raises:
        ModelError: the model has no stack of layers.
    """
    model = unwrapped(model)
    prefixes = tuple(f"{stack.prefix}." for stack in layer_stacks(model))
    body: Any = model  # transformers leaves this method untyped
    output = body.get_output_embeddings()
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding) or module is output
        for name, parameter in module.named_parameters(recurse=False)
        if name == "weight"
    }
    counts = dict.fromkeys(("embedding", "attention", "feed_forward", "other"), 0)
    for name, parameter in model.named_parameters():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if id(parameter) in tables:
            part = "embedding"
        elif prefix is None or NORM.search(name):
            part = "other"
        else:
            part = "attention" if "att" in name.removeprefix(prefix).lower() else "feed_forward"
        counts[part] += parameter.numel()
    return Budget(**counts)
