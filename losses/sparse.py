"""A teacher of which only a few classes a row are known: the most likely ones, or a sample.

N rows, V vocabulary, K kept classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .precision import wide
from .softmax import softmax

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, eq=False)
class SparseTeacher:
    """What is kept of the teacher's probabilities, as a cache stores it.

    Shapes:
        index: (N, K) classes, each at most once a row among those of positive probability. probability: (N, K) in
        [0, 1], in any floating-point precision; an entry of probability 0 is padding, whatever its class.

    The probabilities are those of one temperature, which whoever made them knows: a loss takes them as they are, and
    its own temperature must be the same.

    Raises:
        TypeError: index does not hold integers, or probability not floating-point numbers.
        ValueError: shapes or devices that do not belong together.

    Example:
        >>> import torch
        >>> from distill.losses.sparse import most_likely
        >>> kept = most_likely(torch.tensor([[0.0, 2.0, 1.0]]), kept=2)
        >>> kept.index
        tensor([[1, 2]])
        >>> kept.probability
        tensor([[0.6652, 0.2447]])
    """

    index: Tensor
    probability: Tensor

    def __post_init__(self) -> None:
        if self.index.dim() != 2 or self.index.shape != self.probability.shape:
            raise ValueError(
                "index and probability must have the same shape (N, K), got "
                f"{tuple(self.index.shape)} and {tuple(self.probability.shape)}"
            )
        if self.index.is_floating_point() or self.index.is_complex():
            raise TypeError(f"index must hold integers, got {self.index.dtype}")
        if not self.probability.is_floating_point():
            raise TypeError(f"probability must be floating-point, got {self.probability.dtype}")
        if self.index.device != self.probability.device:
            raise ValueError(
                f"index is on {self.index.device}, but probability is on {self.probability.device}"
            )

    def __len__(self) -> int:
        """Return N."""
        return int(self.index.shape[0])

    def select(self, index: Tensor | slice) -> SparseTeacher:
        """Return the rows at index, in that order."""
        return SparseTeacher(self.index[index], self.probability[index])


def most_likely(logits_NV: Tensor, *, kept: int, temperature: float = 1.0) -> SparseTeacher:
    """Return each row's `kept` most likely classes (all of them, if there are fewer), in float32 at least."""
    top = softmax(wide(logits_NV.detach()), temperature).probability_NV.topk(min(kept, logits_NV.shape[1]))
    return SparseTeacher(top.indices, top.values)


def sampled(
    logits_NV: Tensor,
    *,
    samples: int,
    temperature: float = 1.0,
    power: float = 1.0,
    generator: Generator | None = None,
) -> SparseTeacher:
    """Return an unbiased sample of each row's distribution p: its expectation is p, class by class.

    Classes are drawn independently in proportion to p^power, and each draw counts p / (samples · proposal), so that
    a power below 1 looks further into the tail without leaning towards it. With power 1 a row adds up to 1;
    otherwise it does so in expectation. A class that is drawn twice is one entry; its second place is padding.

    Paper: Anshumann et al. 2025, arXiv:2503.16870 (50 draws, power 1).
    """
    import torch

    # In parts: the running sums are float64 matrices as wide as the vocabulary.
    parts = [
        _draw(softmax(wide(part_NV), temperature).probability_NV, samples, power, generator)
        for part_NV in (
            logits_NV.detach()[start : start + _ROWS] for start in range(0, max(len(logits_NV), 1), _ROWS)
        )
    ]
    index, probability = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return SparseTeacher(index, probability)


_ROWS = 64


def _draw(p_NV: Tensor, samples: int, power: float, generator: Generator | None) -> tuple[Tensor, Tensor]:
    import torch

    proposal_NV = p_NV if power == 1 else p_NV**power
    # In float64: in float32 a class of probability 3e-8 would vanish beside a running sum of 1.
    running_NV = proposal_NV.double().cumsum(-1)
    total_N1 = running_NV[:, -1:]
    device = p_NV.device if generator is None else generator.device
    place_NK = torch.rand(len(p_NV), samples, dtype=torch.float64, generator=generator, device=device)
    # Rounding must not lead past the last class that is possible.
    place_NK = (place_NK.to(p_NV.device) * total_N1).minimum(total_N1.nextafter(-total_N1))
    index_NK = (
        torch.searchsorted(running_NV, place_NK, right=True).clamp(max=p_NV.shape[1] - 1).sort(-1).values
    )
    share_NK = p_NV.gather(-1, index_NK).double() / proposal_NV.gather(-1, index_NK) * total_N1 / samples
    # In sorted order equal classes stand together: the first of them takes the draws of all.
    start_NK = torch.searchsorted(index_NK, index_NK)
    times_NK = torch.searchsorted(index_NK, index_NK, right=True) - start_NK
    first_NK = start_NK == torch.arange(samples, device=p_NV.device)
    return index_NK, (share_NK * times_NK * first_NK).to(p_NV.dtype)
