"""KL(p || q), never negative.

N rows, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .steps import choose, exponential_excess

if TYPE_CHECKING:
    from torch import Tensor

_SMALL = 0.01
"""Nats. Float32 rounding is about a millionth of a nat: nothing to a row above this, everything to one far below."""


def relative_entropy(p_NV: Tensor, q_NV: Tensor, log_ratio_NV: Tensor, offset_N1: Tensor) -> Tensor:
    """Return Σ p·log(p/q) − p + q of each row, (N,), in nats; log(p/q) is log_ratio + offset, finite.

    As Σp = Σq = 1 that is KL(p || q), with the same gradient, but it does not mind that over many classes they add up
    to 1 only nearly, and of parts of distributions it is not negative either. Rows that come out small are summed
    again by `excess`, so that rounding cannot make one negative, and nearly equal rows keep their digits.
    """
    values_N = (p_NV * log_ratio_NV).sum(-1) + p_NV.sum(-1) * (offset_N1.squeeze(-1) - 1) + q_NV.sum(-1)
    small_N = values_N < _SMALL
    if values_N.device.type != "cpu":
        return excess(p_NV, q_NV, log_ratio_NV + offset_N1).sum(-1).where(small_N, values_N)
    # On the CPU a look at the numbers costs nothing, and the third exponential of `excess` a lot.
    place_K = small_N.nonzero().squeeze(-1)
    if len(place_K):
        terms_KV = excess(p_NV[place_K], q_NV[place_K], log_ratio_NV[place_K] + offset_N1[place_K])
        values_N = values_N.index_copy(0, place_K, terms_KV.sum(-1))
    return values_N


def excess(p_NV: Tensor, q_NV: Tensor, log_ratio_NV: Tensor) -> Tensor:
    """Return p·log(p/q) − p + q, (N, V), at least 0.

    With t = log(p/q) that is p·(e⁻ᵗ − 1 + t): written so where |t| < 1; as it stands elsewhere, where e⁻ᵗ may
    overflow. Triton compiles these lines too.
    """
    near_NV = p_NV * exponential_excess(log_ratio_NV)
    far_NV = p_NV * log_ratio_NV - p_NV + q_NV
    return choose(log_ratio_NV.abs() >= 1, far_NV, near_NV)
