"""Steps of a divergence that torch and Triton write differently; all else they read from the same lines.

`kernels.triton_steps` has the same names for Triton. There a "matrix" is one block of a row's classes, so what would
sum over a row returns its terms, and the kernel adds them up.

N rows, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def class_sum(terms_NV: Tensor) -> Tensor:
    """Return the sum over classes, (N,)."""
    return terms_NV.sum(-1)


def through_softmax(q_NV: Tensor, slope_NV: Tensor) -> Tensor:
    """Return the derivative for the logits, given that for the logarithms of q = softmax(logits), divided by q.

    That is q·(slope − Σ q·slope): a row sums up to 0, and a number added to all of its slopes changes nothing.
    """
    weighted_NV = q_NV * slope_NV
    return weighted_NV.addcmul(q_NV, weighted_NV.sum(-1, keepdim=True), value=-1)


def blend(share: float, p_NV: Tensor, q_NV: Tensor) -> Tensor:
    """Return share·p + (1 − share)·q."""
    return q_NV.lerp(p_NV, share)


def at_least_tiny(numbers_NV: Tensor) -> Tensor:
    """Return the numbers, none below the smallest normal one."""
    import torch

    return numbers_NV.clamp(min=torch.finfo(numbers_NV.dtype).tiny)


def sign(numbers_NV: Tensor) -> Tensor:
    """Return −1, 0 or 1."""
    return numbers_NV.sign()


def choose(condition_NV: Tensor, chosen_NV: Tensor, other_NV: Tensor) -> Tensor:
    """Return one where the condition holds and the other elsewhere; both are finite."""
    # Exactly one of the two, as by `where`, which is several times slower.
    return other_NV.lerp(chosen_NV, condition_NV.to(other_NV.dtype))


def exponential_excess(t_NV: Tensor) -> Tensor:
    """Return e⁻ᵗ − 1 + t, at least 0, for t within [−1, 1]; elsewhere what it is at the nearer end."""
    # The clamp keeps the branch that is not taken finite: its gradient is multiplied by 0, and 0 · inf is NaN.
    near_NV = t_NV.clamp(-1, 1)
    # expm1 may be off by its last digit, which is enough for a negative sum when t is below 1e-6.
    return ((-near_NV).expm1() + near_NV).clamp(min=0)
