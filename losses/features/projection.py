"""The trained maps from the student's hidden states to the teacher's.

H hidden width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .activations import ModelPair
from .hidden_states import HiddenStates, kept_channels

if TYPE_CHECKING:
    from ..rows import Rows


class ProjectedHiddenStates(nn.Module):
    """`HiddenStates` with its maps, called on rows like the loss itself.

    A map starts by putting each channel of the student in the place it has in the teacher, where that is known (the
    identity for equal widths: layers taken from the teacher start at cost 0), and otherwise as an orthogonal matrix
    drawn from torch's generator, which keeps lengths.

    Args:
        loss: its configuration.
        models: whose layers are compared.
    """

    def __init__(self, loss: HiddenStates, models: ModelPair):
        super().__init__()
        self.loss = loss
        self.maps = nn.ModuleList(
            nn.Linear(models.student.width, models.teacher.width, bias=False) for _ in loss.pairs(models)
        )
        channels = kept_channels(models)
        for each in self.maps:
            weight: Tensor = each.weight  # type: ignore[assignment]
            if channels is None:
                nn.init.orthogonal_(weight)
            else:
                nn.init.zeros_(weight)
                with torch.no_grad():
                    weight[list(channels), list(range(len(channels)))] = 1

    def evaluate(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the distances, (N,), without the term's weight, and nothing besides."""
        return self.loss.projected_values(rows, self.maps), {}

    def forward(self, rows: Rows) -> Tensor:
        """Return weight times the distances, (N,)."""
        return self.loss.weight * self.evaluate(rows)[0]

    def extra_repr(self) -> str:
        """Name the loss."""
        return repr(self.loss)
