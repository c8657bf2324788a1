"""Where the parameters of a model are, counted in the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from distill.models.layers import layer_stack
from distill.models.recording import unwrapped
from distill.recipe.budget import Budget

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def parameter_budget(model: PreTrainedModel) -> Budget:
    """A model's parameters by what they are for; tied ones count once, where they come first.

    In a layer, norms are `other`, what stands under a name with "att" in it is attention, the rest feed-forward.

    Raises:
        ModelError: the model has no stack of layers.
    """
    model = unwrapped(model)
    prefix = layer_stack(model)[0] + "."
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    counts = dict.fromkeys(("embedding", "attention", "feed_forward", "other"), 0)
    for name, parameter in model.named_parameters():
        if id(parameter) in tables:
            part = "embedding"
        elif not name.startswith(prefix) or "norm" in name.lower():
            part = "other"
        else:
            part = "attention" if "att" in name.removeprefix(prefix) else "feed_forward"
        counts[part] += parameter.numel()
    return Budget(**counts)
