"""The teacher's tokenization, read by the student: every token cut into pieces that the student's vocabulary has.

Shapes: T tokens of the teacher's sequence, S pieces of it, N aligned rows, P pieces in them, V student and W teacher
columns, C shared columns, M and L rows of their logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from distill.errors import AlignmentError
from distill.losses import Rows

from .batch_rows import CountedRows
from .shared_vocabulary import SharedVocabulary
from .surfaces import TokenSurfaces
from .token_rows import columns_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Integers = NDArray[np.int64]

_SAME_ROLE = {"cls": "bos", "bos": "cls", "sep": "eos", "eos": "sep"}


@dataclass(frozen=True, eq=False)
class SplitExample:
    """A teacher's sequence in the student's pieces.

    Attributes:
        student_id_S: what the student reads.
        owner_S: the place of the teacher's token that each is a piece of, never decreasing.
        tokens: how many tokens the teacher's sequence has, T.
    """

    student_id_S: Integers
    owner_S: Integers
    tokens: int


class TokenSplitter:
    """Cuts the teacher's tokens into the student's, the longest piece that fits first, from the left.

    A special token becomes the student's of the same name, or of the same role, or is left out where there is none.
    What the student cannot spell becomes its unknown token, or is left out where it has none (a byte-level student
    does not need one, but cannot tell what the teacher's unknown token stood for). The first word of a text that a
    WordPiece teacher reads begins with a space for the student.

    Paper: Kolesnikova et al. 2022, arXiv:2205.02340, section 3 (REDUCE).
    """

    def __init__(self, student: TokenSurfaces, teacher: TokenSurfaces):
        self.student, self.teacher = student, teacher
        self._id_of: dict[bytes, int] = {}
        for number, surface in enumerate(student.surface_V):
            if surface and (surface not in self._id_of or self._id_of[surface] in student.of_byte):
                self._id_of[surface] = number
        self._longest = max(map(len, self._id_of), default=0)
        self._named = {name: number for number, name in student.special.items()}
        self._pieces: dict[int, tuple[int, ...]] = {}

    def pieces(self, token: int) -> tuple[int, ...]:
        """Return the student's pieces of one of the teacher's tokens."""
        found = self._pieces.get(token)
        if found is None:
            found = self._pieces[token] = self._split(token)
        return found

    def split(self, teacher_ids: Sequence[int]) -> SplitExample:
        """Return the student's input for a teacher's sequence, special tokens included."""
        parts = [self.pieces(token) for token in teacher_ids]
        owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        ids = np.array([piece for part in parts for piece in part], dtype=np.int64)
        return SplitExample(ids, owner, len(parts))

    def _split(self, token: int) -> tuple[int, ...]:
        surface = self.teacher.surface_V[token]
        if surface is None:
            return self._special(token)
        pieces = []
        while surface:
            for length in range(min(self._longest, len(surface)), 0, -1):
                if surface[:length] in self._id_of:
                    break
            else:
                return self._unknown
            pieces.append(self._id_of[surface[:length]])
            surface = surface[length:]
        return tuple(pieces)

    def _special(self, token: int) -> tuple[int, ...]:
        name = self.teacher.special.get(token)
        if name in self._named:
            return (self._named[name],)
        for role, number in self.teacher.role.items():
            if number == token:
                own = self.student.role.get(role, self.student.role.get(_SAME_ROLE.get(role, "")))
                if own is not None:
                    return (own,)
        return self._unknown if token == self.teacher.unknown else ()

    @property
    def _unknown(self) -> tuple[int, ...]:
        return () if self.student.unknown is None else (self.student.unknown,)


@dataclass(frozen=True, eq=False)
class SplitRows:
    """Which rows of the student's logits make one of the teacher's.

    Attributes:
        student_row_P: rows of the student's logits.
        owner_P: the aligned row each is a part of.
        teacher_row_N: rows of the teacher's logits.
        example_N: the example of the batch it is in.
        unpredicted: how many of the teacher's rows were left out because the student has no pieces, or no
            logits for one of them.
    """

    student_row_P: Tensor
    owner_P: Tensor
    teacher_row_N: Tensor
    example_N: Tensor
    unpredicted: int = 0

    def __len__(self) -> int:
        """Return N."""
        return len(self.teacher_row_N)

    def to(self, device: torch.device | str) -> SplitRows:
        """Return the same on another device."""
        return SplitRows(
            self.student_row_P.to(device),
            self.owner_P.to(device),
            self.teacher_row_N.to(device),
            self.example_N.to(device),
            self.unpredicted,
        )


def split_rows(examples: Sequence[SplitExample], student: CountedRows, teacher: CountedRows) -> SplitRows:
    """Find the rows of all of the teacher's counted tokens, and those of their pieces.

    Raises:
        AlignmentError: the batches are not of these examples.
    """
    if not len(examples) == len(student) == len(teacher):
        raise AlignmentError(
            f"{len(examples)} split examples do not belong to batches of {len(student)} (student) and {len(teacher)} "
            "(teacher) examples"
        )
    own, owner, theirs, number = ([np.zeros(0, np.int64)] for _ in range(4))
    before = 0
    for b, example in enumerate(examples):
        size, pieces = example.tokens, len(example.student_id_S)
        own.append(student.predicting(np.full(pieces, b), np.arange(pieces)))
        owner.append(example.owner_S + before)
        theirs.append(teacher.predicting(np.full(size, b), np.arange(size)))
        number.append(np.full(size, b))
        before += size
    own_S, owner_S, row_T, example_T = (np.concatenate(parts) for parts in (own, owner, theirs, number))
    counted_T = row_T >= 0
    keep_T = counted_T.copy()
    keep_T[owner_S[own_S < 0]] = False
    keep_T &= np.bincount(owner_S, minlength=len(keep_T)) > 0
    place_T = np.cumsum(keep_T) - 1
    keep_S = keep_T[owner_S]
    return SplitRows(
        student_row_P=torch.from_numpy(own_S[keep_S]),
        owner_P=torch.from_numpy(place_T[owner_S[keep_S]]),
        teacher_row_N=torch.from_numpy(row_T[keep_T]),
        example_N=torch.from_numpy(example_T[keep_T]),
        unpredicted=int(counted_T.sum() - keep_T.sum()),
    )


def pooled(part_PX: Tensor, owner_P: Tensor, rows: int, how: Literal["sum", "mean"] = "sum") -> Tensor:
    """Return the sum or mean of the pieces' logits (or hidden states) of each token, (N, X)."""
    total_NX = part_PX.new_zeros(rows, part_PX.shape[1]).index_add(0, owner_P, part_PX)
    if how == "sum":
        return total_NX
    return total_NX / owner_P.bincount(minlength=rows).clamp(min=1).unsqueeze(-1)


def reduce_rows(
    student_MV: Tensor,
    teacher_LW: Tensor,
    split: SplitRows,
    vocabulary: SharedVocabulary,
    *,
    how: Literal["sum", "mean"] = "sum",
    weight_L: Tensor | None = None,
    group_L: Tensor | None = None,
) -> Rows:
    """Rows of all of the teacher's counted tokens over the shared tokens: the student's are its pieces' pooled.

    The sum (the paper's) or mean of the pieces' logits is a heuristic, not the distribution of a whole token; where a
    token is one piece it is the student's own. Renormalised over the shared tokens, as `match_rows`.

    Paper: Kolesnikova et al. 2022, arXiv:2205.02340, section 3 (REDUCE).
    Shapes: rows (N, C).
    """
    part_PC = columns_of(student_MV, split.student_row_P, vocabulary.student_C)
    teacher_NC = columns_of(teacher_LW.detach(), split.teacher_row_N, vocabulary.teacher_C)
    return Rows(
        student=pooled(part_PC, split.owner_P, len(split), how),
        teacher=teacher_NC.to(part_PC.dtype),
        weight=None if weight_L is None else weight_L[split.teacher_row_N],
        group=None if group_L is None else group_L[split.teacher_row_N],
    )


class PieceMap:
    """The student's logits as logits of the teacher's whole vocabulary (REDUCE-MAP): each token its pieces' sum.

    Tokens that the student cannot write (and special ones it lacks) have no column.

    Args:
        splitter: what the pieces are.
        how: "sum" (the paper's) or "mean" of the pieces' logits.
    """

    def __init__(self, splitter: TokenSplitter, how: Literal["sum", "mean"] = "sum"):
        unknown = splitter.student.unknown
        places: list[int] = []
        pieces: list[int] = []
        factors: list[float] = []
        kept: list[int] = []
        for token in range(len(splitter.teacher)):
            parts = splitter.pieces(token)
            if not parts or unknown in parts:
                continue
            places += [len(kept)] * len(parts)
            pieces += parts
            factors += [1.0 if how == "sum" else 1 / len(parts)] * len(parts)
            kept.append(token)
        self.teacher_C = torch.tensor(kept, dtype=torch.long)
        """The teacher's token of each column."""
        size = (len(kept), len(splitter.student))
        self._piece_CV = torch.sparse_coo_tensor(
            torch.tensor([places, pieces]).reshape(2, -1), torch.tensor(factors), size, check_invariants=True
        ).coalesce()

    def __call__(self, student_NV: Tensor) -> Tensor:
        """Return (N, C) logits, columns as `teacher_C`. Logits must be finite: a matrix product makes NaN of 0 · inf."""
        matrix = self._piece_CV.to(device=student_NV.device, dtype=student_NV.dtype)
        teacher_CN: Tensor = torch.sparse.mm(matrix, student_NV[:, : matrix.shape[1]].T)
        return teacher_CN.T
