"""Rows: what every loss reads, and the one place where their values become one number.

N rows (examples, or valid tokens flattened), V vocabulary or classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill.errors import NumericsError

from .precision import wide
from .sparse import SparseTeacher

if TYPE_CHECKING:
    from torch import Tensor

    from .features.activations import PairedActivations


@dataclass(frozen=True, eq=False)
class Rows:
    """The aligned predictions of one batch: row i of every tensor speaks of the same example or token.

    −inf is a legal logit (a class that cannot occur); NaN and +inf are not, and `check_finite` names them.

    Shapes:
        student: (N, V) logits. teacher: (N, V) logits or None. label: (N,) class indices or None.
        weight: (N,) at least 0, bool or number; None means 1 everywhere; a row of weight 0 does not count,
        whatever else it holds. group: (N,) integers, rows that a batch-wise loss sees together; None means
        one group. sparse: (N, K) classes and probabilities, for the losses that take a teacher of which only these
        are known.
        activations: what both models computed inside, for losses that compare that.

    Raises:
        TypeError: something that is not a tensor, or has the wrong kind of number.
        ValueError: shapes or devices that do not belong together.

    Example:
        >>> import torch
        >>> from distill.losses import Rows
        >>> rows = Rows(student=torch.zeros(3, 2), weight=torch.tensor([1.0, 1.0, 0.0]))
        >>> rows.mean(torch.tensor([1.0, 3.0, float("nan")]))
        tensor(2.)
    """

    student: Tensor
    teacher: Tensor | None = None
    label: Tensor | None = None
    weight: Tensor | None = None
    group: Tensor | None = None
    sparse: SparseTeacher | None = None
    activations: PairedActivations | None = None

    def __post_init__(self) -> None:
        _check_tensor("student", self.student)
        if self.student.dim() != 2 or self.student.shape[1] == 0:
            raise ValueError(f"student logits must have shape (N, V), V >= 1, got {_shape(self.student)}")
        for name in ("teacher", "label", "weight", "group"):
            tensor = getattr(self, name)
            if tensor is not None:
                _check_tensor(name, tensor)
                if tensor.device != self.student.device:
                    raise ValueError(f"{name} is on {tensor.device}, but student is on {self.student.device}")
        if self.teacher is not None and self.teacher.shape != self.student.shape:
            expected, found = _shape(self.student), _shape(self.teacher)
            if self.teacher.dim() == 2 and self.teacher.shape[0] == self.student.shape[0]:
                raise ValueError(
                    f"teacher and student logits have different vocabularies: expected {expected} as the "
                    f"student's, got {found}; keep the columns both share before building rows"
                )
            raise ValueError(f"teacher logits must have the student's shape {expected}, got {found}")
        for name in ("label", "weight", "group"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != self.student.shape[:1]:
                raise ValueError(
                    f"{name} must have shape ({len(self)},), one entry a row of student {_shape(self.student)}, "
                    f"got {_shape(tensor)}"
                )
        if self.sparse is not None:
            if len(self.sparse) != len(self):
                raise ValueError(
                    f"sparse must have {len(self)} rows, as the student's logits, got {len(self.sparse)}"
                )
            if self.sparse.index.device != self.student.device:
                raise ValueError(
                    f"sparse is on {self.sparse.index.device}, but student is on {self.student.device}"
                )
        for name in ("student", "teacher"):
            tensor = getattr(self, name)
            if tensor is not None and not tensor.is_floating_point():
                raise TypeError(f"{name} logits must be floating-point, got {tensor.dtype}")
        for name in ("label", "group"):
            tensor = getattr(self, name)
            if tensor is not None and (tensor.is_floating_point() or tensor.is_complex()):
                raise TypeError(f"{name} must hold integers, got {tensor.dtype}")
        if self.activations is not None:
            self.activations.check_rows(len(self))

    def __len__(self) -> int:
        """Return N."""
        return int(self.student.shape[0])

    @property
    def weights(self) -> Tensor:
        """Weight of each row, (N,), in the dtype that values have: float32, or float64 for float64 logits."""
        if self.weight is None:
            return self._empty().new_ones(len(self))
        return self.weight.detach().to(self._empty().dtype)

    def _empty(self) -> Tensor:
        """Return no numbers, of the dtype everything is computed in."""
        return wide(self.student.detach()[:0])

    def student_logits(self) -> Tensor:
        """Return the student's logits, at least float32, with rows of weight 0 blanked.

        Blanking is what keeps a NaN in padding out of the gradient: 0 · NaN is NaN.
        """
        return self._computable(self.student)

    def teacher_logits(self) -> Tensor:
        """Return the teacher's logits, detached, in the dtype of `student_logits`, rows of weight 0 blanked.

        Raises:
            ValueError: there are no teacher logits.
        """
        return self._computable(self.detached_teacher())

    def detached_teacher(self) -> Tensor:
        """Return the teacher's logits, detached. Often made in inference mode, which autograd will not keep.

        They are as they came, unless they would be computed in another precision than the student's.

        Raises:
            ValueError: there are no teacher logits.
        """
        if self.teacher is None:
            raise ValueError("this loss compares with a teacher, but rows.teacher is None")
        teacher_NV, dtype = self.teacher.detach(), self._empty().dtype
        return teacher_NV if wide(teacher_NV[:0]).dtype == dtype else teacher_NV.to(dtype)

    def sparse_teacher(self) -> SparseTeacher:
        """Return the kept part of the teacher in the dtype of `student_logits`, rows of weight 0 blanked.

        Raises:
            ValueError: there is none.
        """
        if self.sparse is None:
            raise ValueError("this loss compares with a part of a teacher, but rows.sparse is None")
        index_NK, probability_NK = self.sparse.index.long(), self.sparse.probability.detach()
        probability_NK = probability_NK.to(self._empty().dtype)
        if self.weight is not None:
            counts_N1 = (self.weight > 0).unsqueeze(-1)
            index_NK, probability_NK = index_NK.where(counts_N1, 0), probability_NK.where(counts_N1, 0.0)
        # Padding may carry any class; a real entry keeps its own, and a wrong one is an error where it is used.
        return SparseTeacher(index_NK.where(probability_NK != 0, 0), probability_NK)

    def _computable(self, logits_NV: Tensor) -> Tensor:
        logits_NV = logits_NV.to(self._empty().dtype)
        if self.weight is not None:
            logits_NV = logits_NV.where((self.weight > 0).unsqueeze(-1), 0.0)
        return logits_NV

    def select(self, index: Tensor | slice) -> Rows:
        """Return the rows at index (integers, a bool mask or a slice), in that order."""

        def at(part_N: Tensor | None) -> Tensor | None:
            return None if part_N is None else part_N[index]

        return Rows(
            student=self.student[index],
            teacher=at(self.teacher),
            label=at(self.label),
            weight=at(self.weight),
            group=at(self.group),
            sparse=None if self.sparse is None else self.sparse.select(index),
            activations=None if self.activations is None else self.activations.select(index, len(self)),
        )

    def mean(self, values_N: Tensor, total_weight: float | Tensor | None = None) -> Tensor:
        """Return Σ w·v / Σ w, a scalar.

        Rows of weight 0 contribute exactly 0, even when their value is NaN. When nothing counts (no rows, or
        every weight 0) the result is a 0 that still has a gradient (of zeros).

        Args:
            values_N: one value a row, as a loss returns them.
            total_weight: Σ w of the whole batch when these rows are a part of it: the results of the parts
                then add up to the whole batch's mean.

        Raises:
            ValueError: values_N does not have one entry a row.
        """
        if values_N.shape != self.student.shape[:1]:
            raise ValueError(f"values must have shape ({len(self)},), one a row, got {_shape(values_N)}")
        if self.weight is None and total_weight is None:
            return values_N.mean() if len(self) else values_N.sum()
        weight_N = self.weights.to(values_N.dtype)
        numerator = (values_N.where(weight_N > 0, 0.0) * weight_N).sum()
        # new_zeros(()) + total takes a float or a tensor, on the host or not, without waiting for the device.
        total = weight_N.sum() if total_weight is None else numerator.new_zeros(()) + total_weight
        total = total.to(values_N.dtype)
        return numerator / total.where(total > 0, 1.0)

    def check_finite(self) -> None:
        """Name the first tensor and row that no loss can use, among rows that count.

        Reads numbers back from the device, so losses do not call it: NaN logits give NaN values, and whoever
        finds one calls this to learn where it came from.

        Raises:
            NumericsError: a NaN or +inf logit, a row without a single possible class (all −inf), a weight that is
                NaN, infinite or negative, or an activation that is not finite; with the tensor, the row and what was
                found.
        """
        if self.weight is not None:
            weight_N = self.weights
            _refuse("weight", ~(weight_N.isfinite() & (weight_N >= 0)), weight_N, "a finite number >= 0")
        for name in ("student", "teacher"):
            logits_NV: Tensor | None = getattr(self, name)
            if logits_NV is None:
                continue
            # The row's maximum tells all: NaN spreads to it, +inf is it, and −inf means there is nothing else.
            largest_N = logits_NV.detach().amax(-1)
            unusable_N = ~largest_N.isfinite() & (self.weights > 0)
            _refuse(f"{name} logits", unusable_N, largest_N, "a row whose largest logit is finite")
        if self.activations is not None:
            from .features.feature_loss import positions_that_count

            self.activations.check_finite(*positions_that_count(self, self.activations))


def _refuse(name: str, wrong_N: Tensor, found_N: Tensor, expected: str) -> None:
    if bool(wrong_N.any()):
        row = int(wrong_N.nonzero()[0])
        raise NumericsError(
            f"{name}: row {row} of {len(wrong_N)}: expected {expected}, got {float(found_N[row])} "
            f"({int(wrong_N.sum())} such rows)",
            row=row,
        )


def _check_tensor(name: str, tensor: object) -> None:
    if not hasattr(tensor, "is_floating_point"):
        raise TypeError(f"{name} must be a torch tensor, got {type(tensor).__name__}")


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
