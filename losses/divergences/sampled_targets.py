"""Sampled targets: a few classes drawn from the teacher stand for all of it, without bias.

N rows, V vocabulary, K draws.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from ..ranges import count, positive
from ..softmax import softmax
from ..sparse import sampled
from .divergence import Tempered
from .relative_entropy import excess
from .steps import at_least_tiny

if TYPE_CHECKING:
    from torch import Tensor

    from ..rows import Rows


@dataclass(frozen=True, kw_only=True)
class SampledTargets(Tempered):
    """Σ_drawn [p̂ log(p̂/q) − p̂] + 1: KL to a sample p̂ of the teacher whose expectation is the teacher.

    The loss of a teacher that was stored as draws (about a dozen distinct classes of fifty). Its gradient, q·Σp̂ − p̂
    over T, has the expectation of `ForwardKL`'s, tail included, which no top k has. The value does not: p̂ is more
    peaked than p, so it is above the KL, and above 0 where student and teacher agree.

    With rows.sparse (see `sparse.sampled`) its draws are used, and its probabilities must have been taken at this
    temperature. Without, rows.teacher is drawn from at every call, with torch's global random state: a seed and
    a restored state give the same draws again. `kernels` loops called directly draw as they go, and again for a second
    derivative: give them rows.sparse.

    Paper: Anshumann et al. 2025, arXiv:2503.16870 (50 draws, in proportion to p).
    Shapes: rows.student (N, V), and rows.sparse of (N, K) or rows.teacher (N, V) -> (N,) float32 (float64 for float64
        logits), each >= 0.
    Units: nats.

    Raises:
        ValueError: samples below 1, power or temperature not positive, scale negative, or neither rows.sparse nor
            rows.teacher.
    Relations: `ForwardKL` is its expectation; `GhostTokenKL` takes the most likely classes, exactly, and no others.

    Example:
        >>> import torch
        >>> from distill.losses import Rows, SampledTargets
        >>> from distill.losses.sparse import SparseTeacher
        >>> drawn = SparseTeacher(torch.tensor([[0, 1]]), torch.tensor([[0.54, 0.46]]))
        >>> SampledTargets()(Rows(student=torch.tensor([[2.0, 0.0, -1.0]]), sparse=drawn))
        tensor([0.3999])

    Attributes:
        samples: draws a row, with replacement.
        power: draws are in proportion to p^power; below 1 they reach further into the tail, at larger variance.
    """

    random: ClassVar[bool] = True
    sparse: ClassVar[Literal["top_k", "sampled"] | None] = "sampled"

    kind: Literal["sampled_targets"] = "sampled_targets"
    samples: int = 50
    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        count("samples", self.samples)
        positive("power", self.power)

    @property
    def zero_at_equality(self) -> bool:
        """False: a sample is not its distribution."""
        return False

    def values(self, rows: Rows) -> Tensor:
        """Draw, once for the value and every derivative, and return the KL to the draws, (N,)."""
        return super().values(self._drawn(rows))

    def differentiate(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the KL to the draws, (N,), and q·Σp̂ − p̂."""
        sparse = self._drawn(rows).sparse_teacher()
        index_NK, p_NK = sparse.index, sparse.probability
        student = softmax(rows.student_logits(), self.temperature)
        drawn_NK = (p_NK > 0).to(p_NK.dtype)
        drawn = student.at(index_NK)
        log_ratio_NK = at_least_tiny(p_NK).log() - drawn.log_probability_NV
        q_NK = drawn.probability_NV * drawn_NK
        missed_N = (1 - q_NK.sum(-1)).clamp(min=0)
        values_N = excess(p_NK, q_NK, log_ratio_NK * drawn_NK).sum(-1) + missed_N
        slope_NV = student.probability_NV * p_NK.sum(-1, keepdim=True)
        # In place: no derivative needs the product that was there.
        return self.scaled(values_N, slope_NV.scatter_add_(-1, index_NK, -p_NK))

    def _drawn(self, rows: Rows) -> Rows:
        if rows.sparse is not None:
            return rows
        sparse = sampled(
            rows.teacher_logits(), samples=self.samples, temperature=self.temperature, power=self.power
        )
        return replace(rows, teacher=None, sparse=sparse)
