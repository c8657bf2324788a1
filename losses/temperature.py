"""Logits divided by a temperature, shifted and floored so that every later step stays finite.

N rows, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

FLOOR = -131_008.0
"""How far below its row's largest logit (after the temperature) a class can lie, in nats.

A class further down, −inf included, counts as lying exactly here: its probability is 0 in float64 too, but
its logarithm is a number, so no difference of two logarithms is ever inf − inf. A divergence that is infinite
on paper (mass where the other distribution has none) is therefore finite: 131,008 nats times the misplaced mass.
The number is the widest gap between two float16 logits, ±65504: at temperatures from 1 up those keep their exact
logarithms, and a gradient, at most a quarter of the gap, still fits into float16.
"""


def tempered(logits_NV: Tensor, temperature: float) -> Tensor:
    """Return (logits − largest of the row) / temperature, no lower than FLOOR.

    Softmax and log-softmax do not see the shift; it keeps ±3e38 / 1e-3 from overflowing. The shift is
    detached: with it constant the gradient is already exact. NaN and +inf logits, and a row that is all
    −inf, come out as NaN.
    """
    return floored(logits_NV - logits_NV.detach().amax(-1, keepdim=True), temperature)


def floored(shifted_NV: Tensor, temperature: float) -> Tensor:
    """Return shifted / temperature, no lower than FLOOR."""
    if temperature != 1:
        shifted_NV = shifted_NV / temperature
    return shifted_NV.clamp(min=FLOOR)


def log_probability(logits_NV: Tensor, temperature: float) -> Tensor:
    """Return log softmax(logits / temperature) over classes; finite wherever a row has a finite maximum."""
    return tempered(logits_NV, temperature).log_softmax(-1)


def probability(logits_NV: Tensor, temperature: float) -> Tensor:
    """Return softmax(logits / temperature) over classes."""
    return tempered(logits_NV, temperature).softmax(-1)
