"""Which layers a shallower student keeps: evenly spaced ones, or those that matter most on real texts.

Shape suffixes: B sequences, T positions, N tokens, H hidden channels, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from distill.errors import ModelError
from distill.models.layers import FIELD, Stack, evenly_spaced, layer_stacks

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from distill.models.batch import Batch

Choice = Literal["even", "block_influence", "linearity"]
Layers = int | tuple[int, ...] | None
TOKENS_A_CHANNEL = 10  # fewer, and a linear map fits anything


def choose_layers(
    model: PreTrainedModel,
    layers: Layers = None,
    decoder_layers: Layers = None,
    importance: Mapping[str, Tensor] | None = None,
) -> dict[str, tuple[int, ...]]:
    """The teacher's layers that `from_teacher.layers` and `decoder_layers` ask for, by the field's name.

    Args:
        model: the teacher.
        layers: how many or which; None is all. Of an encoder–decoder model they are the encoder's, and the decoder's
            too where nothing else is said of these.
        decoder_layers: the same for the decoder of an encoder–decoder model.
        importance: of every layer (`layer_importance`): a number of layers are then the most important ones, of
            equals the first. None spaces them evenly.

    Raises:
        ModelError: the teacher has fewer layers, or no decoder beside an encoder.
    """
    stacks = layer_stacks(model)
    if decoder_layers is not None and len(stacks) == 1:
        raise ModelError(
            f"{FIELD}.decoder_layers: is for encoder–decoder models, found {model.config.model_type}; leave it out"
        )
    chosen = {}
    for stack in stacks:
        own = stack.part == "layers" or decoder_layers is not None
        wanted = layers if stack.part == "layers" or decoder_layers is None else decoder_layers
        field, total = f"{FIELD}.{stack.part if own else 'layers'}", len(stack.layers)
        if wanted is None:
            chosen[stack.part] = tuple(range(total))
        elif not isinstance(wanted, int):
            if max(wanted) >= total:
                raise ModelError(
                    f"{field}: layer {max(wanted)} asked for, the teacher's layers are 0 to {total - 1}"
                )
            chosen[stack.part] = wanted
        elif wanted > total:
            raise ModelError(f"{field}: {wanted} asked for, the teacher has {total}")
        elif importance is None:
            chosen[stack.part] = evenly_spaced(total, wanted)
        else:
            order = torch.sort(importance[stack.part], descending=True, stable=True).indices
            chosen[stack.part] = tuple(sorted(order[:wanted].tolist()))
    return chosen


def layer_importance(model: PreTrainedModel, batches: Iterable[Batch], choose: Choice) -> dict[str, Tensor]:
    """How much each layer matters on some texts, larger is more; of every stack [L], in float64."""
    if choose == "block_influence":
        return block_influence(model, batches)
    return {part: 1 - score_L for part, score_L in linearity(model, batches).items()}


def block_influence(model: PreTrainedModel, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """1 − the mean cosine of a layer's input and output over the tokens read, of every stack [L].

    Paper: ShortGPT, arXiv 2403.03853, eq. 1. Padding does not count. 0: the layer turns no token's hidden state.

    Raises:
        ModelError: no tokens were read.
    """
    stacks = layer_stacks(model)
    total = {stack.part: torch.zeros(len(stack.layers), dtype=torch.float64) for stack in stacks}

    def add(part: str, layer: int, before_NH: Tensor, after_NH: Tensor) -> None:
        cosine_N = torch.nn.functional.cosine_similarity(before_NH.double(), after_NH.double(), dim=-1)
        total[part][layer] += cosine_N.sum().cpu()

    tokens = watch_layers(model, batches, add)
    return {part: 1 - sum_L / tokens[part] for part, sum_L in total.items()}


def linearity(model: PreTrainedModel, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """How much of what each layer adds is a linear map of its input, 0 to 1, of every stack [L].

    Paper: Your Transformer is Secretly Linear, arXiv 2405.12250, §3. With the tokens' inputs X [N, H] and what the
    layer adds to them, D = Y − X, both centred and of Frobenius norm 1: 1 − min_A ‖X A − D‖². The paper's own score
    takes the outputs Y, residual included, which is above 0.99 for most layers of most models and tells little.

    Sums of products are kept in float64, two [H, H] a layer.

    Raises:
        ModelError: fewer than 10 H tokens were read: a linear map of H numbers fits so few nearly by itself.
    """
    sums: dict[tuple[str, int], list[Tensor]] = {}

    def add(part: str, layer: int, before_NH: Tensor, after_NH: Tensor) -> None:
        x_NH, d_NH = before_NH.double(), after_NH.double() - before_NH.double()
        found = [x_NH.sum(0), d_NH.sum(0), x_NH.T @ x_NH, x_NH.T @ d_NH, d_NH.square().sum()]
        if (part, layer) in sums:
            for total, one in zip(sums[part, layer], found, strict=True):
                total += one
        else:
            sums[part, layer] = found

    tokens = watch_layers(model, batches, add)
    scores = {
        stack.part: torch.zeros(len(stack.layers), dtype=torch.float64) for stack in layer_stacks(model)
    }
    for (part, layer), (x_H, d_H, xx_HH, xd_HH, dd) in sums.items():
        count, channels = tokens[part], len(x_H)
        if count < TOKENS_A_CHANNEL * channels:
            raise ModelError(
                f"{FIELD}.choose: linearity needs {TOKENS_A_CHANNEL * channels:,} tokens of training examples "
                f"({TOKENS_A_CHANNEL} a channel), found {count:,}; take block_influence or give more data"
            )
        covariance_HH = xx_HH - torch.outer(x_H, x_H) / count
        cross_HH = xd_HH - torch.outer(x_H, d_H) / count
        spread = dd - d_H.square().sum() / count
        # Channels may depend on each other (those of a LayerNorm do): a direction whose spread is float32's rounding
        # explains nothing.
        explained = torch.linalg.pinv(covariance_HH, rtol=1e-12, hermitian=True) @ cross_HH
        scores[part][layer] = ((explained * cross_HH).sum() / spread).clamp(0, 1).cpu() if spread > 0 else 1.0
    return scores


def watch_layers(
    model: PreTrainedModel, batches: Iterable[Batch], see: Callable[[str, int, Tensor, Tensor], None]
) -> dict[str, int]:
    """Run a model over texts and show the inputs and outputs [N, H] of every layer at real tokens.

    Returns:
        How many tokens each stack has read.

    Raises:
        ModelError: there were none.
    """
    stacks = layer_stacks(model)
    real: dict[str, Tensor] = {}

    def record(stack: Stack, layer: int, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        before_BTH = args[0] if args else kwargs["hidden_states"]
        after_BTH = output[0] if isinstance(output, tuple) else output
        see(stack.part, layer, before_BTH[real[stack.part]], after_BTH[real[stack.part]])

    with ExitStack() as hooks, torch.inference_mode():
        for stack in stacks:
            for layer, block in enumerate(stack.layers):
                hook = block.register_forward_hook(partial(record, stack, layer), with_kwargs=True)
                hooks.callback(hook.remove)
        return read_texts(model, batches, real)


def read_texts(model: PreTrainedModel, batches: Iterable[Batch], real: dict[str, Tensor]) -> dict[str, int]:
    """Run a model over texts for the sake of the hooks on it.

    Args:
        model: put into inference mode.
        batches: the texts.
        real: filled, before each of them is read, with the positions [B, T] of each stack that are tokens.

    Returns:
        How many tokens each stack has read.

    Raises:
        ModelError: there were none.
    """
    stacks = layer_stacks(model)
    tokens = {stack.part: 0 for stack in stacks}
    model.train(mode=False)
    for batch in batches:
        inputs = texts_of(batch, model)
        real |= {stack.part: real_tokens(inputs, stack.part, model) for stack in stacks}
        for part in tokens:
            tokens[part] += int(real[part].sum())
        model.base_model(**inputs)
    if not all(tokens.values()):
        raise ModelError(f"{FIELD}: no text to measure on")
    return tokens


def texts_of(batch: Batch, model: PreTrainedModel) -> dict[str, Tensor]:
    """A batch's inputs on the model's device, the choices of an example as texts of their own."""
    return {name: tensor.flatten(0, -2) for name, tensor in batch.to(model.device).inputs.items()}


def real_tokens(inputs: Mapping[str, Tensor], part: str, model: PreTrainedModel) -> Tensor:
    """Which positions [B, T] of a stack's texts are tokens and not padding."""
    names = ("decoder_input_ids", "decoder_attention_mask") if part == "decoder_layers" else (
        "input_ids", "attention_mask"
    )  # fmt: skip
    ids_BT = inputs[names[0]]
    if names[1] in inputs:
        return inputs[names[1]].bool()
    real_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    if part == "decoder_layers":  # they start with the padding token, and are padded with it
        real_BT = ids_BT != model.config.pad_token_id
        real_BT[:, 0] = True
    return real_BT
