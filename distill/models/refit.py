"""Linear maps in place of dropped layers, folded into the layer before them.

A dropped run of layers would be replaced by the least-squares linear map from its input to its output (Your
Transformer is Secretly Linear, arXiv 2405.12250, §5). No plain transformers model has such a layer, and a map of the
whole hidden state cannot be folded into a neighbour: the residual connection goes past every weight. What can be folded
exactly is a map of one linear part of it: of what the feed-forward network of the layer before the run adds,
W a + b with the neurons' activations a. So W and b are fitted anew, in least squares over real tokens, to add what the
dropped layers would have added as well. That is exact for whatever part of it is linear in a, and nothing for the rest.

Shape suffixes: B sequences, T positions, N tokens, H hidden channels, I neurons, J neurons and a bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distill.errors import ModelError
from distill.models.depth import real_tokens, texts_of
from distill.models.layers import FIELD, Stack, keep_layers, layer_stacks

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from distill.models.batch import Batch

# The last linear map of a layer, and the norm after it where the hidden state goes through one.
LAST_LINEAR = (
    ("mlp.down_proj", None),
    ("mlp.c_proj", None),
    ("layer.1.DenseReluDense.wo", None),
    ("layer.2.DenseReluDense.wo", None),
    ("output.dense", "output.LayerNorm"),
)
# Of 0.01, 0.1, 1 and 4 the nearest to the teacher: SmolLM2-135M without 6 of its 30 layers, 6,144 tokens.
RIDGE = 1.0


class _Seen(Exception):
    """What was waited for has been computed; the rest of the forward pass is not needed."""


@dataclass(frozen=True)
class _Host:
    """A kept layer before a run of dropped ones: its own number, the number in the student, the run's last layer."""

    stack: Stack
    layer: int
    place: int
    last: int


def refit_before_dropped(
    model: PreTrainedModel, kept: dict[str, tuple[int, ...]], batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """Weights for the layers before dropped ones, which then add what is linear of what the dropped ones added.

    Layer by layer from the first, the student so far and the whole model read the texts; the weights of the layer's
    last linear map are changed so that its output comes closest to the output of the last dropped layer:
    min over Δ of Σ over tokens ‖(y + Δ a) − y*‖² / ‖y*‖² + λ ‖Δ‖², y the student's output, y* the whole model's, λ the
    mean of the diagonal of Σ a aᵀ / ‖y*‖², with a constant in a where the map has a bias. Errors that came
    in earlier are so corrected too. Where the layer ends in a norm (BERT), the map is fitted to what the last dropped
    layer's norm read, and takes that norm's weights. Layers dropped before the first kept one have no host.

    Args:
        model: the teacher, whole.
        kept: its layers to keep (`choose_layers`).
        batches: texts; they are read twice for each layer that is fitted. Padding does not count.

    Returns:
        New weights by their names in the teacher's state dict.

    Raises:
        ModelError: an architecture whose last linear map is not known, or no texts.
    """
    student = keep_layers(model, **kept)
    student.to(model.device)  # type: ignore[arg-type]
    made: dict[str, Tensor] = {}
    for host in _hosts(model, kept):
        theirs = host.stack.layers[host.last]
        own = student.get_submodule(f"{host.stack.prefix}.{host.place}")
        name, norm = _last_linear(own, model)
        linear: Any = own.get_submodule(name)
        change_JH = _least_squares(model, student, host, name, norm, batches)
        weight, bias = linear.weight, linear.bias
        with torch.no_grad():
            change_IH = change_JH[: -1 if bias is not None else None].to(weight)
            weight += (
                change_IH.T if isinstance(linear, nn.Linear) else change_IH
            )  # GPT-2's maps stand transposed
            if bias is not None:
                bias += change_JH[-1].to(bias)
            if norm is not None:
                own.get_submodule(norm).load_state_dict(theirs.get_submodule(norm).state_dict())
        for part in (name, norm) if norm is not None else (name,):
            for key, tensor in own.get_submodule(part).state_dict().items():
                made[f"{host.stack.prefix}.{host.layer}.{part}.{key}"] = tensor.clone()
    return made


def _hosts(model: PreTrainedModel, kept: dict[str, tuple[int, ...]]) -> list[_Host]:
    hosts = []
    for stack in layer_stacks(model):
        layers = kept[stack.part]
        for place, (layer, following) in enumerate(
            zip(layers, (*layers[1:], len(stack.layers)), strict=True)
        ):
            if following > layer + 1:
                hosts.append(_Host(stack, layer, place, following - 1))
    return hosts


def _last_linear(block: nn.Module, model: PreTrainedModel) -> tuple[str, str | None]:
    names = {name for name, _ in block.named_modules()}
    for linear, norm in LAST_LINEAR:
        if linear in names and not any("feedforward_layernorm" in name for name in names):
            return linear, norm
    raise ModelError(
        f"{FIELD}.dropped: the last linear map of a {model.config.model_type}'s layer is not known; write left_out"
    )


def _least_squares(
    model: PreTrainedModel,
    student: PreTrainedModel,
    host: _Host,
    linear: str,
    norm: str | None,
    batches: Sequence[Batch],
) -> Tensor:
    """The change of the host's last linear map, rows as inputs: [I or J, H] in float64."""
    ours, theirs = (f"{host.stack.prefix}.{number}" for number in (host.place, host.last))
    inside = f".{norm}" if norm is not None else ""
    has_bias = student.get_submodule(f"{ours}.{linear}").bias is not None
    aa_JJ = ar_JH = None
    for batch in batches:
        inputs = texts_of(batch, model)
        real_BT = real_tokens(inputs, host.stack.part, model)
        (wanted_BTH,) = _caught(model, inputs, [(theirs + inside, norm is not None)])
        a_BTI, found_BTH = _caught(
            student, inputs, [(f"{ours}.{linear}", True), (ours + inside, norm is not None)]
        )
        wanted_NH = wanted_BTH[real_BT].double()
        a_NJ, rest_NH = a_BTI[real_BT].double(), wanted_NH - found_BTH[real_BT].double()
        if has_bias:
            a_NJ = torch.cat([a_NJ, torch.ones_like(a_NJ[:, :1])], dim=1)
        scale_N1 = torch.linalg.vector_norm(wanted_NH, dim=1, keepdim=True).clamp_min(1e-9).reciprocal()
        a_NJ, rest_NH = a_NJ * scale_N1, rest_NH * scale_N1
        if aa_JJ is None or ar_JH is None:
            aa_JJ, ar_JH = a_NJ.T @ a_NJ, a_NJ.T @ rest_NH
        else:
            aa_JJ += a_NJ.T @ a_NJ
            ar_JH += a_NJ.T @ rest_NH
    if aa_JJ is None or ar_JH is None:
        raise ModelError(f"{FIELD}.dropped: no text to fit on")
    aa_JJ.diagonal().add_(RIDGE * aa_JJ.diagonal().mean())
    change_JH: Tensor = torch.linalg.solve(aa_JJ, ar_JH)
    return change_JH


def _caught(
    model: PreTrainedModel, inputs: dict[str, Tensor], places: Sequence[tuple[str, bool]]
) -> list[Tensor]:
    """What modules read (True) or give (False) on a batch [B, T, H]; nothing is computed after the last of them."""
    caught: list[Tensor] = []

    def see(of: Sequence[Any], last: bool) -> None:
        caught.append(of[0])
        if last:
            raise _Seen

    with ExitStack() as hooks, torch.inference_mode(), suppress(_Seen):
        for number, (name, reads) in enumerate(places, start=1):
            module, last = model.get_submodule(name), number == len(places)
            if reads:
                hook = module.register_forward_pre_hook(lambda module, inputs, last=last: see(inputs, last))
            else:
                hook = module.register_forward_hook(
                    lambda module, inputs, output, last=last: see(
                        output if isinstance(output, tuple) else (output,), last
                    )
                )
            hooks.callback(hook.remove)
        model.train(mode=False)
        model.base_model(**inputs)
    return caught
