"""Which layers a shallower student keeps, and the student that keeps them."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING

from torch import nn

from distill.errors import ModelError
from distill.models.loading import rebuilt

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def evenly_spaced(total: int, keep: int) -> tuple[int, ...]:
    """Indices of `keep` out of `total` layers, evenly spaced, first and last kept (Distil-Whisper's rule).

    Example:
        >>> evenly_spaced(6, 3), evenly_spaced(12, 6), evenly_spaced(6, 1)
        ((0, 2, 5), (0, 2, 4, 7, 9, 11), (0,))
    """
    if not 1 <= keep <= total:
        raise ValueError(f"layers must be between 1 and the teacher's {total}, got {keep}")
    if keep == 1:
        return (0,)
    return tuple(round(i * (total - 1) / (keep - 1)) for i in range(keep))


def choose_layers(model: PreTrainedModel, layers: int | tuple[int, ...]) -> tuple[int, ...]:
    """The teacher layers a recipe's `from_teacher.layers` asks for."""
    total = len(layer_stack(model)[1])
    if isinstance(layers, int):
        if layers > total:
            raise ModelError(f"student.from_teacher.layers: {layers} asked for, the teacher has {total}")
        return evenly_spaced(total, layers)
    if max(layers) >= total:
        raise ModelError(
            f"student.from_teacher.layers: layer {max(layers)} asked for, the teacher's layers are 0 to {total - 1}"
        )
    return layers


def keep_layers(model: PreTrainedModel, layers: tuple[int, ...]) -> PreTrainedModel:
    """A new model of the same class with only the given layers of `model`; every other weight is copied.

    The result is an ordinary transformers model with a smaller `num_hidden_layers`. Keeping every layer gives
    the same logits bitwise.
    """
    prefix, stack = layer_stack(model)
    config = copy.deepcopy(model.config)
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == len(stack):  # one entry a layer, such as layer_types
            setattr(config, name, [value[i] for i in layers])
    config.num_hidden_layers = len(layers)
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.(.*)")
    place = {teacher: student for student, teacher in enumerate(layers)}
    state = {}
    for name, tensor in model.state_dict().items():
        match = pattern.fullmatch(name)
        if match is None:
            state[name] = tensor
        elif int(match[1]) in place:
            state[f"{prefix}.{place[int(match[1])]}.{match[2]}"] = tensor
    return rebuilt(model, config, state)


def layer_stack(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of transformer layers inside a model, and its name in the state dict."""
    count = model.config.num_hidden_layers
    stacks = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not stacks:
        raise ModelError(
            f"student.from_teacher: no stack of {count} layers in a {type(model).__name__}; "
            "its layers cannot be dropped one by one"
        )
    # With one layer other one-element lists may exist; the outermost stack is named first.
    return stacks[0]
