"""Aligned predictions of two vocabularies → Rows that any loss compares.

Shapes: N aligned rows, V and W columns of the student's and the teacher's logits, C shared columns, M and L rows of
their logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from distill.errors import AlignmentError
from distill.losses import Rows
from distill.losses.precision import wide  # type: ignore[import-not-found]

from .batch_rows import AlignedChunks, AlignedRows
from .shared_vocabulary import SharedVocabulary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

MARGIN = 1e-6
"""How far from certain a chunk is at least, in nats over the temperature: log(1 − p) must have a gradient."""


@dataclass(frozen=True)
class SharedHead:
    """The columns of two heads that one tokenizer has tokens for, where the heads are padded to different widths.

    Padding columns are never trained and name nothing. Over the tokens both distributions are compared exactly, as if
    the padding were −inf on both sides. Heads of one width are compared whole.

    Attributes:
        student: the width of the student's head.
        teacher: the width of the teacher's.
        tokens: one more than the tokenizer's largest id.

    Raises:
        AlignmentError: a head is narrower than the tokenizer needs while the other is not as narrow.
    """

    student: int
    teacher: int
    tokens: int

    def __post_init__(self) -> None:
        if self.student != self.teacher and min(self.student, self.teacher) < self.tokens:
            raise AlignmentError(
                f"heads of {self.student:,} (student) and {self.teacher:,} (teacher) columns cannot be compared over "
                f"the tokenizer's {self.tokens:,} tokens: one has no columns for the last of them"
            )

    @property
    def columns(self) -> int:
        """How many columns are compared."""
        return self.student if self.student == self.teacher else self.tokens

    def describe(self) -> str | None:
        """Say once what is done; None if nothing is."""
        if self.student == self.teacher:
            return None
        return (
            f"the heads have {self.student:,} (student) and {self.teacher:,} (teacher) columns: compared over the "
            f"tokenizer's {self.tokens:,} tokens, the padding left out"
        )


def same_rows(
    student_NV: Tensor,
    teacher_NW: Tensor,
    head: SharedHead,
    *,
    label_N: Tensor | None = None,
    weight_N: Tensor | None = None,
    group_N: Tensor | None = None,
) -> Rows:
    """Rows of two models with the same tokenizer that read the same batch.

    Raises:
        AlignmentError: the logits are not of the same rows, or not of these heads.
    """
    if len(student_NV) != len(teacher_NW):
        raise AlignmentError(
            f"teacher and student must predict the same tokens: student {tuple(student_NV.shape)}, "
            f"teacher {tuple(teacher_NW.shape)}"
        )
    _check_widths(student_NV, teacher_NW, head.student, head.teacher)
    return Rows(
        student=student_NV[:, : head.columns],
        teacher=teacher_NW[:, : head.columns],
        label=label_N,
        weight=weight_N,
        group=group_N,
    )


def match_rows(
    student_MV: Tensor,
    teacher_LW: Tensor,
    aligned: AlignedRows,
    vocabulary: SharedVocabulary,
    *,
    weight_M: Tensor | None = None,
    group_M: Tensor | None = None,
) -> Rows:
    """Rows over the shared tokens alone: a softmax over them says which of these comes, given that one does.

    Paper: Kolesnikova et al. 2022, arXiv:2205.02340 (MATCH); see `matching_rows` for the positions.
    Shapes: rows (N, C). The label is the token's column.
    """
    student_NC = columns_of(student_MV, aligned.student_row_N, vocabulary.student_C)
    teacher_NC = columns_of(teacher_LW.detach(), aligned.teacher_row_N, vocabulary.teacher_C)
    return _rows(student_NC, teacher_NC, aligned, aligned.column_N, weight_M, group_M)


def shared_rows(
    student_MV: Tensor,
    teacher_LW: Tensor,
    aligned: AlignedRows,
    vocabulary: SharedVocabulary,
    *,
    temperature: float = 1.0,
    weight_M: Tensor | None = None,
    group_M: Tensor | None = None,
) -> Rows:
    """Rows over the shared tokens and one more column for "any other": nothing is renormalised.

    The last column is T · log Σ exp(z / T) over a side's other tokens, −inf where it has none; columns that pad a head
    beyond its tokens are left out. A divergence at the
    same temperature T is then exactly that of the two coarse-grained distributions, never more than the whole ones'.

    The last column says the same on both sides only as far as the other tokens do. A tokenizer of long pieces gives most
    of its probability to tokens that one of short pieces would begin with a shared token: there `match_rows` or
    `chunk_rows` teaches better.

    Shapes: rows (N, C + 1), or (N, C) where neither side has another token. The label is the token's column.
    Units: `temperature` is the one of the loss that will compare the rows.
    """
    teacher_LW = teacher_LW.detach()
    student_NC = columns_of(student_MV, aligned.student_row_N, vocabulary.student_C)
    teacher_NC = columns_of(teacher_LW, aligned.teacher_row_N, vocabulary.teacher_C)
    student_NR = columns_of(student_MV, aligned.student_row_N, vocabulary.student_rest_R)
    teacher_NR = columns_of(teacher_LW, aligned.teacher_row_N, vocabulary.teacher_rest_R)
    if student_NR.shape[1] or teacher_NR.shape[1]:
        student_NC = torch.cat([student_NC, _rest(student_NR, temperature)], -1)
        teacher_NC = torch.cat([teacher_NC, _rest(teacher_NR, temperature)], -1)
    return _rows(student_NC, teacher_NC, aligned, aligned.column_N, weight_M, group_M)


def span_rows(
    student_MV: Tensor,
    teacher_LW: Tensor,
    aligned: AlignedRows,
    *,
    weight_M: Tensor | None = None,
    group_M: Tensor | None = None,
) -> Rows:
    """Rows of both whole distributions, the columns of different meaning, for losses that sort them.

    Paper: Boizard et al. 2024 (ULD), arXiv:2402.12030; Cui et al. 2024 (Multi-Level OT), arXiv:2412.14528; see
        `starting_rows` for the positions.
    Shapes: rows (N, max(V, W)), −inf where a vocabulary is the smaller. The label is the student's token.
    Relations: `SortedTransport`, `MultiLevelTransport` (group_M: the sequence), `Labels`. A divergence that takes
        column i for the same token on both sides means nothing here.
    """
    width = max(student_MV.shape[1], teacher_LW.shape[1])
    student_NV, teacher_NV = (
        torch.nn.functional.pad(logits.index_select(0, row_N), (0, width - logits.shape[1]), value=-math.inf)
        for logits, row_N in (
            (student_MV, aligned.student_row_N),
            (teacher_LW.detach(), aligned.teacher_row_N),
        )
    )
    return _rows(student_NV, teacher_NV, aligned, aligned.label_N, weight_M, group_M)


def chunk_rows(
    student_MV: Tensor,
    teacher_LW: Tensor,
    aligned: AlignedChunks,
    *,
    temperature: float = 100.0,
    starts_word: tuple[Tensor, Tensor] | None = None,
    weight_M: Tensor | None = None,
    group_M: Tensor | None = None,
) -> Rows:
    """Rows of two columns: the chunk comes, with probability p^(1/τ), or it does not.

    p is the product of the probabilities of the chunk's tokens; the columns are ℓ/τ and log(1 − e^{ℓ/τ}) with
    ℓ = log p. `ForwardKL` of these rows is ALM's binary loss as a true divergence, 0 at equality: the published code
    leaves out the teacher's entropy. As τ grows, τ · KL goes to (y − x) + y log(x/y) of x = ℓ_S, y = ℓ_T.

    Paper: Minixhofer et al. 2025 (ALM), arXiv:2503.20083, section 3.
    Shapes: rows (N, 2); N chunks. No matrix of the vocabulary's width but the logits.
    Units: log-probabilities, at most −MARGIN.

    Args:
        student_MV: logits.
        teacher_LW: logits.
        aligned: the chunks, see `chunk_tokens`.
        temperature: τ.
        starts_word: (V,) and (W,) booleans, `TokenSurfaces.starts_word_V`; with them the word-boundary correction is
            made where the text goes on with a new word: ℓ is of the chunk and of a word's end after it, so that
            a token that is a whole word and the same letters as a beginning are comparable.
        weight_M: the weight of each row of the student's logits; a chunk has that of its first token.
        group_M: likewise the group.
    """
    columns = []
    for logits, row_K, id_K, chunk_K, next_N, begins_V in (
        (
            student_MV,
            aligned.student_row_K,
            aligned.student_id_K,
            aligned.student_chunk_K,
            aligned.student_next_N,
            starts_word[0] if starts_word else None,
        ),
        (
            teacher_LW.detach(),
            aligned.teacher_row_K,
            aligned.teacher_id_K,
            aligned.teacher_chunk_K,
            aligned.teacher_next_N,
            starts_word[1] if starts_word else None,
        ),
    ):
        normaliser_M = wide(logits).logsumexp(-1)
        token_K = wide(logits[row_K, id_K]) - normaliser_M[row_K]
        log_N = token_K.new_zeros(len(aligned)).index_add(0, chunk_K, token_K)
        if begins_V is not None:
            ends = (next_N >= 0).nonzero().squeeze(-1)
            row = next_N[ends]
            begins_NV = logits.index_select(0, row)[:, begins_V.nonzero().squeeze(-1)]
            log_N = log_N.index_add(0, ends, _log_sum(wide(begins_NV)) - normaliser_M[row])
        columns.append(_comes_or_not(log_N / temperature))
    student_N2, teacher_N2 = columns
    return _weighted(student_N2, teacher_N2, None, aligned.student_row_N, weight_M, group_M)


def _comes_or_not(log_N: Tensor) -> Tensor:
    """Log p and log(1 − p) of log p, (N, 2)."""
    log_N = log_N.clamp(max=-MARGIN)
    # Each form where it keeps its digits; `where` would let the other's gradient through as 0 · inf.
    likely_N = log_N > -math.log(2)
    near_N = (-torch.expm1(log_N.where(likely_N, -1.0))).log()
    far_N = torch.log1p(-log_N.where(~likely_N, -1.0).exp())
    return torch.stack([log_N, near_N.where(likely_N, far_N)], -1)


def columns_of(logits: Tensor, row_N: Tensor, ids_C: NDArray[np.int64]) -> Tensor:
    """Return some rows and some columns of logits, (N, C).

    Raises:
        AlignmentError: the logits have no such column.
    """
    largest = int(ids_C.max(initial=-1))
    if largest >= logits.shape[1]:
        raise AlignmentError(
            f"logits of shape {tuple(logits.shape)} have no column for the token {largest}; are they of this tokenizer?"
        )
    return logits.index_select(0, row_N).index_select(1, torch.as_tensor(ids_C, device=logits.device))


def _rest(logits_NR: Tensor, temperature: float) -> Tensor:
    """T log Σ exp(z/T), (N, 1)."""
    return (temperature * _log_sum(wide(logits_NR) / temperature)).unsqueeze(-1)


def _log_sum(logits_NR: Tensor) -> Tensor:
    """Log Σ exp(z), (N,): −inf of nothing but −inf, without the NaN that logsumexp has for a gradient there."""
    if not logits_NR.shape[1]:
        return logits_NR.new_full(logits_NR.shape[:1], -math.inf)
    empty_N = logits_NR.detach().amax(-1) == -math.inf
    sum_N: Tensor = logits_NR.masked_fill(empty_N.unsqueeze(-1), 0.0).logsumexp(-1)
    return sum_N.masked_fill(empty_N, -math.inf)


def _rows(
    student_NC: Tensor,
    teacher_NC: Tensor,
    aligned: AlignedRows,
    label_N: Tensor,
    weight_M: Tensor | None,
    group_M: Tensor | None,
) -> Rows:
    return _weighted(student_NC, teacher_NC, label_N, aligned.student_row_N, weight_M, group_M)


def _weighted(
    student_NC: Tensor,
    teacher_NC: Tensor,
    label_N: Tensor | None,
    row_N: Tensor,
    weight_M: Tensor | None,
    group_M: Tensor | None,
) -> Rows:
    return Rows(
        student=student_NC,
        teacher=teacher_NC.to(student_NC.dtype),
        label=label_N,
        weight=None if weight_M is None else weight_M[row_N],
        group=None if group_M is None else group_M[row_N],
    )


def _check_widths(student_NV: Tensor, teacher_NW: Tensor, student: int, teacher: int) -> None:
    if (student_NV.shape[1], teacher_NW.shape[1]) != (student, teacher):
        raise AlignmentError(
            f"logits of {student_NV.shape[1]} (student) and {teacher_NW.shape[1]} (teacher) columns are not of the "
            f"heads of {student} and {teacher}"
        )
