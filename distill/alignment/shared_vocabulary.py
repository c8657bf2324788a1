"""The tokens that two vocabularies have in common.

Shapes: C shared columns, R the other columns of one side, V student and W teacher token ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .surfaces import TokenSurfaces

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SharedVocabulary:
    """Pairs of a student's and a teacher's token that stand for the same bytes, word start included.

    Special tokens pair by their names, and the two ends of a text with each other. Where one side has several tokens
    for the same bytes (SentencePiece has a letter and its byte), the first meets the other's first, the second the
    second. Every token is in at most one pair.

    Attributes:
        student_C: the student's ids, increasing.
        teacher_C: the teacher's id of the same.
        student_size: V.
        teacher_size: W.
    """

    student_C: Integers
    teacher_C: Integers
    student_size: int
    teacher_size: int

    @classmethod
    def of(cls, student: TokenSurfaces, teacher: TokenSurfaces) -> SharedVocabulary:
        """Pair the tokens of two tokenizers."""
        theirs = _places(teacher)
        pairs = [
            pair
            for key, numbers in _places(student).items()
            for pair in zip(numbers, theirs.get(key, ()), strict=False)
        ]
        pairs += _ends(student, teacher, {own for own, _ in pairs}, {other for _, other in pairs})
        ordered = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
        return cls(ordered[:, 0].copy(), ordered[:, 1].copy(), len(student), len(teacher))

    def __len__(self) -> int:
        """Return C."""
        return len(self.student_C)

    @cached_property
    def column_V(self) -> Integers:
        """The column of each of the student's tokens, −1 for those the teacher does not have."""
        return _column(self.student_C, self.student_size)

    @cached_property
    def column_W(self) -> Integers:
        """The column of each of the teacher's tokens, −1 for those the student does not have."""
        return _column(self.teacher_C, self.teacher_size)

    @cached_property
    def student_rest_R(self) -> Integers:
        """The student's tokens that are in no pair."""
        return np.flatnonzero(self.column_V < 0)

    @cached_property
    def teacher_rest_R(self) -> Integers:
        """The teacher's tokens that are in no pair."""
        return np.flatnonzero(self.column_W < 0)

    def describe(self) -> str:
        """Say in one sentence how much the two have in common."""
        return (
            f"{len(self):,} tokens in common: {len(self) / max(self.student_size, 1):.1%} of the student's "
            f"{self.student_size:,}, {len(self) / max(self.teacher_size, 1):.1%} of the teacher's {self.teacher_size:,}"
        )


def _places(surfaces: TokenSurfaces) -> dict[bytes | str, list[int]]:
    """The ids of every surface and of every special token's name; a token named by its byte after all others."""
    found: dict[bytes | str, list[int]] = {}
    for number, surface in enumerate(surfaces.surface_V):
        key = surfaces.special.get(number) if surface is None else surface
        if key is not None:
            found.setdefault(key, []).append(number)
    for numbers in found.values():
        numbers.sort(key=lambda number: (number in surfaces.of_byte, number))
    return found


def _ends(
    student: TokenSurfaces, teacher: TokenSurfaces, own: set[int], others: set[int]
) -> list[tuple[int, int]]:
    if student.end is None or teacher.end is None or student.end in own or teacher.end in others:
        return []
    return [(student.end, teacher.end)]


def _column(ids_C: Integers, size: int) -> Integers:
    column = np.full(size, -1, dtype=np.int64)
    column[ids_C] = np.arange(len(ids_C))
    return column
