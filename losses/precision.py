"""The precision everything is computed in: float32 at least, float64 where the numbers came in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def wide(numbers: Tensor) -> Tensor:
    """Return the numbers in float32, or float64 where they are: what everything is computed in."""
    return numbers if numbers.element_size() >= 4 else numbers.float()
