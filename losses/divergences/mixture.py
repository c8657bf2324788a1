"""Mixtures of teacher and student, which keep a divergence bounded.

N rows, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def mixture(share: float, p_NV: Tensor, q_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Return m = share·p + (1 − share)·q and its logarithm, both finite where both probabilities underflow."""
    import torch

    # Below the smallest normal number a term of either side times any logarithm is nothing, so m may stop there.
    m_NV = q_NV.lerp(p_NV, share).clamp(min=torch.finfo(p_NV.dtype).tiny)
    return m_NV, m_NV.log()
