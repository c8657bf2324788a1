"""Sorted one-dimensional transport: the shape of the teacher's distribution, whatever its classes are called.

N rows, V vocabulary or classes, K likeliest classes kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..loss import Loss
from ..ranges import count, positive

if TYPE_CHECKING:
    from torch import Tensor

    from ..rows import Rows


@dataclass(frozen=True, kw_only=True)
class SortedTransport(Loss):
    """Σ_k |k-th largest p − k-th largest q| of each row: the L1 distance of the sorted probabilities.

    Optimal transport in one dimension is sorting, and where every class costs the same to reach, what is left of
    the problem is this. It is the same under any renaming of the classes of either side, so it moves how sure the
    student is and among how many, and never of what: that must come from another term. Rows of logits share their
    columns; `transport.sorted_distance.sorted_distance` is the same for vocabularies of two sizes.

    With `kept`, only the K likeliest classes are compared one by one and the rest of each row as one number. That
    value is a lower bound; "tail_bound", in what `evaluate` returns, is how much at most the mean lies below the
    exact one, and the time from a quarter to all of it, by how fast the processor sorts.

    Paper: Boizard et al. 2024 (Universal Logit Distillation), arXiv:2402.12030, section 3, the logit term; its code
        gives the same number a row.
    Shapes: rows.student (N, V), rows.teacher (N, V) -> (N,) float32 (float64 for float64 logits), each in [0, 2].
    Units: probability mass, not nats: the mass that differs, counted on both sides.

    Raises:
        ValueError: temperature is not positive, kept is below 1, or rows.teacher is None.
    Relations: `MultiLevelTransport` sorts the classes once for a whole sequence, so that a class keeps its partner;
        `ForwardKL` where the vocabulary is shared, which knows what the classes are.

    Example:
        >>> import torch
        >>> from distill.losses import Rows, SortedTransport
        >>> rows = Rows(student=torch.tensor([[2.0, 0.0, -1.0]]), teacher=torch.tensor([[1.0, 1.0, -2.0]]))
        >>> SortedTransport()(rows)
        tensor([0.7473])

    Attributes:
        temperature: divides both sides' logits.
        kept: how many of the likeliest classes are compared one by one; None is all, exactly.
    """

    kind: Literal["sorted_transport"] = "sorted_transport"
    temperature: float = 1.0
    kept: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("temperature", self.temperature)
        if self.kept is not None:
            count("kept", self.kept)

    @property
    def bound(self) -> float:
        """2, which one sharp row and one spread over ever more classes come up to."""
        return 2.0

    def values(self, rows: Rows) -> Tensor:
        """Return the sorted distance of each row, (N,)."""
        return self._distances(rows)[0]

    def evaluate(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `values` and, with `kept`, "tail_bound": how much at most their mean is too small."""
        values_N, bound_N = self._distances(rows)
        return values_N, {} if self.kept is None else {"tail_bound": rows.mean(bound_N)}

    def _distances(self, rows: Rows) -> tuple[Tensor, Tensor]:
        from .sorted_distance import sorted_distance

        student_NV, teacher_NV = rows.student, rows.detached_teacher()
        if rows.weight is None:
            return sorted_distance(student_NV, teacher_NV, self.temperature, self.kept)
        # Rows that do not count are not sorted, and keep whatever they hold to themselves.
        place = (rows.weights > 0).nonzero().squeeze(-1)
        values, bounds = sorted_distance(student_NV[place], teacher_NV[place], self.temperature, self.kept)
        nothing_N = rows.weights.new_zeros(len(rows))
        return nothing_N.index_copy(0, place, values), nothing_N.index_copy(0, place, bounds)
