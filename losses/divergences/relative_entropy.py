"""KL(p || q) from log-probabilities, never negative, and the fields the divergences share.

N rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..loss import Loss
from ..ranges import non_negative, positive

if TYPE_CHECKING:
    from torch import Tensor


def relative_entropy(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """Return KL(p || q) of each row, (N,), in nats.

    Sums p·log(p/q) − p + q over classes. As Σp = Σq = 1 that is the KL divergence, with the same gradient, but
    no term is negative, so rounding cannot make the sum negative, and nearly equal rows keep their digits. With
    t = log p − log q a term is p·(e⁻ᵗ − 1 + t): written so where |t| < 1, by expm1; written p·t − p + q
    elsewhere, where e⁻ᵗ may overflow.

    Both arguments must be finite (see `temperature.FLOOR`).
    """
    p_NV, q_NV = log_p_NV.exp(), log_q_NV.exp()
    t_NV = log_p_NV - log_q_NV
    # The clamp keeps the branch that is not taken finite: its gradient is multiplied by 0, and 0 · inf is NaN.
    near_NV = t_NV.clamp(-1, 1)
    # expm1 may be off by its last digit, which is enough for a negative sum when t is below 1e-6.
    near_NV = p_NV * ((-near_NV).expm1() + near_NV).clamp(min=0)
    far_NV = p_NV * t_NV - p_NV + q_NV
    return near_NV.where(t_NV.abs() < 1, far_NV).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Divergence(Loss):
    """A loss that compares the two softmaxes of a row at one temperature.

    Attributes:
        temperature: divides both sides' logits.
        scale: multiplies the value: a number, or "temperature_squared" for Hinton's T², which keeps the size of
            the gradient about the same at every temperature. 1 (the default) is the divergence itself.
    """

    temperature: float = 1.0
    scale: float | Literal["temperature_squared"] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("temperature", self.temperature)
        if isinstance(self.scale, str):
            if self.scale != "temperature_squared":
                raise ValueError(f"scale must be a number or 'temperature_squared', got {self.scale!r}")
        else:
            non_negative("scale", self.scale)

    @property
    def factor(self) -> float:
        """The number that `scale` stands for."""
        return self.temperature**2 if isinstance(self.scale, str) else self.scale
