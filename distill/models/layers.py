"""The stacks of layers in a model, and the student that keeps some of a teacher's layers."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from distill.errors import ModelError
from distill.models.loading import rebuilt

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

FIELD = "student.from_teacher"
# What an encoder–decoder model's configuration calls the number of layers of each stack.
COUNTS = {
    "layers": ("num_hidden_layers", "encoder_layers"),
    "decoder_layers": ("num_decoder_layers", "decoder_layers"),
}


@dataclass(frozen=True)
class Stack:
    """One of a model's stacks of transformer layers.

    Attributes:
        part: "layers", or "decoder_layers" for the decoder of an encoder–decoder model: the recipe's field and the
            provenance's key.
        prefix: its name in the state dict.
        layers: the layers themselves.
    """

    part: str
    prefix: str
    layers: nn.ModuleList


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


def layer_stacks(model: PreTrainedModel) -> tuple[Stack, ...]:
    """The stacks of a model: one, or the encoder's and the decoder's.

    Raises:
        ModelError: no list of as many modules as the configuration has layers.
    """
    if not model.config.is_encoder_decoder:
        return (Stack("layers", *layer_stack(model)),)
    found = [
        Stack(part, name, module)
        for part, side in (("layers", "encoder"), ("decoder_layers", "decoder"))
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and re.search(rf"(^|\.){side}\.(block|layers)$", name)
    ]
    if not found:
        raise ModelError(
            f"{FIELD}: no stack of layers in a {type(model).__name__}; its layers cannot be dropped one by one"
        )
    return tuple(found)


def layer_stack(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of transformer layers inside a model, and its name in the state dict; of two stacks the encoder's."""
    count = model.config.num_hidden_layers
    stacks = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not stacks:
        raise ModelError(
            f"{FIELD}: no stack of {count} layers in a {type(model).__name__}; "
            "its layers cannot be dropped one by one"
        )
    # With one layer other one-element lists may exist; the outermost stack is named first.
    return stacks[0]


def rows_of(model: PreTrainedModel, kept: Mapping[str, tuple[int, ...]]) -> list[int]:
    """Where the kept layers stand in a table with a row for every layer, the encoder's first, then the decoder's."""
    rows, first = [], 0
    for stack in layer_stacks(model):
        rows += [first + layer for layer in kept[stack.part]]
        first += len(stack.layers)
    return rows


def keep_layers(
    model: PreTrainedModel, layers: tuple[int, ...], decoder_layers: tuple[int, ...] | None = None
) -> PreTrainedModel:
    """A new model of the same class with only the given layers of `model`; every other weight is copied.

    The result is an ordinary transformers model with fewer layers in its configuration. Keeping every layer gives the
    same logits bitwise. What only a stack's first layer has (T5's position biases, which all its layers read) goes to
    the student's first layer, whichever that is.

    Args:
        model: what layers are taken of.
        layers: of the one stack, or of the encoder's.
        decoder_layers: of the decoder's stack in an encoder–decoder model; None keeps all.
    """
    config = copy.deepcopy(model.config)
    stacks, state = layer_stacks(model), dict(model.state_dict())
    for stack in stacks:
        total = len(stack.layers)
        kept = layers if stack.part == "layers" else decoder_layers
        kept = tuple(range(total)) if kept is None else kept
        if len(stacks) == 1:
            for name, value in list(vars(config).items()):
                if isinstance(value, list) and len(value) == total:  # one entry a layer, such as layer_types
                    setattr(config, name, [value[i] for i in kept])
        for name in COUNTS[stack.part]:
            if hasattr(config, name):
                setattr(config, name, len(kept))
        state = _renumbered(state, stack.prefix, kept)
    return rebuilt(model, config, state)


def _renumbered(state: dict[str, Tensor], prefix: str, kept: tuple[int, ...]) -> dict[str, Tensor]:
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.(.*)")
    place = {teacher: student for student, teacher in enumerate(kept)}
    made = {}
    for name, tensor in state.items():
        match = pattern.fullmatch(name)
        if match is None:
            made[name] = tensor
            continue
        layer, rest = int(match[1]), match[2]
        if layer == 0 and f"{prefix}.1.{rest}" not in state:
            made[f"{prefix}.0.{rest}"] = tensor
        elif layer in place:
            made[f"{prefix}.{place[layer]}.{rest}"] = tensor
    return made
