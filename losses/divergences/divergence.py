"""What the divergences share: a temperature, a scale, and two softmaxes to compare.

N rows, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..ranges import non_negative, positive
from ..row_wise import RowWise
from ..softmax import Softmax, softmax

if TYPE_CHECKING:
    from torch import Tensor

    from ..rows import Rows

Comparison = Callable[..., tuple["Tensor", "Tensor"]]
"""A function of the teacher's and the student's `Softmax`, maybe of a number; it returns what `Divergence.compare` does."""


@dataclass(frozen=True, kw_only=True)
class Tempered(RowWise):
    """A row-wise loss of logits over a temperature.

    Attributes:
        temperature: divides both sides' logits.
        scale: multiplies the value: a number, or "temperature_squared" for Hinton's T², which keeps the size of
            the gradient about the same at every temperature. 1 (the default) is the divergence itself.
    """

    temperature: float = 1.0
    scale: float | Literal["temperature_squared"] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("temperature", self.temperature)
        if isinstance(self.scale, str):
            if self.scale != "temperature_squared":
                raise ValueError(f"scale must be a number or 'temperature_squared', got {self.scale!r}")
        else:
            non_negative("scale", self.scale)

    @property
    def factor(self) -> float:
        """The number that `scale` stands for."""
        return self.temperature**2 if isinstance(self.scale, str) else self.scale

    def scaled(self, values_N: Tensor, slope_NV: Tensor) -> tuple[Tensor, Tensor]:
        """Return values times `scale`, and their derivative for the logits, given that for the tempered logits."""
        slope = self.factor / self.temperature
        return self.factor * values_N, slope_NV if slope == 1 else slope * slope_NV


@dataclass(frozen=True, kw_only=True)
class Divergence(Tempered):
    """A loss that compares the two softmaxes of a row at one temperature."""

    @abstractmethod
    def compare(self, teacher: Softmax, student: Softmax) -> tuple[Tensor, Tensor]:
        """Return the divergence, (N,), and its derivative for the student's tempered logits, (N, V)."""

    def differentiate(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return `compare` of the two sides, times `scale`; the derivative is for the logits as they came."""
        teacher = softmax(rows.teacher_logits(), self.temperature)
        student = softmax(rows.student_logits(), self.temperature)
        return self.scaled(*self.compare(teacher, student))


@dataclass(frozen=True, kw_only=True)
class ClassWise(Divergence):
    """A divergence made of terms of one class each, whose mathematics Triton compiles from the lines that torch runs.

    Those lines are a plain function, which calls the names of `steps` and other such functions, and no method of a
    tensor but `log` and `abs`. `kernels.triton_rows` makes kernels of the functions that it lists.
    """

    @abstractmethod
    def comparison(self) -> tuple[Comparison, float | None]:
        """Return the function that compares, and the number it takes after teacher and student, or None."""

    def compare(self, teacher: Softmax, student: Softmax) -> tuple[Tensor, Tensor]:
        """Return what the function of `comparison` returns: the divergence, (N,), and its derivative, (N, V)."""
        function, number = self.comparison()
        return function(teacher, student) if number is None else function(teacher, student, number)
