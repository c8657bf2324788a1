"""What is kept of a teacher's predictions, and what it weighs.

Shapes: N rows, C classes, K kept classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from distill.losses import most_likely, sampled
from distill.recipe.predictions import UINT16, bytes_of_row

if TYPE_CHECKING:
    from torch import Tensor

Kept = Literal["full", "top_k", "sampled"]


@dataclass(frozen=True)
class CacheSpec:
    """What is kept of each row.

    Attributes:
        kept: `full`: all logits, in the teacher's own precision, so that every temperature can be had from them and
            training is bitwise that of a teacher that is asked example by example (`EachAlone`). `top_k`: the most
            likely classes with their probabilities; the rest of 1 is the tail's mass. `sampled`: an unbiased draw of
            classes (arXiv:2503.16870).
        count: classes (`top_k`) or draws (`sampled`) a row.
        temperature: of the probabilities that are kept; a loss must have the same. `full` keeps logits, so it is 1.
        dtype: of the probabilities. `float32` is exact. `bfloat16` and `float16` are rounded towards 0, so that a row
            never adds up to more than its mass: a probability p loses less than p/128, or p/1024 (2⁻²⁴ where
            p < 2⁻¹⁴); what it loses goes to the tail.
        seed: of the draws, which depend on it and on the example's content alone.
    """

    kept: Kept = "full"
    count: int = 32
    temperature: float = 1.0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be a positive number, got {self.temperature}")
        if self.kept == "full" and (self.temperature != 1 or self.dtype != "float32"):
            raise ValueError(
                "a full cache keeps logits in the teacher's precision: leave temperature and dtype out"
            )
        if self.kept == "sampled" and self.dtype != "float32":
            raise ValueError("rounding would lean a sample to one side: leave dtype out for kept: sampled")

    def bytes_of_row(self, classes: int, element_size: int = 4) -> int:
        """What one row weighs, `element_size` bytes a logit of the teacher; the files' own headers not counted."""
        return bytes_of_row(self.kept, classes, count=self.count, dtype=self.dtype, element_size=element_size)

    def tensors(self, logits_NC: Tensor, key: bytes) -> dict[str, Tensor]:
        """What is kept of one example's rows, by name, on the CPU."""
        if self.kept == "full":
            return {"logits": logits_NC.detach().cpu().contiguous()}
        if self.kept == "top_k":
            sparse = most_likely(logits_NC, kept=self.count, temperature=self.temperature)
        else:
            seed = int.from_bytes(key[:8], "big") ^ self.seed
            draw = torch.Generator().manual_seed(seed % 2**63)
            sparse = sampled(
                logits_NC.cpu(), samples=self.count, temperature=self.temperature, generator=draw
            )
        index_NK, probability_NK = sparse.index.cpu(), sparse.probability.float().cpu()
        width = torch.uint16 if logits_NC.shape[1] <= UINT16 else torch.int32
        return {
            "index": index_NK.to(width).contiguous(),
            "probability": _towards_zero(probability_NK, getattr(torch, self.dtype)).contiguous(),
        }


def _towards_zero(p_NK: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest number of a precision that is not above p ≥ 0."""
    rounded_NK = p_NK.to(dtype)
    if dtype == torch.float32:
        return rounded_NK
    # Of positive numbers the one below has the bit pattern below.
    above_NK = (rounded_NK.float() > p_NK).to(torch.int16)
    return (rounded_NK.view(torch.int16) - above_NK).view(dtype)
