"""Several teachers as one.

N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .precision import wide
from .ranges import non_negative, one_of, positive

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """A weighted mean of teachers' probabilities or logits, as the logits of one teacher.

    Called on a sequence of logits, (N, V) each, it returns (N, V) logits for rows.teacher, float32 (float64 for
    float64 logits), without gradient.

    "probabilities" is the mixture Σ w·softmax(z/T): what one of the teachers finds likely, it finds likely. Under a
    loss of temperature T the mixture is that of the softened teachers only if it was taken at that T, so T is
    a field here; the logits returned are T·log of the mixture. "logits" is Σ w·z, the geometric mean: likely is only
    what all of them allow, and it is the same at every temperature.

    Paper: Hinton et al. 2015, arXiv:1503.02531, section 2 (both means); You et al. 2017 weigh teachers.
    Units: logits.

    Raises:
        ValueError: a weight that is negative, all weights 0, an unknown `of`, a temperature that is not positive;
            when called: not as many teachers as weights, no teacher, or teachers of different shapes.

    Example:
        >>> import torch
        >>> from distill.losses import Ensemble
        >>> sure, unsure = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> Ensemble()([sure, unsure]).softmax(-1)
        tensor([[0.6904, 0.3096]])
        >>> Ensemble(of="logits", weights=(3, 1))([sure, unsure])
        tensor([[1.5000, 0.0000]])

    Attributes:
        of: what is averaged.
        weights: one a teacher, in any unit: they are divided by their sum. None weighs all alike.
        temperature: that of the loss which will read the result; no matter to the mean of logits.
    """

    of: Literal["probabilities", "logits"] = "probabilities"
    weights: tuple[float, ...] | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        one_of("of", self.of, ("probabilities", "logits"))
        positive("temperature", self.temperature)
        for place, weight in enumerate(self.weights or ()):
            non_negative(f"weights[{place}]", weight)
        if self.weights is not None and sum(self.weights) == 0:
            raise ValueError(f"weights must not all be 0, got {self.weights}")

    def __call__(self, teachers: Sequence[Tensor]) -> Tensor:
        """Return the one teacher's logits, (N, V)."""
        weights = (1.0,) * len(teachers) if self.weights is None else self.weights
        if not teachers or len(weights) != len(teachers):
            raise ValueError(f"expected one teacher for each of the weights {weights}, got {len(teachers)}")
        shapes = {tuple(logits_NV.shape) for logits_NV in teachers}
        if len(shapes) > 1:
            raise ValueError(f"teachers must have logits of one shape, got {sorted(shapes)}")
        total = sum(weights)
        # A teacher of weight 0 is not asked: its −inf times 0 would be NaN.
        counted = [
            (weight / total, teacher) for weight, teacher in zip(weights, teachers, strict=True) if weight
        ]
        mean_NV: Tensor | None = None
        for share, logits_NV in counted:
            term_NV = self._term(share, logits_NV.detach())
            if mean_NV is None:
                mean_NV = term_NV
            elif self.of == "logits":
                mean_NV = mean_NV + term_NV
            else:
                mean_NV = mean_NV.logaddexp(term_NV)
        assert mean_NV is not None  # noqa: S101 (some weight is positive)
        return mean_NV if self.of == "logits" else self.temperature * mean_NV

    def _term(self, share: float, logits_NV: Tensor) -> Tensor:
        import math

        logits_NV = wide(logits_NV)
        if self.of == "logits":
            return share * logits_NV
        # Less the largest before the division: ±3e38 over a temperature below 1 is not finite.
        shifted_NV = (logits_NV - logits_NV.amax(-1, keepdim=True)) / self.temperature
        return shifted_NV.log_softmax(-1) + math.log(share)
