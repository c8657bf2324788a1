"""The trained maps from the student's hidden states to the teacher's.

H hidden width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from .activations import ModelPair
from .hidden_states import HiddenStates

if TYPE_CHECKING:
    from ..rows import Rows


class ProjectedHiddenStates(nn.Module):
    """`HiddenStates` with its maps, called on rows like the loss itself.

    A map starts as the identity where the widths are equal, so that layers taken from the teacher start at cost 0,
    and otherwise as an orthogonal matrix drawn from torch's generator, which keeps lengths.

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
        for each in self.maps:
            weight: Tensor = each.weight  # type: ignore[assignment]
            if models.student.width == models.teacher.width:
                nn.init.eye_(weight)
            else:
                nn.init.orthogonal_(weight)

    def evaluate(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the distances, (N,), without the term's weight, and nothing besides."""
        return self.loss.projected_values(rows, self.maps), {}

    def forward(self, rows: Rows) -> Tensor:
        """Return weight times the distances, (N,)."""
        return self.loss.weight * self.evaluate(rows)[0]

    def extra_repr(self) -> str:
        """Name the loss."""
        return repr(self.loss)
