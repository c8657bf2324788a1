"""The weights of a model at one moment, to be compared with those at another."""

from __future__ import annotations

import torch

from distill.models import Student


def weights(of: Student | torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all its tensors, by name."""
    module: torch.nn.Module = of.model if isinstance(of, Student) else of
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_bitwise_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """The same names, and the same bits under each."""
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
