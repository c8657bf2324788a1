"""A narrower student: fewer hidden channels, attention heads and feed-forward neurons of its teacher.

Which of them is decided by how active they are on training texts (Minitron, arXiv 2407.14679, §2.2), or they are the
first ones (cropping, as in arXiv 2205.02340).

What a narrower model computes differs from the teacher in more than the parts that are gone: a LayerNorm or RMSNorm
takes its mean and scale over the channels that are left, and T5 divides what its output layer reads by √hidden where
the model says so. Nothing is corrected for that, training does; every weight is the teacher's own.

Shape suffixes: B sequences, T positions, N tokens, H hidden channels, L layers, A attention heads, I neurons.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from distill.errors import ModelError
from distill.models.depth import read_texts
from distill.models.layers import FIELD, Stack, layer_stacks
from distill.models.loading import rebuilt
from distill.recipe.shape import Sizes, narrowed, width_mistakes

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from distill.models.batch import Batch


@dataclass(frozen=True)
class Width:
    """Which parts of a model a narrower one keeps; all indices increase.

    Of an encoder–decoder model the encoder's layers come first, then the decoder's.

    Attributes:
        channels: of the hidden states, the same in every layer.
        heads: attention heads a layer, those of the queries where some share their keys and values.
        neurons: of the feed-forward network a layer.
    """

    channels: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...]
    neurons: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Activity:
    """Mean absolute activations of a model's channels, heads and neurons over the tokens it read, in float64.

    Attributes:
        channel_H: of the outputs of all norms of hidden states, averaged over these.
        head_LA: of each head's output in self-attention, before the heads are mixed, as its mean L2 norm.
        neuron_LI: what the feed-forward network's last linear map reads.
    """

    channel_H: Tensor
    head_LA: Tensor
    neuron_LI: Tensor


# Where a layer mixes its heads, and where it mixes its neurons; then the rules of its tensors, by the name's end:
# what the rows and the columns are. "own" is left whole.
ATTENTION_OUTPUT = re.compile(r"(attention\.output\.dense|self_attn\.o_proj|SelfAttention\.o)$")
NEURONS_OUTPUT = re.compile(r"(?<!attention\.)(output\.dense|mlp\.down_proj|DenseReluDense\.wo)$")
NORM = re.compile(r"(LayerNorm|layernorm|layer_norm|(?<![qk]_)norm)$")
Rules = tuple[tuple[str, str, str], ...]
IN_A_LAYER: Rules = (
    (r"attention\.self\.(query|key|value)|self_attn\.q_proj|(SelfAttention|EncDecAttention)\.q", "heads", "channels"),
    (r"self_attn\.[kv]_proj|(SelfAttention|EncDecAttention)\.[kv]", "groups", "channels"),
    (r"attention\.output\.dense|self_attn\.o_proj|(SelfAttention|EncDecAttention)\.o", "channels", "heads"),
    (r"intermediate\.dense|mlp\.(gate|up)_proj|DenseReluDense\.wi(_[01])?", "neurons", "channels"),
    (r"output\.dense|mlp\.down_proj|DenseReluDense\.wo", "channels", "neurons"),
    (r"self_attn\.[qk]_norm|SelfAttention\.relative_attention_bias", "own", "own"),
    (r"(.*\.)?(LayerNorm|\w*layernorm|layer_norm)", "channels", "own"),
)  # fmt: skip
OUTSIDE: Rules = (
    (r".*embeddings\.\w+_embeddings|(.*\.)?(embed_tokens|shared)|lm_head|score", "own", "channels"),
    (r"(.*\.)?(LayerNorm|norm|final_layer_norm)", "channels", "own"),
    (r"(.*\.)?(pooler|classifier|classification_head|transform|lm_head)\.dense", "channels", "channels"),
    (r"lm_head\.layer_norm", "channels", "own"),
    (r"(.*\.)?(classifier(\.out_proj)?|classification_head\.out_proj|decoder)", "own", "channels"),
)  # fmt: skip


def check_width(
    model: PreTrainedModel, hidden: int | None, intermediate: int | None, heads: int | None = None
) -> None:
    """Refuse a model that cannot be made narrower, or widths it cannot have.

    Raises:
        ModelError: says which field of the recipe, what was found and what would do.
    """
    for field, message in width_mistakes(model.config.to_dict(), hidden, intermediate, heads):
        raise ModelError(f"{FIELD}{'.' + field if field else ''}: {message}")


def choose_width(
    model: PreTrainedModel,
    hidden: int | None,
    intermediate: int | None,
    activity: Activity | None = None,
    heads: int | None = None,
) -> Width:
    """The most active parts of a model, or its first ones where no activity is given.

    Args:
        model: of an architecture that can be made narrower (`distill.recipe.shape`).
        hidden: channels to keep; None keeps all. A BERT's heads keep their size: it has hidden / head size of them.
        intermediate: neurons to keep in each layer; None keeps all.
        activity: what the parts did on some texts. Of equally active parts the first are kept.
        heads: to keep in each layer; None keeps all. Where heads share keys and values, whole groups are kept, the
            most active on average, or, where that does not come out even, as many heads of every group.
    """
    check_width(model, hidden, intermediate, heads)
    sizes = Sizes.of(model.config.to_dict())
    kept = sizes.cut(hidden, heads, intermediate)
    layers = range(sum(len(stack.layers) for stack in layer_stacks(model)))
    if activity is None:
        first = tuple(range(kept.neurons))
        even = torch.zeros(sizes.heads)
        return Width(
            tuple(range(kept.channels)),
            tuple(_heads(even, sizes, kept) for _ in layers),
            tuple(first for _ in layers),
        )
    return Width(
        _largest(activity.channel_H, kept.channels),
        tuple(_heads(activity.head_LA[layer], sizes, kept) for layer in layers),
        tuple(_largest(activity.neuron_LI[layer], kept.neurons) for layer in layers),
    )


def _heads(score_A: Tensor, sizes: Sizes, kept: Sizes) -> tuple[int, ...]:
    """The heads to keep in a layer: whole groups of heads with common keys and values, or evenly of each."""
    group = sizes.heads // sizes.groups
    score_GA = score_A.view(sizes.groups, group)
    if kept.groups < sizes.groups:
        groups = _largest(score_GA.mean(1), kept.groups)
        return tuple(group * number + place for number in groups for place in range(group))
    return tuple(
        group * number + place
        for number in range(sizes.groups)
        for place in _largest(score_GA[number], kept.heads // kept.groups)
    )


def measure_activity(model: PreTrainedModel, batches: Iterable[Batch]) -> Activity:
    """What the parts of a model do on some texts; padding does not count.

    Raises:
        ModelError: the model cannot be made narrower, or there were no texts.
    """
    check_width(model, None, None)
    sizes, stacks = Sizes.of(model.config.to_dict()), layer_stacks(model)
    layers = sum(len(stack.layers) for stack in stacks)
    channel_H = torch.zeros(sizes.channels, dtype=torch.float64)
    head_LA = torch.zeros(layers, sizes.heads, dtype=torch.float64)
    neuron_LI = torch.zeros(layers, sizes.neurons, dtype=torch.float64)
    real: dict[str, Tensor] = {}
    norms = {stack.part: 0 for stack in stacks}
    channels = {stack.part: torch.zeros_like(channel_H) for stack in stacks}

    def magnitude(activation_NH: Tensor) -> Tensor:
        return activation_NH.abs()

    def norm_of_heads(activation_NH: Tensor) -> Tensor:
        norm_NA: Tensor = torch.linalg.vector_norm(
            activation_NH.view(len(activation_NH), sizes.heads, -1), dim=-1
        )
        return norm_NA

    def add(part: str, total: Tensor, measure: Callable[[Tensor], Tensor], activation_BTH: Tensor) -> None:
        total += measure(activation_BTH[real[part]]).double().sum(0).cpu()

    def output_of(module: nn.Module, part: str) -> Any:
        norms[part] += 1
        return module.register_forward_hook(
            lambda module, inputs, output: add(part, channels[part], magnitude, output)
        )

    def input_of(module: nn.Module, part: str, total: Tensor, measure: Callable[[Tensor], Tensor]) -> Any:
        return module.register_forward_pre_hook(lambda module, inputs: add(part, total, measure, inputs[0]))

    with ExitStack() as hooks, torch.inference_mode():
        for name, module in model.base_model.named_modules():
            if NORM.search(name):
                hooks.callback(output_of(module, _stack_of(name, stacks)).remove)
        first = 0
        for stack in stacks:
            for layer, block in enumerate(stack.layers, start=first):
                for name, module in block.named_modules():
                    if ATTENTION_OUTPUT.search(name):
                        hooks.callback(input_of(module, stack.part, head_LA[layer], norm_of_heads).remove)
                    elif NEURONS_OUTPUT.search(name):
                        hooks.callback(input_of(module, stack.part, neuron_LI[layer], magnitude).remove)
            first += len(stack.layers)
        tokens = read_texts(model, batches, real)
    first = 0
    for stack in stacks:
        channel_H += channels[stack.part] / (tokens[stack.part] * sum(norms.values()))
        own = slice(first, first + len(stack.layers))
        head_LA[own] /= tokens[stack.part]
        neuron_LI[own] /= tokens[stack.part]
        first += len(stack.layers)
    return Activity(channel_H, head_LA, neuron_LI)


def keep_width(model: PreTrainedModel, width: Width) -> PreTrainedModel:
    """A new model of the same class with only these channels, heads and neurons; their weights are copied.

    Embeddings, norms, biases, the pooler and what a head reads are cut alike, and the result is an ordinary
    transformers model with smaller sizes in its configuration. Keeping everything gives the same logits bitwise.
    """
    config = copy.deepcopy(model.config)
    sizes = Sizes.of(config.to_dict())
    kept = sizes.cut(len(width.channels), len(width.heads[0]), len(width.neurons[0]))
    for name, value in narrowed(config.to_dict(), kept).items():
        setattr(config, name, value)
    stacks = layer_stacks(model)
    state = {
        name: _cut(tensor, _axes(model, name, stacks, width, sizes))
        for name, tensor in model.state_dict().items()
    }
    return rebuilt(model, config, state)


def _axes(
    model: PreTrainedModel, name: str, stacks: Sequence[Stack], width: Width, sizes: Sizes
) -> tuple[Sequence[int] | None, Sequence[int] | None]:
    """What is kept of the first and the second axis of a tensor in the state dict; None is everything."""
    kept: dict[str, Sequence[int] | None] = {"own": None, "channels": width.channels}
    module, _, kind = name.rpartition(".")
    rules, first = OUTSIDE, 0
    for stack in stacks:
        layer = re.match(re.escape(stack.prefix) + r"\.(\d+)\.(.*)$", module)
        if layer is not None:
            number, rules = first + int(layer[1]), IN_A_LAYER
            module = re.sub(r"^layer\.\d\.", "", layer[2])  # T5 numbers the parts of a layer
            heads = width.heads[number]
            groups = sorted({head // (sizes.heads // sizes.groups) for head in heads})
            kept |= {"neurons": width.neurons[number]}
            for part, chosen in (("heads", heads), ("groups", groups)):
                kept[part] = [
                    head * sizes.head_size + place for head in chosen for place in range(sizes.head_size)
                ]
            break
        first += len(stack.layers)
    else:
        module = module.removeprefix(model.base_model_prefix + ".")
    for pattern, rows, columns in rules:
        if re.fullmatch(pattern, module):
            # A bias is as long as there are rows.
            return kept[rows], kept[columns] if kind == "weight" else None
    if re.search(r"(_ids|^lm_head\.bias|^cls\.predictions\.bias)$", name):
        return None, None
    raise ModelError(f"{FIELD}: a {type(model).__name__} cannot be made narrower, for its tensor {name}")


def _cut(tensor: Tensor, axes: tuple[Sequence[int] | None, Sequence[int] | None]) -> Tensor:
    for axis, kept in enumerate(axes):
        if kept is not None:
            tensor = tensor.index_select(axis, torch.tensor(kept, device=tensor.device))
    return tensor


def _stack_of(name: str, stacks: Sequence[Stack]) -> str:
    """The stack that a module of the model's body stands in or beside."""
    decoder = len(stacks) > 1 and re.search(r"(^|\.)decoder\.", name)
    return "decoder_layers" if decoder else "layers"


def _largest(score: Tensor, count: int) -> tuple[int, ...]:
    chosen = torch.sort(score, descending=True, stable=True).indices[:count]
    return tuple(sorted(chosen.tolist()))
