"""Batch-wise Sinkhorn: the batch as a cloud of predictions, and the cost of moving it onto the teacher's.

N rows, G rows of one group, V vocabulary or classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from ..loss import Loss
from ..precision import wide
from ..ranges import count, non_negative, one_of, positive
from ..temperature import probability

if TYPE_CHECKING:
    from torch import Tensor

    from ..rows import Rows

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

    Over a large vocabulary nearly all of the time goes into the costs, over a handful of classes into calling NumPy:
    `transport.compiled.use_compiled_transport` takes a third of the former and two thirds of the latter on the CPU.

    Paper: Cui et al. 2024 (SinKD), arXiv:2402.17110, the batch-wise form; debiasing from Feydy et al. 2018,
        arXiv:1810.08278, equation 3 (of <P, C>, not of the entropic objective).
    Shapes: rows.student (N, V), rows.teacher (N, V) -> (N,) float32 (float64 for float64 logits).
    Units: the cost's: "l1" in [0, 2], "total_variation" in [0, 1], "squared_euclidean" in [0, 2], "cosine" in [0, 1].
        Not nats: weigh it against the others accordingly.

    Raises:
        ValueError: a field out of range; epsilon=0 with a solver other than "pot" or the implicit gradient;
            memory="low" with a cost that is not streamed; or rows.teacher is None.
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
        gradient: "exact" is the derivative of the value returned (of another solver's plan, "envelope");
            "envelope" holds the plan constant and so descends the entropic objective, another loss; "implicit" is
            the derivative of the converged plan and wrong before it has converged, see "marginal_error".
        memory: "low" stores no softmax and makes none whole, for half as much time again; costs "l1" and
            "total_variation" only.
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
    gradient: Literal["exact", "envelope", "implicit"] = "exact"
    memory: Literal["fast", "low"] = "fast"
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
        one_of("gradient", self.gradient, ("exact", "envelope", "implicit"))
        one_of("memory", self.memory, ("fast", "low"))
        positive("tolerance", self.tolerance)
        if self.epsilon == 0 and self.solver != "pot":
            raise ValueError(f"epsilon 0 (the exact assignment) needs solver 'pot', got {self.solver!r}")
        if self.epsilon == 0 and self.gradient == "implicit":
            raise ValueError("gradient 'implicit' needs an epsilon above 0, got 0")
        if self.memory == "low" and self.cost not in ("l1", "total_variation"):
            raise ValueError(f"memory 'low' streams the costs 'l1' and 'total_variation', got {self.cost!r}")

    @property
    def zero_at_equality(self) -> bool:
        """True when debiased, and for the exact assignment."""
        return self.debias or self.epsilon == 0

    @property
    def exact_gradient(self) -> bool:
        """True for the library's own solver with the exact gradient, and for the exact assignment."""
        return self.epsilon == 0 or (self.solver == "distill" and self.gradient == "exact")

    @property
    def bound(self) -> float:
        """The largest cost between two distributions; of the mean over a group, not of each row."""
        return _LARGEST_COST[self.cost]

    def values(self, rows: Rows) -> Tensor:
        """Return each row's share of its group's transport cost, (N,); the shares' weighted mean is the cost."""
        return self._solve(rows, diagnose=False)[0]

    def evaluate(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `values` and how the solves went.

        "marginal_error" is the largest misplaced mass among all groups; "converged" is the share of groups whose
        every solve stayed within `tolerance`.
        """
        # Imported where it is used: reading a recipe needs this class, not torch.
        from .batchwise import convergence

        values_N, errors = self._solve(rows, diagnose=True)
        return values_N, convergence(errors, self.tolerance, values_N)

    def _solve(self, rows: Rows, diagnose: bool) -> tuple[Tensor, list[Tensor]]:
        """Return `values`, (N,), and, to diagnose, the largest misplaced mass of each group's solves."""
        from .few_classes import FewClasses
        from .few_rows import FewRows
        from .groups import Groups

        groups = Groups.of(rows, self.group_size)
        if FewRows.fit(self, rows.student, groups.sizes):
            mass_QG = None
            if rows.weight is not None:
                mass_QG = groups.together(rows.weights).view(len(groups.sizes), -1)
                mass_QG = mass_QG / mass_QG.sum(1, keepdim=True)
            values_K, error_QT = FewRows.apply(  # type: ignore[no-untyped-call]
                groups.together(rows.student),
                groups.together(rows.detached_teacher()),
                mass_QG,
                groups.sizes[0],
                self,
            )
            return groups.join([values_K], rows), list(error_QT.amax(1)) if diagnose else []
        weights: Sequence[Tensor | None] = [None] * len(groups.sizes)
        if rows.weight is not None:
            weights = groups.split(rows.weights)
        values, errors = [], []
        for student_GV, teacher_GV, weight_G in zip(
            groups.split(rows.student), groups.split(rows.detached_teacher()), weights, strict=True
        ):
            mass_G = None if weight_G is None else weight_G / weight_G.sum()
            if FewClasses.fit(self, student_GV):
                values_G, error = FewClasses.apply(student_GV, teacher_GV, mass_G, self, diagnose)  # type: ignore[no-untyped-call]
            else:
                values_G, error = self.transport(student_GV, teacher_GV, mass_G)
            values.append(values_G)
            if diagnose:
                errors.append(error)
        return groups.join(values, rows), errors

    def transport(
        self, student_GV: Tensor, teacher_GV: Tensor, mass_G: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return each row's share of one group's cost, (G,), and the largest misplaced mass of its solves.

        Logits of any floating dtype in, of the student and the teacher; mass_G adds up to 1, None is uniform.
        """
        import torch

        from .batchwise import debiased_shares

        # Autocast would multiply probabilities and scalings in half precision.
        with torch.autocast(student_GV.device.type, enabled=False):
            costs = self._costs(student_GV, teacher_GV)
            if mass_G is None:
                mass_G = costs[0].detach().new_full((len(student_GV),), 1 / len(student_GV))
            return debiased_shares(
                costs,
                mass_G,
                self.epsilon,
                largest_cost=self.bound,
                iterations=self.iterations,
                solver=self.solver,
                gradient=self.gradient,
            )

    def _costs(self, student_GV: Tensor, teacher_GV: Tensor) -> list[Tensor]:
        """Return the cost matrices: student to teacher and, if debiased, student to student, teacher to teacher."""
        from .problem import cost_matrix
        from .softened import softened_distances

        if self.cost in ("l1", "total_variation"):
            distances = softened_distances(
                student_GV,
                teacher_GV,
                self.temperature,
                with_self=self.debias,
                streamed=self.memory == "low",
            )
            factor = 0.5 if self.cost == "total_variation" else 1.0
            return [factor * cost_GG for cost_GG in distances if cost_GG is not None]
        p_GV, q_GV = (probability(wide(logits), self.temperature) for logits in (student_GV, teacher_GV))
        pairs = [(p_GV, q_GV), (p_GV, p_GV), (q_GV, q_GV)] if self.debias else [(p_GV, q_GV)]
        return [cost_matrix(self.cost, source_GV, target_GV) for source_GV, target_GV in pairs]
