"""The whole batch-wise cost of a handful of classes in NumPy, forward and backward.

Sixteen rows of three classes are a microsecond of arithmetic: what costs is calling torch a few hundred times. The
rounds and their adjoint are those of `rounds.py`; distances, shares and softmax are written out here.

G rows of one group, V classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from ..precision import wide
from .rounds import LARGEST_EXPONENT, scale, scale_adjoint

if TYPE_CHECKING:
    from .sinkhorn import Sinkhorn

_ROWS = 160  # beyond, torch's sums and signs are quicker than NumPy's
_CLASSES = 8  # up to which a loop over classes is shorter than torch's way


Floats = numpy.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class _Move:
    """One solve between two clouds: what its backward pass needs."""

    source_VG: Floats
    target_VG: Floats
    cost_GG: Floats
    plan_GG: Floats
    kernel_GG: Floats
    mass_G: Floats
    rows: list[Floats]
    columns: list[Floats]

    @classmethod
    def of(cls, loss: Sinkhorn, source_VG: Floats, target_VG: Floats, mass_G: Floats) -> _Move:
        cost_GG = numpy.zeros((len(mass_G), len(mass_G)), mass_G.dtype)
        for source_G, target_G in zip(source_VG, target_VG, strict=True):
            difference_GG = numpy.subtract.outer(source_G, target_G)
            cost_GG += numpy.abs(difference_GG, out=difference_GG)
        if loss.cost == "total_variation":
            cost_GG *= 0.5
        kernel_GG = numpy.exp(cost_GG * (-1 / loss.epsilon))
        plan_GG, rows, columns = scale(kernel_GG, mass_G, mass_G, loss.iterations)
        return cls(source_VG, target_VG, cost_GG, plan_GG, kernel_GG, mass_G, rows, columns)

    def shares(self) -> Floats:
        shares_G: Floats = numpy.einsum("ij,ij->i", self.plan_GG, self.cost_GG) / self.mass_G
        return shares_G

    def error(self) -> float:
        one_G = numpy.ones_like(self.mass_G)  # a product with ones is the quickest sum
        rows_G, columns_G = numpy.dot(self.plan_GG, one_G), numpy.dot(one_G, self.plan_GG)
        return float(numpy.abs(rows_G - self.mass_G).sum() + numpy.abs(columns_G - self.mass_G).sum())

    def pull(self, loss: Sinkhorn, share_pull_G: Floats, *, own: bool) -> Floats:
        """Return the gradient for the source's probabilities, (V, G); own: the target is the source."""
        weight_G1 = (share_pull_G / self.mass_G)[:, None]
        through_plan_GG = scale_adjoint(
            weight_G1 * self.cost_GG,
            self.plan_GG,
            self.kernel_GG,
            self.mass_G,
            self.mass_G,
            self.rows,
            self.columns,
        )
        cost_pull_GG = weight_G1 * self.plan_GG + through_plan_GG / loss.epsilon
        if own:
            cost_pull_GG = cost_pull_GG + cost_pull_GG.T
        if loss.cost == "total_variation":
            cost_pull_GG *= 0.5
        pulled_VG = numpy.empty_like(self.source_VG)
        one_G = numpy.ones_like(self.mass_G)
        for class_, (source_G, target_G) in enumerate(zip(self.source_VG, self.target_VG, strict=True)):
            sign_GG = numpy.subtract.outer(source_G, target_G)
            numpy.sign(sign_GG, out=sign_GG)
            sign_GG *= cost_pull_GG
            pulled_VG[class_] = sign_GG.dot(one_G)
        return pulled_VG


def _softmax(logits: Tensor, temperature: float) -> Floats:
    logits_GV = wide(logits).detach()
    # One class after the other in memory: they are what is looped over.
    softmax_VG: Floats = numpy.ascontiguousarray(logits_GV.numpy().T)
    # Shifted before the temperature divides, which may take ±3e38 beyond what a float holds.
    softmax_VG = softmax_VG - softmax_VG.max(0)
    softmax_VG /= temperature
    numpy.exp(softmax_VG, out=softmax_VG)
    softmax_VG /= numpy.add.reduce(softmax_VG)
    return softmax_VG


class FewClasses(torch.autograd.Function):
    """Each row's share of one group's cost, (G,), and the largest misplaced mass of its solves; see `Sinkhorn`."""

    @staticmethod
    def fit(loss: Sinkhorn, student_GV: Tensor) -> bool:
        """Whether this can do the group, and is the faster way."""
        rows, classes = student_GV.shape
        return (
            rows <= _ROWS
            and classes <= _CLASSES
            and student_GV.device.type == "cpu"
            and loss.cost in ("l1", "total_variation")
            and loss.solver == "distill"
            and loss.gradient == "exact"
            and loss.memory == "fast"
            and loss.bound <= loss.epsilon * LARGEST_EXPONENT[torch.float32]
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
            p_VG, q_VG = _softmax(student_GV, loss.temperature), _softmax(teacher_GV, loss.temperature)
            count = p_VG.shape[1]
            mass = numpy.full(count, 1 / count, p_VG.dtype) if mass_G is None else mass_G.numpy()
            moves = [_Move.of(loss, p_VG, q_VG, mass)]
            shares_G = moves[0].shares()
            if loss.debias:
                moves += [_Move.of(loss, p_VG, p_VG, mass), _Move.of(loss, q_VG, q_VG, mass)]
                shares_G = shares_G - moves[1].shares() / 2 - moves[2].shares() / 2
            ctx.parts = p_VG, moves[:2]
            misplaced = None
            if diagnose:
                misplaced = torch.tensor(max(move.error() for move in moves), dtype=_dtype(p_VG))
                ctx.mark_non_differentiable(misplaced)
        return torch.from_numpy(shares_G), misplaced

    @staticmethod
    def backward(ctx: Any, *pulls: Tensor) -> tuple[Tensor | None, ...]:
        """Pull the shares' gradient back to the student's logits."""
        student_GV, mass_G = ctx.saved_tensors
        if torch.is_grad_enabled():
            # create_graph: the same shares by the general way, which autograd can differentiate twice.
            shares_G, _ = ctx.loss.transport(student_GV, ctx.teacher_GV, mass_G)
            (gradient_GV,) = torch.autograd.grad(shares_G, student_GV, pulls[0], create_graph=True)
            return gradient_GV, None, None, None, None
        p_VG, moves = ctx.parts
        pull_G = pulls[0].numpy()
        with numpy.errstate(all="ignore"):
            pulled_VG = moves[0].pull(ctx.loss, pull_G, own=False)
            if len(moves) > 1:
                pulled_VG += moves[1].pull(ctx.loss, -0.5 * pull_G, own=True)
            pulled_VG *= p_VG
            pulled_VG -= p_VG * numpy.add.reduce(pulled_VG)
            pulled_VG /= ctx.loss.temperature
        return torch.from_numpy(pulled_VG.T).to(student_GV.dtype), None, None, None, None


def _dtype(array: Floats) -> torch.dtype:
    return torch.float64 if array.itemsize == 8 else torch.float32
