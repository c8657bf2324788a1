"""What `divergences.steps` and the softmax are in Triton, and how a function written for torch is compiled with them.

V classes of one block. What sums over a row in torch returns its terms here; the kernel adds them up.
"""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl

from .. import softmax
from ..divergences import mixture, relative_entropy

if TYPE_CHECKING:
    from collections.abc import Callable

_SMALLEST_NORMAL = tl.constexpr(2.0**-126)


class Softmax(NamedTuple):
    """One side of a comparison, with the names that `softmax.Softmax` gives its parts."""

    logits_NV: tl.tensor
    probability_NV: tl.tensor
    largest_N1: tl.tensor
    offset_N1: tl.tensor


@triton.jit
def class_sum(terms_V: tl.tensor) -> tl.tensor:
    """Return the terms."""
    return terms_V


@triton.jit
def through_softmax(q_V: tl.tensor, slope_V: tl.tensor) -> tl.tensor:
    """Return q·slope. The kernel subtracts q times the row's sum of it."""
    return q_V * slope_V


@triton.jit
def blend(share: tl.tensor, p_V: tl.tensor, q_V: tl.tensor) -> tl.tensor:
    """Return share·p + (1 − share)·q."""
    return q_V + share * (p_V - q_V)


@triton.jit
def at_least_tiny(numbers_V: tl.tensor) -> tl.tensor:
    """Return the numbers, none below the smallest normal one."""
    return tl.where(numbers_V < _SMALLEST_NORMAL, _SMALLEST_NORMAL, numbers_V)


@triton.jit
def sign(numbers_V: tl.tensor) -> tl.tensor:
    """Return −1, 0 or 1, and NaN of NaN."""
    return tl.where(numbers_V > 0, 1.0, tl.where(numbers_V < 0, -1.0, numbers_V))


@triton.jit
def choose(condition_V: tl.tensor, chosen_V: tl.tensor, other_V: tl.tensor) -> tl.tensor:
    """Return one where the condition holds and the other elsewhere."""
    return tl.where(condition_V, chosen_V, other_V)


@triton.jit
def exponential_excess(t_V: tl.tensor) -> tl.tensor:
    """Return e⁻ᵗ − 1 + t, at least 0, for t within [−1, 1]; elsewhere what it is at the nearer end."""
    near_V = tl.where(t_V > 1, 1.0, tl.where(t_V < -1, -1.0, t_V))
    # t²/2 · (1 − t/3 · (1 − t/4 · (…))), the series of which nothing has cancelled; its first missing term is t¹³/13!.
    series_V = 1 - near_V * (1.0 / 12)
    for power in tl.static_range(11, 2, -1):
        series_V = 1 - near_V * (1.0 / power) * series_V
    return near_V * near_V * 0.5 * series_V


def compiled_for_triton(function: Callable[..., Any]) -> Any:
    """Return the JIT function of the same source lines, in which every name means what it means to Triton."""
    return triton.jit(FunctionType(function.__code__, _NAMES, function.__name__))


_NAMES: dict[str, Any] = {
    "__name__": __name__,
    "tl": tl,
    "Tensor": tl.tensor,
    "Softmax": Softmax,
    "class_sum": class_sum,
    "through_softmax": through_softmax,
    "blend": blend,
    "at_least_tiny": at_least_tiny,
    "sign": sign,
    "choose": choose,
    "exponential_excess": exponential_excess,
}
_NAMES["log_ratio"] = compiled_for_triton(softmax.log_ratio)
_NAMES["mixture"] = compiled_for_triton(mixture.mixture)
# A row's relative entropy is the sum of its classes' excess; the torch function of that name saves work on the way.
_EXCESS = _NAMES["excess"] = compiled_for_triton(relative_entropy.excess)


@triton.jit
def _relative_entropy(p_V: tl.tensor, q_V: tl.tensor, log_ratio_V: tl.tensor, offset: tl.tensor) -> tl.tensor:
    return _EXCESS(p_V, q_V, log_ratio_V + offset)


_NAMES["relative_entropy"] = _relative_entropy
