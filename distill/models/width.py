"""A narrower student: fewer hidden channels, attention heads and feed-forward neurons of a BERT-like encoder.

Which of them is decided by how active they are on training texts (Minitron, arXiv 2407.14679, §2.2), or they are the
first ones (cropping, as in arXiv 2205.02340).

Shape suffixes: B sequences, T positions, N tokens, H hidden channels, L layers, A attention heads, I neurons.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from distill.errors import ModelError
from distill.models.layers import layer_stack
from distill.models.loading import rebuilt
from distill.recipe.budget import BERT_LIKE

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from distill.models.batch import Batch

FIELD = "student.from_teacher"


@dataclass(frozen=True)
class Width:
    """Which parts of a model a narrower one keeps; all indices increase.

    Attributes:
        channels: of the hidden states, the same in every layer.
        heads: attention heads a layer.
        neurons: of the feed-forward network a layer.
    """

    channels: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...]
    neurons: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Activity:
    """Mean absolute activations of a model's channels, heads and neurons over the tokens it read, in float64.

    Attributes:
        channel_H: of the outputs of the embeddings' and all layers' LayerNorms, averaged over these.
        head_LA: of each head's output, before the heads are mixed, as its mean L2 norm.
        neuron_LI: after the activation function.
    """

    channel_H: Tensor
    head_LA: Tensor
    neuron_LI: Tensor


def check_width(model: PreTrainedModel, hidden: int | None, intermediate: int | None) -> None:
    """Refuse a model that cannot be made narrower, or widths it cannot have.

    Raises:
        ModelError: says which field of the recipe, what was found and what would do.
    """
    config = model.config
    if config.model_type not in BERT_LIKE:
        raise ModelError(
            f"{FIELD}: hidden and intermediate are for {', '.join(BERT_LIKE)} models, "
            f"found {config.model_type}; leave them out"
        )
    size = config.hidden_size // config.num_attention_heads
    if hidden is not None and hidden > config.hidden_size:
        raise ModelError(f"{FIELD}.hidden: {hidden} asked for, the teacher has {config.hidden_size}")
    if hidden is not None and hidden % size:
        raise ModelError(
            f"{FIELD}.hidden: must be a multiple of {size}, the size of the teacher's attention heads, found {hidden}"
        )
    if intermediate is not None and intermediate > config.intermediate_size:
        raise ModelError(
            f"{FIELD}.intermediate: {intermediate} asked for, the teacher has {config.intermediate_size}"
        )


def choose_width(
    model: PreTrainedModel, hidden: int | None, intermediate: int | None, activity: Activity | None = None
) -> Width:
    """The most active parts of a model, or its first ones where no activity is given.

    Args:
        model: a BERT-like encoder.
        hidden: channels to keep; None keeps all. Heads keep their size, so there are hidden / head size of them.
        intermediate: neurons to keep in each layer; None keeps all.
        activity: what the parts did on some texts. Of equally active parts the first are kept.
    """
    check_width(model, hidden, intermediate)
    config, layers = model.config, range(model.config.num_hidden_layers)
    hidden, neurons = hidden or config.hidden_size, intermediate or config.intermediate_size
    heads = hidden // (config.hidden_size // config.num_attention_heads)
    if activity is None:
        first = tuple(range(heads)), tuple(range(neurons))
        return Width(tuple(range(hidden)), tuple(first[0] for _ in layers), tuple(first[1] for _ in layers))
    return Width(
        _largest(activity.channel_H, hidden),
        tuple(_largest(activity.head_LA[layer], heads) for layer in layers),
        tuple(_largest(activity.neuron_LI[layer], neurons) for layer in layers),
    )


def measure_activity(model: PreTrainedModel, batches: Iterable[Batch]) -> Activity:
    """What the parts of a BERT-like encoder do on some texts; padding does not count.

    Raises:
        ModelError: the model is not BERT-like.
    """
    check_width(model, None, None)
    config, body = model.config, model.base_model
    embeddings: Any = body.embeddings
    stack: Any = layer_stack(model)[1]
    size = config.hidden_size // config.num_attention_heads
    channel_H = torch.zeros(config.hidden_size, dtype=torch.float64)
    head_LA = torch.zeros(len(stack), config.num_attention_heads, dtype=torch.float64)
    neuron_LI = torch.zeros(len(stack), config.intermediate_size, dtype=torch.float64)
    real_BT = torch.empty(0, dtype=torch.bool)

    def add(total: Tensor, measure: Callable[[Tensor], Tensor], activation_BTH: Tensor) -> None:
        total += measure(activation_BTH[real_BT]).double().sum(0).cpu()

    def magnitude(activation_NH: Tensor) -> Tensor:
        return activation_NH.abs()

    def norm_of_heads(activation_NH: Tensor) -> Tensor:
        norm_NA: Tensor = torch.linalg.vector_norm(activation_NH.view(len(activation_NH), -1, size), dim=-1)
        return norm_NA

    def output_of(module: nn.Module, total: Tensor, measure: Callable[[Tensor], Tensor]) -> Any:
        record = partial(add, total, measure)
        return module.register_forward_hook(lambda module, inputs, output: record(output))

    def input_of(module: nn.Module, total: Tensor, measure: Callable[[Tensor], Tensor]) -> Any:
        record = partial(add, total, measure)
        return module.register_forward_pre_hook(lambda module, inputs: record(inputs[0]))

    hooks = [output_of(embeddings.LayerNorm, channel_H, magnitude)]
    for layer, block in enumerate(stack):
        hooks.append(output_of(block.attention.output.LayerNorm, channel_H, magnitude))
        hooks.append(output_of(block.output.LayerNorm, channel_H, magnitude))
        hooks.append(input_of(block.attention.output.dense, head_LA[layer], norm_of_heads))
        hooks.append(output_of(block.intermediate, neuron_LI[layer], magnitude))
    tokens = 0
    try:
        model.train(mode=False)
        with torch.inference_mode():
            for batch in batches:
                batch = batch.to(model.device)
                inputs = {name: tensor.flatten(0, -2) for name, tensor in batch.inputs.items()}
                real_BT = inputs["attention_mask"].bool()
                tokens += int(real_BT.sum())
                body(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not tokens:
        raise ModelError(f"{FIELD}: no text to measure activations on")
    return Activity(channel_H / (tokens * (2 * len(stack) + 1)), head_LA / tokens, neuron_LI / tokens)


def keep_width(model: PreTrainedModel, width: Width) -> PreTrainedModel:
    """A new model of the same class with only these channels, heads and neurons; their weights are copied.

    Embeddings, LayerNorms, biases, the pooler and what a classifier reads are cut alike, and the result is an ordinary
    transformers model with a smaller `hidden_size`. Keeping everything gives the same logits bitwise.
    """
    config = copy.deepcopy(model.config)
    size = config.hidden_size // config.num_attention_heads
    config.hidden_size = len(width.channels)
    config.num_attention_heads = len(width.heads[0])
    config.intermediate_size = len(width.neurons[0])
    state = {
        name: _cut(tensor, _axes(model, name, width, size)) for name, tensor in model.state_dict().items()
    }
    return rebuilt(model, config, state)


def _axes(
    model: PreTrainedModel, name: str, width: Width, size: int
) -> tuple[Sequence[int] | None, Sequence[int] | None]:
    """What is kept of the first and the second axis of a tensor in the state dict; None is everything."""
    channels = width.channels
    weight = name.endswith(".weight")
    layer = re.match(re.escape(layer_stack(model)[0]) + r"\.(\d+)\.(.*)\.(?:weight|bias)$", name)
    if layer is not None:
        number, part = int(layer[1]), layer[2]
        inside = [head * size + place for head in width.heads[number] for place in range(size)]
        if part.startswith("attention.self."):
            return inside, channels if weight else None
        if part == "attention.output.dense":
            return channels, inside if weight else None
        if part == "intermediate.dense":
            return width.neurons[number], channels if weight else None
        if part == "output.dense":
            return channels, width.neurons[number] if weight else None
        if part.endswith("LayerNorm"):
            return channels, None
    elif re.search(r"embeddings\.\w+_embeddings\.weight$", name):
        return None, channels
    elif re.search(r"(LayerNorm\.(weight|bias)|(pooler|classifier)\.dense\.bias)$", name):
        return channels, None
    elif re.search(r"(pooler|classifier)\.dense\.weight$", name):
        return channels, channels
    elif re.search(r"classifier(\.out_proj)?\.weight$", name):
        return None, channels
    elif re.search(r"(classifier(\.out_proj)?\.bias|_ids)$", name):
        return None, None
    raise ModelError(f"{FIELD}: a {type(model).__name__} cannot be made narrower, for its tensor {name}")


def _cut(tensor: Tensor, axes: tuple[Sequence[int] | None, Sequence[int] | None]) -> Tensor:
    for axis, kept in enumerate(axes):
        if kept is not None:
            tensor = tensor.index_select(axis, torch.tensor(kept, device=tensor.device))
    return tensor


def _largest(score: Tensor, count: int) -> tuple[int, ...]:
    chosen = torch.sort(score, descending=True, stable=True).indices[:count]
    return tuple(sorted(chosen.tolist()))
