"""The whole batch-wise cost of a handful of classes in NumPy, forward and backward.

Sixteen rows of three classes are a microsecond of arithmetic: what costs is calling torch a few hundred times. The
rounds and their adjoint are those of `rounds.py`; distances, shares and softmax are written out here, and in
`few_classes.cpp` for who asks for it (`compiled.py`).

G rows of one group, V classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
import torch
from torch import Tensor

from ..precision import wide
from .batchwise import is_plain
from .compiled import compiled_for_arrays, compiled_for_tensors
from .rounds import NUMPY_ROWS, scale, scale_adjoint

if TYPE_CHECKING:
    from .sinkhorn import Sinkhorn

_ROWS = 160  # beyond, torch's sums and signs are quicker than NumPy's, but not than the compiled ones
_CLASSES = 8  # up to which a loop over classes is shorter than torch's way


Floats = numpy.ndarray[Any, Any]


def _unit(loss: Sinkhorn) -> float:
    return 0.5 if loss.cost == "total_variation" else 1.0


def _differences(source_VG: Floats, target_VG: Floats) -> list[Floats]:
    return list(map(numpy.subtract.outer, source_VG, target_VG))


class _Move(NamedTuple):
    """One solve between two clouds, with what its backward pass needs."""

    source_VG: Floats
    target_VG: Floats
    differences: list[Floats]  # of each class, but for the compiled loops
    cost_GG: Floats
    plan_GG: Floats
    kernel_GG: Floats
    mass_G: Floats
    rows_KG: Floats
    columns_KG: Floats

    @classmethod
    def of(cls, loss: Sinkhorn, source_VG: Floats, target_VG: Floats, mass_G: Floats) -> _Move:
        compiled = compiled_for_arrays(source_VG, target_VG, mass_G)
        differences: list[Floats] = []
        if compiled is not None:
            cost_GG = compiled.few_classes_cost(source_VG, target_VG, _unit(loss))
            kernel_GG = numpy.empty_like(cost_GG)
        else:
            differences = _differences(source_VG, target_VG)
            cost_GG = numpy.abs(differences[0])
            kernel_GG = numpy.empty_like(cost_GG)
            for difference_GG in differences[1:]:
                cost_GG += numpy.abs(difference_GG, kernel_GG)
            if loss.cost == "total_variation":
                cost_GG *= _unit(loss)
        numpy.multiply(cost_GG, -1 / loss.epsilon, kernel_GG)
        numpy.exp(kernel_GG, kernel_GG)
        plan_GG, rows_KG, columns_KG = scale(kernel_GG, mass_G, mass_G, loss.iterations)
        return cls(
            source_VG, target_VG, differences, cost_GG, plan_GG, kernel_GG, mass_G, rows_KG, columns_KG
        )

    def shares(self) -> Floats:
        shares_G: Floats = numpy.einsum("ij,ij->i", self.plan_GG, self.cost_GG)
        shares_G /= self.mass_G
        return shares_G

    def error(self) -> float:
        one_G = numpy.ones_like(self.mass_G)  # a product with ones is the quickest sum
        rows_G, columns_G = numpy.dot(self.plan_GG, one_G), numpy.dot(one_G, self.plan_GG)
        return float(numpy.abs(rows_G - self.mass_G).sum() + numpy.abs(columns_G - self.mass_G).sum())

    def pull(self, loss: Sinkhorn, share_pull_G: Floats, *, own: bool) -> Floats:
        """Return the gradient for the source's probabilities, (V, G); own: the target is the source."""
        compiled = compiled_for_arrays(share_pull_G, self.cost_GG)
        if compiled is not None:
            solved = (self.cost_GG, self.plan_GG, self.kernel_GG, self.mass_G, self.rows_KG, self.columns_KG)
            sides = (self.source_VG, self.target_VG)
            return compiled.few_classes_pull(
                share_pull_G, *sides, *solved, own=own, unit=_unit(loss), epsilon=loss.epsilon
            )
        weight_G1 = (share_pull_G / self.mass_G)[:, None]
        cost_pull_GG = scale_adjoint(
            weight_G1 * self.cost_GG,
            self.plan_GG,
            self.kernel_GG,
            self.mass_G,
            self.mass_G,
            self.rows_KG,
            self.columns_KG,
        )
        cost_pull_GG *= 1 / loss.epsilon
        cost_pull_GG += weight_G1 * self.plan_GG
        if own:
            cost_pull_GG = cost_pull_GG + cost_pull_GG.T
        if loss.cost == "total_variation":
            cost_pull_GG *= _unit(loss)
        pulled_VG: Floats = numpy.empty(self.source_VG.shape, self.mass_G.dtype)
        one_G = numpy.ones_like(self.mass_G)
        differences = self.differences or _differences(self.source_VG, self.target_VG)
        for difference_GG, pulled_G in zip(differences, pulled_VG, strict=True):
            sign_GG = numpy.sign(difference_GG)
            sign_GG *= cost_pull_GG
            sign_GG.dot(one_G, pulled_G)
        return pulled_VG


class _Moves(NamedTuple):
    """All solves of one group: student to teacher and, to debias, each side to itself."""

    loss: Sinkhorn
    student_VG: Floats
    moves: list[_Move]

    @classmethod
    def of(cls, loss: Sinkhorn, student_GV: Tensor, teacher_GV: Tensor, mass_G: Tensor | None) -> _Moves:
        # One class after the other in memory: they are what is looped over.
        logits_GV = wide(student_GV.detach())
        sides = (logits_GV, teacher_GV.to(logits_GV.dtype))
        both_VR = numpy.concatenate([side.numpy().T for side in sides], 1)
        # Shifted before the temperature divides, which may take ±3e38 beyond what a float holds.
        both_VR -= numpy.maximum.reduce(both_VR)
        both_VR /= loss.temperature
        numpy.exp(both_VR, both_VR)
        both_VR /= numpy.add.reduce(both_VR)
        rows = len(student_GV)
        p_VG, q_VG = both_VR[:, :rows], both_VR[:, rows:]
        mass = numpy.full(rows, 1 / rows, both_VR.dtype) if mass_G is None else mass_G.numpy()
        moves = [_Move.of(loss, p_VG, q_VG, mass)]
        if loss.debias:
            moves += [_Move.of(loss, p_VG, p_VG, mass), _Move.of(loss, q_VG, q_VG, mass)]
        return cls(loss, p_VG, moves)

    def shares(self) -> Floats:
        shares_G = self.moves[0].shares()
        for own in self.moves[1:]:
            shares_G -= own.shares() / 2
        return shares_G

    def error(self) -> float:
        return max(move.error() for move in self.moves)

    def pull(self, share_pull_G: Floats) -> Floats:
        """Return the gradient for the student's logits, (V, G)."""
        pulled_VG = self.moves[0].pull(self.loss, share_pull_G, own=False)
        if self.loss.debias:
            pulled_VG += self.moves[1].pull(self.loss, -0.5 * share_pull_G, own=True)
        pulled_VG *= self.student_VG
        pulled_VG -= self.student_VG * numpy.add.reduce(pulled_VG)
        pulled_VG /= self.loss.temperature
        return pulled_VG


class FewClasses(torch.autograd.Function):
    """Each row's share of one group's cost, (G,), and the largest misplaced mass of its solves; see `Sinkhorn`."""

    @staticmethod
    def fit(loss: Sinkhorn, student_GV: Tensor) -> bool:
        """Whether this can do the group, and is the faster way."""
        rows, classes = student_GV.shape
        return (
            rows <= (_ROWS if compiled_for_tensors(student_GV) is None else NUMPY_ROWS)
            and classes <= _CLASSES
            and student_GV.device.type == "cpu"
            and is_plain(loss)
        )

    @staticmethod
    def forward(
        ctx: Any,
        student_GV: Tensor,
        teacher_GV: Tensor,
        mass_G: Tensor | None,
        loss: Sinkhorn,
        diagnose: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute in NumPy; only diagnose looks at the misplaced mass."""
        ctx.loss = loss
        ctx.teacher_GV = teacher_GV  # made in inference mode, perhaps, which save_for_backward refuses
        ctx.save_for_backward(student_GV, mass_G)
        with numpy.errstate(all="ignore"):  # NaN and inf say enough by being in the values
            moves = _Moves.of(loss, student_GV, teacher_GV, mass_G)
            ctx.moves = moves
            misplaced = None
            if diagnose:
                misplaced = torch.tensor(moves.error(), dtype=wide(student_GV[:0]).dtype)
                ctx.mark_non_differentiable(misplaced)
            return torch.from_numpy(moves.shares()), misplaced

    @staticmethod
    def backward(ctx: Any, *pulls: Tensor) -> tuple[Tensor | None, ...]:
        """Pull the shares' gradient back to the student's logits."""
        student_GV, mass_G = ctx.saved_tensors
        nothing = (None,) * 4
        if torch.is_grad_enabled():
            # create_graph: the same shares by the general way, which autograd can differentiate twice.
            shares_G, _ = ctx.loss.transport(student_GV, ctx.teacher_GV, mass_G)
            (gradient_GV,) = torch.autograd.grad(shares_G, student_GV, pulls[0], create_graph=True)
            return gradient_GV, *nothing
        with numpy.errstate(all="ignore"):
            pulled_VG = ctx.moves.pull(pulls[0].numpy())
        return torch.from_numpy(pulled_VG.T).to(student_GV.dtype), *nothing
