"""Two tokenizations of one text → the smallest groups of tokens that cover the same stretch of it.

Shapes: T tokens of one side, G groups, K tokens of one side in all groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from .spans import TokenSpans

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Coverage:
    """How much of some texts an alignment uses. Adds up over texts.

    Attributes:
        groups: groups kept.
        single: those of one token on each side.
        broken: groups left out because a side did not read all of their bytes but for whitespace.
        student_tokens: tokens of the student in kept groups.
        teacher_tokens: the same of the teacher.
        student_left: tokens of the student in none: of broken groups, or after the last common end.
        teacher_left: the same of the teacher.
    """

    groups: int = 0
    single: int = 0
    broken: int = 0
    student_tokens: int = 0
    teacher_tokens: int = 0
    student_left: int = 0
    teacher_left: int = 0

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, eq=False)
class AlignedExample:
    """The groups of one example. A few small integers, made once when the example is encoded.

    A group is the tokens of either side between two places of the text where both have a token's end. Before each
    group both models have therefore read the same bytes. Places are those in the model's sequence, special tokens
    counted, padding not; the tokens of a group stand side by side.

    Attributes:
        student_first_G: the place of the group's first token in the student's sequence.
        student_count_G: how many it has there.
        student_id_K: the student's tokens, group after group.
        student_next_G: the student's token after the group, −1 where the text ends.
        teacher_first_G: as for the student.
        teacher_count_G: as for the student.
        teacher_id_K: as for the student.
        teacher_next_G: as for the student.
        coverage: what became of the tokens.
    """

    student_first_G: Integers
    student_count_G: Integers
    student_id_K: Integers
    student_next_G: Integers
    teacher_first_G: Integers
    teacher_count_G: Integers
    teacher_id_K: Integers
    teacher_next_G: Integers
    coverage: Coverage

    def __len__(self) -> int:
        """Return G."""
        return len(self.student_first_G)


def align_spans(student: TokenSpans, teacher: TokenSpans) -> AlignedExample:
    """Group the tokens of one text.

    A side that drops whitespace has read as much as one that keeps it. A group of which a side did not read all the
    rest (an unknown token, a character that normalisation removes, the beginning of a text that was cut on the
    left) is left out: what the tokens say is there not the same. Tokens without width belong to the group after
    them, unless both sides have the same ones.

    Time is linear in the tokens.
    """
    ends = _common_ends(student, teacher)
    own, others = (np.concatenate(([0], last + 1)) for last in ends)
    kept = _read(student, own, others, teacher)
    (first, count, ids, after), (their_first, their_count, their_ids, their_after) = (
        _side(spans, bound, kept) for spans, bound in ((student, own), (teacher, others))
    )
    coverage = Coverage(
        groups=len(first),
        single=int(((count == 1) & (their_count == 1)).sum()),
        broken=len(kept) - len(first),
        student_tokens=len(ids),
        teacher_tokens=len(their_ids),
        student_left=len(student) - len(ids),
        teacher_left=len(teacher) - len(their_ids),
    )
    return AlignedExample(
        first, count, ids, after, their_first, their_count, their_ids, their_after, coverage
    )


def align_texts(student: Sequence[TokenSpans], teacher: Sequence[TokenSpans]) -> AlignedExample:
    """Group the tokens of an example of several texts, each with its own counterpart."""
    parts = [align_spans(own, other) for own, other in zip(student, teacher, strict=True)]
    if len(parts) == 1:
        return parts[0]
    joined = {
        f.name: np.concatenate([getattr(part, f.name) for part in parts])
        for f in fields(AlignedExample)
        if f.name != "coverage"
    }
    return AlignedExample(**joined, coverage=sum((part.coverage for part in parts), Coverage()))


def _side(spans: TokenSpans, bound: Integers, kept: NDArray[np.bool_]) -> tuple[Integers, ...]:
    """Where one side's kept groups begin, how many tokens they have, which, and which comes next."""
    count = np.diff(bound)
    after = np.concatenate((spans.id_T, [-1]))[bound[1:][kept]]
    ids = spans.id_T[: bound[-1]][np.repeat(kept, count)]
    return spans.position_T[bound[:-1][kept]], count[kept], ids, after


def _common_ends(student: TokenSpans, teacher: TokenSpans) -> tuple[Integers, Integers]:
    """The numbers of the tokens that end where a token of the other side ends, pairwise."""
    own, others = (np.flatnonzero(side.end_T > side.start_T) for side in (student, teacher))
    own_end, other_end = student.end_T[own], teacher.end_T[others]
    place = np.searchsorted(other_end, own_end)
    found = place < len(other_end)
    found[found] = other_end[place[found]] == own_end[found]
    ends = own[found], others[place[found]]
    if student.hidden and teacher.hidden:
        return _with_hidden(student, teacher, *ends)
    return ends


def _with_hidden(
    student: TokenSpans, teacher: TokenSpans, own: Integers, others: Integers
) -> tuple[Integers, Integers]:
    """The same, and the ends of tokens without width that begin a group on both sides and stand for the same."""
    starts = list(zip([0, *(own + 1).tolist()], [0, *(others + 1).tolist()], strict=True))
    more = []
    for first, second in starts:
        if first in student.hidden and second in teacher.hidden:
            left, right = _runs(student.hidden, first), _runs(teacher.hidden, second)
            more += [(left[read], right[read]) for read in left.keys() & right.keys()]
    pairs = np.array(sorted([*zip(own.tolist(), others.tolist(), strict=True), *more]), dtype=np.int64)
    return pairs[:, 0], pairs[:, 1]


def _runs(hidden: Mapping[int, bytes], first: int) -> dict[bytes, int]:
    """The tokens without width that stand side by side from `first` on, by what has been read after each."""
    found: dict[bytes, int] = {}
    read = b""
    while first in hidden:
        read += hidden[first]
        found.setdefault(read, first)
        first += 1
    return found


def _read(student: TokenSpans, own: Integers, others: Integers, teacher: TokenSpans) -> NDArray[np.bool_]:
    """Whether both sides read all of a group's bytes but for whitespace, (G,)."""
    there = np.diff(np.concatenate(([0], student.before_T[own[1:] - 1])))
    kept = np.ones(len(there), bool)
    for spans, bound in ((student, own), (teacher, others)):
        known = np.concatenate(([0], np.cumsum(~spans.known_T)))
        ink = np.concatenate(([0], np.cumsum(spans.ink_T)))
        kept &= (np.diff(ink[bound]) == there) & (np.diff(known[bound]) == 0)
    return kept
