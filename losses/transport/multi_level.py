"""Multi-level optimal transport: tokens by sorted classes, sequences by moving their tokens.

N rows, G rows of one group, V vocabulary or classes, K likeliest classes kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from ..loss import Loss
from ..precision import wide
from ..ranges import count, non_negative, positive
from ..temperature import log_probability

if TYPE_CHECKING:
    from torch import Tensor

    from ..rows import Rows


@dataclass(frozen=True, kw_only=True)
class MultiLevelTransport(Loss):
    """Σ_k |p_k − q_k| + α KL_k(p || q) of each row, plus β times the group's Sinkhorn cost over the same K classes.

    Each side sorts its classes once for the whole group (a sequence, or a batch of examples), by their mass summed
    over it, and keeps the first K: the k-th class of the one meets the k-th of the other in every row, so no shared
    vocabulary is assumed. Over these classes a row pays the difference of the probabilities, α times their relative
    entropy Σ p log(p/q) − p + q, and its share of moving the group's rows onto the teacher's (L1 cost, entropic,
    debiased, as in `Sinkhorn`).

    The authors' published code changed between versions and is none of them exactly what the paper says. Where they
    differ, this is the paper's loss in the form that makes sense of it: logits go through one softmax (the code
    takes a second one of the probabilities for the last two terms); the teacher stands left in the logarithmic term
    (there the arguments are swapped) and the term is a divergence, 0 at equality, not a cross-entropy; classes of
    the student are sorted like the teacher's, by the sum over the group, and not position by position before; rows
    that do not count are not part of the group (there they enter as zeros); the transport's marginals add up to 1,
    so that it does not grow with the group (there 1 a row, times 0.001).

    Paper: Cui et al. 2024 (Multi-Level OT), arXiv:2412.14528, sections 3.2 and 3.3.
    Shapes: rows.student (N, V), rows.teacher (N, V) -> (N,) float32 (float64 for float64 logits).
    Units: probability mass and nats, mixed by α and β.

    Raises:
        ValueError: a field out of range, or rows.teacher is None.
    Relations: `SortedTransport` sorts every row by itself and needs no group; `Sinkhorn` is the last term alone over
        all classes. Not additive: a group must not be split. Which class meets which is a choice that jumps as
        training goes on, and so does the loss.

    Example:
        >>> import torch
        >>> from distill.losses import MultiLevelTransport, Rows
        >>> student, teacher = [[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]], [[1.0, 1.0, -2.0], [-1.0, 2.0, 0.5]]
        >>> rows = Rows(student=torch.tensor(student), teacher=torch.tensor(teacher))
        >>> loss = MultiLevelTransport()
        >>> rows.mean(loss(rows))
        tensor(1.0544)
        >>> sorted(loss.evaluate(rows)[1])
        ['converged', 'kept_mass', 'marginal_error']

    Attributes:
        temperature: divides both sides' logits.
        kept: K, how many classes of each side are compared.
        logarithmic: α, the relative entropy's factor.
        sequence: β, the Sinkhorn cost's factor.
        epsilon: strength of the entropy in the Sinkhorn cost.
        iterations: Sinkhorn rounds; always all of them.
        debias: subtract the self-costs of the groups.
        group_size: as in `Sinkhorn`; for language models rows.group says which sequence a token belongs to.
        tolerance: misplaced mass up to which a solve counts as converged in the diagnostics.
    """

    additive: ClassVar[bool] = False

    kind: Literal["multi_level_transport"] = "multi_level_transport"
    temperature: float = 1.0
    kept: int = 50
    logarithmic: float = 0.1
    sequence: float = 0.1
    epsilon: float = 0.1
    iterations: int = 10
    debias: bool = True
    group_size: int | None = None
    tolerance: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("temperature", self.temperature)
        count("kept", self.kept)
        non_negative("logarithmic", self.logarithmic)
        non_negative("sequence", self.sequence)
        positive("epsilon", self.epsilon)
        count("iterations", self.iterations)
        if self.group_size is not None:
            count("group_size", self.group_size)
        positive("tolerance", self.tolerance)

    @property
    def zero_at_equality(self) -> bool:
        """True when the sequence term is debiased, or off."""
        return self.debias or self.sequence == 0

    def values(self, rows: Rows) -> Tensor:
        """Return each row's value, (N,)."""
        return self.evaluate(rows)[0]

    def evaluate(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `values` and what became of the groups.

        "marginal_error" is the largest misplaced mass among them and "converged" the share that stayed within
        `tolerance`, as in `Sinkhorn`; "kept_mass" is the smallest share of a group's teacher that its K classes hold.
        """
        import torch

        from .batchwise import convergence
        from .groups import Groups

        groups = Groups.of(rows, self.group_size)
        values, errors, masses = [], [], []
        # Autocast would multiply scalings in half precision.
        with torch.autocast(rows.student.device.type, enabled=False):
            for student_GV, teacher_GV, weight_G in zip(
                groups.split(rows.student),
                groups.split(rows.detached_teacher()),
                groups.split(rows.weights),
                strict=True,
            ):
                values_G, error, mass = self._compare(student_GV, teacher_GV, weight_G / weight_G.sum())
                values.append(values_G)
                errors.append(error)
                masses.append(mass)
        values_N = groups.join(values, rows)
        kept_mass = torch.stack(masses).amin() if masses else values_N.new_ones(())
        return values_N, {**convergence(errors, self.tolerance, values_N), "kept_mass": kept_mass}

    def _compare(
        self, student_GV: Tensor, teacher_GV: Tensor, mass_G: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows' values, (G,), the misplaced mass of the solves, and the mass that the classes kept hold."""
        from ..divergences.relative_entropy import relative_entropy

        student_GV = wide(student_GV)
        teacher_GV = teacher_GV.to(student_GV.dtype)
        log_q_GK, log_p_GK = (self._likeliest(logits, mass_G) for logits in (student_GV, teacher_GV))
        q_GK, p_GK = log_q_GK.exp(), log_p_GK.exp()
        values_G = (p_GK - q_GK).abs().sum(-1)
        if self.logarithmic:
            nothing_G1 = values_G.new_zeros(len(values_G), 1)
            parts_G = relative_entropy(p_GK, q_GK, log_p_GK - log_q_GK, nothing_G1)
            values_G = values_G + self.logarithmic * parts_G
        error = values_G.detach().new_zeros(())
        if self.sequence:
            shares_G, error = self._transport(q_GK, p_GK, mass_G)
            values_G = values_G + self.sequence * shares_G
        return values_G, error, (mass_G * p_GK.sum(-1)).sum()

    def _likeliest(self, logits_GV: Tensor, mass_G: Tensor) -> Tensor:
        """Return the log-probabilities of the K classes that weigh most in the group, heaviest first, (G, K)."""
        log_GV = log_probability(logits_GV, self.temperature)
        weight_V = mass_G @ log_GV.detach().exp()
        return log_GV[:, weight_V.argsort(descending=True, stable=True)[: self.kept]]

    def _transport(self, student_GK: Tensor, teacher_GK: Tensor, mass_G: Tensor) -> tuple[Tensor, Tensor]:
        from .batchwise import debiased_shares
        from .manhattan import manhattan

        pairs = [(student_GK, teacher_GK), (student_GK, student_GK), (teacher_GK, teacher_GK)]
        costs = [
            manhattan(source_GK, target_GK) for source_GK, target_GK in (pairs if self.debias else pairs[:1])
        ]
        return debiased_shares(costs, mass_G, self.epsilon, largest_cost=2.0, iterations=self.iterations)
