"""A student whose weights are divided among devices (FSDP2): its tensors whole, for what is written and read."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which every device has a part; all devices must ask for it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor], *, kept: bool) -> dict[str, Tensor]:
    """Whole tensors by name, one after the other, on the CPU; only what is `kept` is held on to.

    All devices must call this together.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        one = whole(tensor.detach())
        if kept:
            found[name] = one.cpu()
    return found


def part_of(tensor: Tensor, example: Tensor) -> Tensor:
    """This device's part of a whole tensor, where the example is divided."""
    if not isinstance(example, DTensor):
        return tensor
    return distribute_tensor(tensor.to(example.device), example.device_mesh, example.placements)


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The norm of all tensors together, parts on other devices included."""
    return whole(torch.nn.utils.get_total_norm(list(tensors)))


def tied_weights(model: Any) -> list[str]:
    """Names of weights that several modules share, where FSDP 2 cannot divide them.

    It can divide an output layer that is the input embedding (a decoder's), and nothing else that is shared.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    head = model.get_output_embeddings()
    if (
        head is not None
        and head.weight is model.get_input_embeddings().weight
        and len(names[id(head.weight)]) == 2
    ):
        del names[id(head.weight)]
    return next((shared for shared in names.values() if len(shared) > 1), [])


class Outline:
    """A model without its weights, from which it is made again once these were divided.

    Args:
        model: as transformers made it, before accelerate divides it in place.
    """

    def __init__(self, model: PreTrainedModel):
        shapes = {
            id(each): torch.nn.Parameter(each.to("meta"), each.requires_grad) for each in model.parameters()
        }
        self._model = copy.deepcopy(model, shapes)

    def filled(self, divided: nn.Module) -> PreTrainedModel:
        """The model with the whole weights of the divided one; all devices must call this together."""
        buffers = dict(divided.named_buffers())
        for name, parameter in divided.named_parameters():
            # Of weights that are tied, the first name stands for all.
            mine = self._model.get_parameter(name)
            filled = torch.nn.Parameter(whole(parameter.detach()).clone(), mine.requires_grad)
            for module in self._model.modules():
                for key, held in module._parameters.items():
                    if held is mine:
                        module._parameters[key] = filled
        for name, buffer in self._model.named_buffers():
            buffer.data = buffers[name].detach().clone()
        return self._model
