"""Batch-wise Sinkhorn: the batch as a cloud of predictions, and the cost of moving it onto the teacher's.

N rows, G rows of one group, V vocabulary or classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from ..loss import Loss
from ..ranges import count, non_negative, one_of, positive
from ..temperature import probability

if TYPE_CHECKING:
    from torch import Tensor

    from ..rows import Rows
    from .solve import TransportResult

_LARGEST_COST = {"l1": 2.0, "total_variation": 1.0, "squared_euclidean": 2.0, "cosine": 1.0}


@dataclass(frozen=True, kw_only=True)
class Sinkhorn(Loss):
    """The entropic transport cost between the student's and the teacher's rows of a group.

    Each row's softmax is a point; moving student row i onto teacher row j costs the distance of their
    distributions; P is the plan after `iterations` Sinkhorn rounds at `epsilon`. Marginals are the rows' weights,
    normalised (1/G each for a plain group), and rows of weight 0 are gone before any cost is computed. Row i's value
    is Σ_j P_ij C_ij / a_i, so the weighted mean over a group's rows is <P, C>.

    With `debias` (the default) each row's share of S(s, s)/2 + S(t, t)/2 is subtracted: then equal predictions
    give exactly 0, where the plain cost is positive and pulls the student off; the pull that remains is about 1% of
    the plain one's after twenty rounds and vanishes as the plan converges. `debias=False` with the
    other defaults is the published loss: its code's number is G times ours (marginals of 1 instead of 1/G), times
    0.001.

    The loss does not know which row is which: permuting the student's rows in a group changes nothing, and minimised
    alone it matches the clouds, not the examples. It is a term to add to `ForwardKL` or `Labels`. Twenty rounds at
    epsilon 0.1 leave about 1% of the mass misplaced for a handful of classes and more for peaked or large ones;
    `evaluate` says how much.

    Paper: Cui et al. 2024 (SinKD), arXiv:2402.17110, the batch-wise form; debiasing from Feydy et al. 2018,
        arXiv:1810.08278, equation 3 (of <P, C>, not of the entropic objective).
    Shapes: rows.student (N, V), rows.teacher (N, V) -> (N,) float32 (float64 for float64 logits).
    Units: the cost's: "l1" in [0, 2], "total_variation" in [0, 1], "squared_euclidean" in [0, 2], "cosine" in [0, 1].
        Not nats: weigh it against the others accordingly.

    Raises:
        ValueError: a field out of range, epsilon=0 with a solver other than "pot", or rows.teacher is None.
    Relations: `ForwardKL` compares row with row; this compares batch with batch. Not additive: a group must not be
        split, see `group_size`.

    Example:
        >>> import torch
        >>> from distill.losses import Rows, Sinkhorn
        >>> rows = Rows(student=torch.eye(3), teacher=4 * torch.eye(3))
        >>> loss = Sinkhorn()
        >>> rows.mean(loss(rows))
        tensor(0.6799)
        >>> sorted(loss.evaluate(rows)[1])
        ['converged', 'marginal_error']

    Attributes:
        temperature: divides both sides' logits.
        epsilon: strength of the entropy, in the cost's unit; 0 (with solver "pot") is the exact assignment.
        iterations: rounds of updates; always all of them.
        cost: the distance between two distributions.
        debias: subtract the self-costs.
        group_size: how many rows make a group (None: the whole batch). Whoever builds rows turns it into
            rows.group; where that is None, consecutive rows of this number are a group.
        solver: "distill" differentiates through its rounds; "pot" and "geomloss" supply a constant plan, see
            `transport.solve.solve`.
        tolerance: misplaced mass up to which a solve counts as converged in the diagnostics. Nothing else uses it.
    """

    additive: ClassVar[bool] = False

    kind: Literal["sinkhorn"] = "sinkhorn"
    temperature: float = 2.0
    epsilon: float = 0.1
    iterations: int = 20
    cost: Literal["l1", "total_variation", "squared_euclidean", "cosine"] = "l1"
    debias: bool = True
    group_size: int | None = None
    solver: Literal["distill", "pot", "geomloss"] = "distill"
    tolerance: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("temperature", self.temperature)
        non_negative("epsilon", self.epsilon)
        count("iterations", self.iterations)
        one_of("cost", self.cost, tuple(_LARGEST_COST))
        if self.group_size is not None:
            count("group_size", self.group_size)
        one_of("solver", self.solver, ("distill", "pot", "geomloss"))
        positive("tolerance", self.tolerance)
        if self.epsilon == 0 and self.solver != "pot":
            raise ValueError(f"epsilon 0 (the exact assignment) needs solver 'pot', got {self.solver!r}")

    @property
    def zero_at_equality(self) -> bool:
        """True when debiased, and for the exact assignment."""
        return self.debias or self.epsilon == 0

    @property
    def exact_gradient(self) -> bool:
        """True for the library's own solver."""
        return self.solver == "distill"

    @property
    def bound(self) -> float:
        """The largest cost between two distributions; of the mean over a group, not of each row."""
        return _LARGEST_COST[self.cost]

    def values(self, rows: Rows) -> Tensor:
        """Return each row's share of its group's transport cost, (N,); the shares' weighted mean is the cost."""
        return self.evaluate(rows)[0]

    def evaluate(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `values` and how the solves went.

        "marginal_error" is the largest misplaced mass among all groups; "converged" is the share of groups whose
        every solve stayed within `tolerance`.
        """
        # torch is imported where it is used: reading a recipe needs this class, not torch.
        import torch

        student_NV, teacher_NV = rows.student_logits(), rows.teacher_logits()
        # A 0 for every row that still hangs on the student's logits, whatever they are.
        nothing_N = torch.zeros_like(rows.weights, dtype=torch.bool)
        values_N = student_NV[:, 0].where(nothing_N, 0.0)
        places, parts, errors, converged = [], [], [], []
        for place_G in self._groups(rows):
            weight_G = rows.weights[place_G]
            values_G, results = self._transport(
                probability(student_NV[place_G], self.temperature),
                probability(teacher_NV[place_G], self.temperature),
                weight_G / weight_G.sum(),
            )
            places.append(place_G)
            parts.append(values_G)
            errors.append(torch.stack([result.error for result in results]).amax())
            converged.append(torch.stack([result.converged for result in results]).all())
        if places:
            values_N = values_N.index_copy(0, torch.cat(places), torch.cat(parts))
        zero = values_N.new_zeros(())
        return values_N, {
            "marginal_error": torch.stack([zero, *errors]).amax(),
            "converged": torch.stack(converged).to(values_N.dtype).mean() if converged else zero + 1,
        }

    def _groups(self, rows: Rows) -> list[Tensor]:
        """Return the places of each group's rows that count."""
        kept_K = (rows.weights > 0).nonzero().squeeze(-1)
        if rows.group is not None:
            group_K = rows.group[kept_K]
        elif self.group_size is not None:
            group_K = kept_K.div(self.group_size, rounding_mode="floor")
        else:
            return [kept_K] if len(kept_K) else []
        return [kept_K[group_K == group] for group in sorted(set(group_K.tolist()))]

    def _transport(
        self, student_GV: Tensor, teacher_GV: Tensor, mass_G: Tensor
    ) -> tuple[Tensor, list[TransportResult]]:
        from .problem import TransportProblem, cost_matrix
        from .solve import solve

        def move(source_GV: Tensor, target_GV: Tensor) -> tuple[Tensor, TransportResult]:
            cost_GG = cost_matrix(self.cost, source_GV, target_GV)
            result = solve(
                TransportProblem(cost_GG, mass_G, mass_G, self.epsilon),
                iterations=self.iterations,
                tolerance=self.tolerance,
                solver=self.solver,
            )
            return (result.plan * cost_GG).sum(1) / mass_G, result

        values_G, result = move(student_GV, teacher_GV)
        if not self.debias:
            return values_G, [result]
        student_self_G, student_result = move(student_GV, student_GV)
        teacher_self_G, teacher_result = move(teacher_GV, teacher_GV)
        return values_G - student_self_G / 2 - teacher_self_G / 2, [result, student_result, teacher_result]
