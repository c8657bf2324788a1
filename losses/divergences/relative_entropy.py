"""KL(p || q), never negative, and the way from it to the logits.

N rows, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_SMALL = 0.01
"""Nats. Float32 rounding is about a millionth of a nat: nothing to a row above this, everything to one far below."""


def relative_entropy(p_NV: Tensor, q_NV: Tensor, log_ratio_NV: Tensor) -> Tensor:
    """Return Σ p·log(p/q) − p + q of each row, (N,), in nats; log_ratio_NV is log(p/q), finite.

    As Σp = Σq = 1 that is the KL divergence, with the same gradient, but no term is negative. Rows that come out
    small are summed again by `excess`, so that rounding cannot make one negative, and nearly equal rows keep their
    digits.
    """
    values_N = (p_NV * log_ratio_NV).sum(-1) - p_NV.sum(-1) + q_NV.sum(-1)
    small_N = values_N < _SMALL
    if values_N.device.type != "cpu":
        return excess(p_NV, q_NV, log_ratio_NV).sum(-1).where(small_N, values_N)
    # On the CPU a look at the numbers costs nothing, and the third exponential of `excess` a lot.
    place_K = small_N.nonzero().squeeze(-1)
    if len(place_K):
        terms_KV = excess(p_NV[place_K], q_NV[place_K], log_ratio_NV[place_K])
        values_N = values_N.index_copy(0, place_K, terms_KV.sum(-1))
    return values_N


def excess(p_NV: Tensor, q_NV: Tensor, log_ratio_NV: Tensor) -> Tensor:
    """Return p·log(p/q) − p + q, (N, V), at least 0.

    With t = log(p/q) that is p·(e⁻ᵗ − 1 + t): written so where |t| < 1, by expm1; as it stands elsewhere, where e⁻ᵗ
    may overflow.
    """
    # The clamp keeps the branch that is not taken finite: its gradient is multiplied by 0, and 0 · inf is NaN.
    near_NV = log_ratio_NV.clamp(-1, 1)
    # expm1 may be off by its last digit, which is enough for a negative sum when t is below 1e-6.
    near_NV = p_NV * ((-near_NV).expm1() + near_NV).clamp(min=0)
    far_NV = p_NV * log_ratio_NV - p_NV + q_NV
    # Exactly one of the two, as by `where`, which is several times slower.
    return near_NV.lerp(far_NV, (log_ratio_NV.abs() >= 1).to(near_NV.dtype))


def through_softmax(q_NV: Tensor, slope_NV: Tensor) -> Tensor:
    """Return the derivative for the logits, given that for the logarithms of q = softmax(logits), divided by q.

    That is q·(slope − Σ q·slope): a row sums up to 0.
    """
    return q_NV * (slope_NV - (q_NV * slope_NV).sum(-1, keepdim=True))
