"""The groups of a batch's examples → which rows of both models' logits meet.

Shapes: B examples, T positions of one model, N aligned rows or chunks, G groups, K tokens of one side in N chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from distill.errors import AlignmentError

from .groups import AlignedExample
from .shared_vocabulary import SharedVocabulary
from .surfaces import TokenSurfaces

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CountedRows:
    """Which positions of a padded batch one model computed logits at: the k-th of them, row by row, is logits_NV[k].

    Attributes:
        rows_BT: True where it did.
        shift: how far before a token the logits that predict it are: 1 for language models, 0 for masked ones.
        attention_mask_BT: False in padding; needed where padding is on the left.
    """

    rows_BT: Tensor
    shift: int = 1
    attention_mask_BT: Tensor | None = None

    def __len__(self) -> int:
        """Return B."""
        return len(self.rows_BT)

    @cached_property
    def _number_BT(self) -> Integers:
        rows_BT = self.rows_BT.cpu().numpy().astype(bool)
        return np.where(rows_BT, np.cumsum(rows_BT).reshape(rows_BT.shape) - 1, -1)

    @cached_property
    def _first_B(self) -> Integers:
        if self.attention_mask_BT is None:
            return np.zeros(len(self), np.int64)
        return np.asarray(self.attention_mask_BT.cpu().numpy().astype(bool).argmax(-1), np.int64)

    def predicting(self, example_K: Integers, place_K: Integers) -> Integers:
        """Return the row that predicts the token at a place of an example, −1 where there is none, (K,)."""
        at = place_K + self._first_B[example_K] - self.shift
        # A language model's first token, without anything before it, is predicted nowhere.
        there = (at >= 0) & (at < self._number_BT.shape[-1])
        return np.where(there, self._number_BT[example_K, np.where(there, at, 0)], -1)


@dataclass(frozen=True, eq=False)
class AlignedRows:
    """Pairs of rows that predict the same thing.

    Attributes:
        student_row_N: rows of the student's logits.
        teacher_row_N: rows of the teacher's logits.
        label_N: the student's token that comes there.
        column_N: the column of that token among the shared ones, −1 where it has none.
        example_N: the example of the batch it is in.
        unpredicted: how many pairs were left out because a side has no logits there.
    """

    student_row_N: Tensor
    teacher_row_N: Tensor
    label_N: Tensor
    column_N: Tensor
    example_N: Tensor
    unpredicted: int = 0

    def __len__(self) -> int:
        """Return N."""
        return len(self.student_row_N)

    def to(self, device: torch.device | str) -> AlignedRows:
        """Return the same on another device."""
        return _moved(self, device)


@dataclass(frozen=True, eq=False)
class AlignedChunks:
    """Stretches of text that both models give a probability to, each the product of its tokens'.

    Attributes:
        student_row_K: rows of the student's logits that predict the chunks' tokens.
        student_id_K: these tokens.
        student_chunk_K: the chunk each belongs to, increasing.
        student_next_N: the row that predicts the token after the chunk, −1 where the text goes on inside a word.
        student_row_N: the row that predicts the chunk's first token.
        teacher_row_K: as for the student.
        teacher_id_K: as for the student.
        teacher_chunk_K: as for the student.
        teacher_next_N: as for the student.
        example_N: the example of the batch it is in.
        unpredicted: how many chunks were left out because a side has no logits for one of their tokens.
    """

    student_row_K: Tensor
    student_id_K: Tensor
    student_chunk_K: Tensor
    student_next_N: Tensor
    student_row_N: Tensor
    teacher_row_K: Tensor
    teacher_id_K: Tensor
    teacher_chunk_K: Tensor
    teacher_next_N: Tensor
    example_N: Tensor
    unpredicted: int = 0

    def __len__(self) -> int:
        """Return N."""
        return len(self.example_N)

    def to(self, device: torch.device | str) -> AlignedChunks:
        """Return the same on another device."""
        return _moved(self, device)


def matching_rows(
    examples: Sequence[AlignedExample],
    student: CountedRows,
    teacher: CountedRows,
    vocabulary: SharedVocabulary,
) -> AlignedRows:
    """Pair the predictions of every token that both sides have: the same surface, ending at the same byte.

    MATCH of Kolesnikova et al. 2022 (arXiv:2205.02340, section 3) takes for each token of the teacher the first equal
    one of the student at or after the last hit, which loses everything after a wrong hit and pairs words of different
    places. Here a pair covers the same stretch of the text, so there is nothing to choose, and no longer sequence of
    such pairs.

    Raises:
        AlignmentError: the batches are not of these examples.
    """
    both = _Batch(examples, student, teacher)
    own, other = (_stops(count) for count in (both.student_count_G, both.teacher_count_G))
    label = both.student_id_K[own]
    column = vocabulary.column_V[label]
    keep = (column >= 0) & (column == vocabulary.column_W[both.teacher_id_K[other]])
    places = (
        both.student_first_G + both.student_count_G - 1,
        both.teacher_first_G + both.teacher_count_G - 1,
    )
    return both.rows(keep, *places, label, column)


def starting_rows(
    examples: Sequence[AlignedExample], student: CountedRows, teacher: CountedRows
) -> AlignedRows:
    """Pair the predictions of the first token of every group: both models have read the same bytes there.

    So both distributions are of what follows the same text, the one thing that ULD needs and its code (which pairs the
    k-th token with the k-th) does not have. GOLD (`trl.experimental.gold`) instead makes one distribution of a whole
    group: the last token's, times the probability of those before it. That is Σ ≤ 1 over the continuations of the
    tokens that did come, on two sides that split the group differently, so equal models of the text may differ in it;
    here nothing is merged, and the later tokens of a group give no rows. (`chunk_rows` compares whole groups.)

    Raises:
        AlignmentError: the batches are not of these examples.
    """
    both = _Batch(examples, student, teacher)
    label = both.student_id_K[_stops(both.student_count_G) - both.student_count_G + 1]
    keep = np.ones(len(label), bool)
    return both.rows(keep, both.student_first_G, both.teacher_first_G, label, np.full(len(label), -1))


def chunk_tokens(
    examples: Sequence[AlignedExample],
    student: CountedRows,
    teacher: CountedRows,
    surfaces: tuple[TokenSurfaces, TokenSurfaces] | None = None,
) -> AlignedChunks:
    """Take every group whose tokens both sides predict as a chunk.

    Args:
        examples: those of the batch, in order.
        student: the rows of its logits.
        teacher: the rows of its logits.
        surfaces: of the student and the teacher; given, chunks that end a word know which rows say so
            (`chunk_rows(boundary=True)`).

    Raises:
        AlignmentError: the batches are not of these examples.
    """
    both = _Batch(examples, student, teacher)
    own_row_K = both.predicting(student, both.student_first_G, both.student_count_G)
    other_row_K = both.predicting(teacher, both.teacher_first_G, both.teacher_count_G)
    own_G, other_G = (
        np.repeat(np.arange(len(count)), count) for count in (both.student_count_G, both.teacher_count_G)
    )
    keep = np.ones(len(both.example_G), bool)
    keep[own_G[own_row_K < 0]] = False
    keep[other_G[other_row_K < 0]] = False
    number = np.cumsum(keep) - 1
    own_K, other_K = keep[own_G], keep[other_G]
    after = both.boundary(student, teacher, surfaces)
    return AlignedChunks(
        student_row_K=torch.from_numpy(own_row_K[own_K]),
        student_id_K=torch.from_numpy(both.student_id_K[own_K]),
        student_chunk_K=torch.from_numpy(number[own_G[own_K]]),
        student_next_N=torch.from_numpy(after[0][keep]),
        student_row_N=torch.from_numpy(
            own_row_K[_stops(both.student_count_G) - both.student_count_G + 1][keep]
        ),
        teacher_row_K=torch.from_numpy(other_row_K[other_K]),
        teacher_id_K=torch.from_numpy(both.teacher_id_K[other_K]),
        teacher_chunk_K=torch.from_numpy(number[other_G[other_K]]),
        teacher_next_N=torch.from_numpy(after[1][keep]),
        example_N=torch.from_numpy(both.example_G[keep]),
        unpredicted=int((~keep).sum()),
    )


class _Batch:
    """The groups of all examples, one after the other."""

    def __init__(self, examples: Sequence[AlignedExample], student: CountedRows, teacher: CountedRows):
        if not len(examples) == len(student) == len(teacher):
            raise AlignmentError(
                f"{len(examples)} aligned examples do not belong to batches of {len(student)} (student) and "
                f"{len(teacher)} (teacher) examples"
            )
        self.student, self.teacher = student, teacher
        self.example_G = np.repeat(np.arange(len(examples)), [len(example) for example in examples])
        for field in fields(AlignedExample)[:-1]:
            parts = [getattr(example, field.name) for example in examples]
            setattr(self, field.name, np.concatenate(parts) if parts else np.zeros(0, np.int64))

    student_first_G: Integers
    student_count_G: Integers
    student_id_K: Integers
    student_next_G: Integers
    teacher_first_G: Integers
    teacher_count_G: Integers
    teacher_id_K: Integers
    teacher_next_G: Integers

    def rows(
        self, keep: NDArray[np.bool_], own: Integers, other: Integers, label: Integers, column: Integers
    ) -> AlignedRows:
        """The pairs to keep that both sides predict, by the places of their tokens."""
        own_row = self.student.predicting(self.example_G, own)
        other_row = self.teacher.predicting(self.example_G, other)
        there = keep & (own_row >= 0) & (other_row >= 0)
        return AlignedRows(
            student_row_N=torch.from_numpy(own_row[there]),
            teacher_row_N=torch.from_numpy(other_row[there]),
            label_N=torch.from_numpy(label[there]),
            column_N=torch.from_numpy(column[there]),
            example_N=torch.from_numpy(self.example_G[there]),
            unpredicted=int(keep.sum() - there.sum()),
        )

    def predicting(self, side: CountedRows, first_G: Integers, count_G: Integers) -> Integers:
        """The rows that predict every token of every group, (K,)."""
        inside = np.arange(int(count_G.sum())) - np.repeat(np.cumsum(count_G) - count_G, count_G)
        return side.predicting(np.repeat(self.example_G, count_G), np.repeat(first_G, count_G) + inside)

    def boundary(
        self, student: CountedRows, teacher: CountedRows, surfaces: tuple[TokenSurfaces, TokenSurfaces] | None
    ) -> tuple[Integers, Integers]:
        """The rows that predict what follows a group, where both sides know that a word ends there; −1 elsewhere."""
        own = student.predicting(self.example_G, self.student_first_G + self.student_count_G)
        other = teacher.predicting(self.example_G, self.teacher_first_G + self.teacher_count_G)
        ends = (own >= 0) & (other >= 0)
        if surfaces is None:
            ends &= False
        else:
            for side, after in zip(surfaces, (self.student_next_G, self.teacher_next_G), strict=True):
                ends &= (after < 0) | side.starts_word_V[after]
        return np.where(ends, own, -1), np.where(ends, other, -1)


def _stops(count_G: Integers) -> Integers:
    """The number of each group's last token among all groups' tokens."""
    return np.cumsum(count_G) - 1


Moved = TypeVar("Moved", AlignedRows, AlignedChunks)


def _moved(aligned: Moved, device: torch.device | str) -> Moved:
    found = {field.name: getattr(aligned, field.name) for field in fields(aligned)}
    moved: dict[str, Any] = {
        name: part.to(device) for name, part in found.items() if isinstance(part, torch.Tensor)
    }
    return replace(aligned, **moved)
