"""A student and a teacher with different tokens, compared on the texts that both read.

Shapes: B examples, T positions, N aligned rows, V and W columns of the student's and the teacher's logits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from distill.alignment import (
    AlignedExample,
    CountedRows,
    SharedVocabulary,
    SplitRows,
    TokenReader,
    TokenSplitter,
    chunk_rows,
    chunk_tokens,
    match_rows,
    matching_rows,
    reduce_rows,
    shared_rows,
    span_rows,
    split_rows,
    starting_rows,
)
from distill.errors import AlignmentError
from distill.losses import Activations, ModelPair, PairedActivations, Rows, TokenStates
from distill.models import Batch, DataSet, MaskedTokens, Prediction, SparsePrediction
from distill.models.sequences import batch_of, padded, padding_id
from distill.recipe import AlignmentRecipe

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


def whole(said: Prediction | SparsePrediction) -> Tensor:
    """A teacher's logits of all its tokens."""
    if isinstance(said, SparsePrediction):
        raise AlignmentError(
            "a teacher of which only a few tokens a row are known cannot be aligned; keep: full"
        )
    return said.logits_NC


@dataclass(frozen=True)
class Turn:
    """One forward pass.

    Attributes:
        batch: the examples in the student's tokens, on its device.
        epoch: of the batch.
        said: what the student said of it.
        student: asked again where the comparison needs it to read the text otherwise.
        teacher: asked about the same examples in its own tokens.
        models: both models' shapes, where a term looks inside.
        group: of each example, for batch-wise losses; None is one group.
    """

    batch: Batch
    epoch: int
    said: Prediction
    student: Callable[[Batch], Prediction]
    teacher: Callable[[Batch], Prediction | SparsePrediction]
    models: ModelPair | None = None
    group: Sequence[int] | None = None


class Comparison(ABC):
    """The rows on which two models with different tokens can be compared.

    Args:
        own: the examples in the student's tokens.
        theirs: the same examples in the teacher's tokens.
        shift: how far before a token the logits that predict it stand: 1 for a decoder, else 0.
    """

    vocabulary: SharedVocabulary

    def __init__(self, own: DataSet, theirs: DataSet, *, shift: int):
        self.own = own
        self.theirs = theirs
        self.shift = shift

    @abstractmethod
    def rows_of(self, index: Sequence[int], epoch: int) -> int:
        """How many rows these examples make."""

    @abstractmethod
    def rows(self, turn: Turn) -> Rows:
        """The rows of a forward pass."""

    def _read(self, turn: Turn) -> Batch:
        """The examples of a forward pass in the teacher's tokens."""
        return self.theirs.batch(turn.batch.index_B.tolist(), turn.group, epoch=turn.epoch)

    def _counted(self, batch: Batch) -> CountedRows:
        assert batch.rows_BT is not None  # noqa: S101 - of a language model
        return CountedRows(batch.rows_BT.cpu(), self.shift)


class Aligned(Comparison):
    """Comparisons on the groups of tokens that cover the same bytes.

    Args:
        own: the examples in the student's tokens.
        theirs: the same examples in the teacher's tokens.
        examples: their groups.
        shift: how far before a token the logits that predict it stand.
        readers: of the student's and the teacher's tokenizer.
        wanted: which comparison.
        temperature: of the losses that read the rows.
    """

    def __init__(
        self,
        own: DataSet,
        theirs: DataSet,
        examples: Sequence[AlignedExample],
        *,
        shift: int,
        readers: tuple[TokenReader, TokenReader],
        wanted: AlignmentRecipe,
        temperature: float,
    ):
        super().__init__(own, theirs, shift=shift)
        self.examples = examples
        self.wanted = wanted
        self.temperature = temperature
        self._counts: dict[int, int] = {}
        self.surfaces = readers[0].surfaces, readers[1].surfaces
        self.vocabulary = SharedVocabulary.of(*self.surfaces)

    def rows_of(self, index: Sequence[int], epoch: int) -> int:
        """How many rows these examples make."""
        if isinstance(self.own, MaskedTokens):  # hidden anew in every epoch
            return self._count(index, epoch)
        for number in index:
            if number not in self._counts:
                self._counts[number] = self._count([number], epoch)
        return sum(self._counts[number] for number in index)

    def _count(self, index: Sequence[int], epoch: int) -> int:
        return len(self._aligned(self.own.batch(index, epoch=epoch), self.theirs.batch(index, epoch=epoch)))

    def rows(self, turn: Turn) -> Rows:
        """The rows of a forward pass."""
        batch, read = turn.batch, self._read(turn)
        device = batch.index_B.device
        aligned = self._aligned(batch, read).to(device)
        student_NV, teacher_NW = turn.said.logits_NC, whole(turn.teacher(read.to(device)))
        rows = {"weight_M": batch.weight_N, "group_M": batch.group_N}
        if self.wanted.kind == "chunks":
            words = None
            if self.wanted.word_boundaries:
                own, theirs = (
                    torch.from_numpy(surfaces.starts_word_V).to(device) for surfaces in self.surfaces
                )
                words = own, theirs
            return chunk_rows(
                student_NV,
                teacher_NW,
                aligned,
                temperature=self.wanted.chunk_temperature,
                starts_word=words,
                **rows,
            )
        if self.wanted.kind == "spans":
            return span_rows(student_NV, teacher_NW, aligned, **rows)
        if self.wanted.kind == "match":
            return match_rows(student_NV, teacher_NW, aligned, self.vocabulary, **rows)
        return shared_rows(
            student_NV,
            teacher_NW,
            aligned,
            self.vocabulary,
            temperature=self.temperature,
            **rows,
        )

    def _aligned(self, batch: Batch, read: Batch) -> Any:
        groups = [self.examples[i] for i in batch.index_B.tolist()]
        sides = self._counted(batch), self._counted(read)
        if self.wanted.kind == "chunks":
            return chunk_tokens(groups, *sides, self.surfaces if self.wanted.word_boundaries else None)
        if self.wanted.kind == "spans":
            return starting_rows(groups, *sides)
        return matching_rows(groups, *sides, self.vocabulary)


class Reduced(Comparison):
    """The student reads the teacher's tokens, cut into its own pieces (REDUCE).

    Paper: Kolesnikova et al. 2022, arXiv:2205.02340, section 3.

    Args:
        own: the examples in the student's tokens.
        theirs: the same examples in the teacher's tokens.
        tokenizer: the student's.
        readers: of the student's and the teacher's tokenizer.
        wanted: how pieces are pooled.
    """

    def __init__(
        self,
        own: DataSet,
        theirs: DataSet,
        *,
        tokenizer: PreTrainedTokenizerBase,
        readers: tuple[TokenReader, TokenReader],
        wanted: AlignmentRecipe,
    ):
        super().__init__(own, theirs, shift=0)
        surfaces = readers[0].surfaces, readers[1].surfaces
        self.wanted = wanted
        self.vocabulary = SharedVocabulary.of(*surfaces)
        self.splitter = TokenSplitter(*surfaces)
        self._pad = padding_id(tokenizer)

    def rows_of(self, index: Sequence[int], epoch: int) -> int:
        """How many rows these examples make."""
        return len(self._split(self.theirs.batch(index, epoch=epoch))[1])

    def rows(self, turn: Turn) -> Rows:
        """The rows of a forward pass; the student reads twice."""
        device, weight_N = turn.batch.index_B.device, turn.batch.weight_N
        read = self._read(turn)
        pieces, split = self._split(read)
        weight = float(weight_N[0]) if len(weight_N) else 1.0  # of the whole pass
        return reduce_rows(
            turn.student(pieces.to(device)).logits_NC,
            whole(turn.teacher(read.to(device))),
            split.to(device),
            self.vocabulary,
            how=self.wanted.pool,
            weight_L=(read.weight_N * weight).to(device),
            group_L=read.group_N.to(device),
        )

    def _split(self, read: Batch) -> tuple[Batch, SplitRows]:
        """What the student reads in place of the teacher's batch, and which of its rows make one of the teacher's."""
        assert read.rows_BT is not None  # noqa: S101 - of a language model
        lengths = read.inputs["attention_mask"].sum(-1).tolist()
        texts = [ids[:length] for ids, length in zip(read.inputs["input_ids"].tolist(), lengths, strict=True)]
        examples = [self.splitter.split(ids) for ids in texts]
        places = []
        for example, counted in zip(examples, read.rows_BT.tolist(), strict=True):
            places.append([at for at, owner in enumerate(example.owner_S.tolist()) if counted[owner]])
        ids_BT, mask_BT = padded([example.student_id_S.tolist() for example in examples], self._pad)
        inputs = {"input_ids": ids_BT, "attention_mask": mask_BT}
        labels = [0] * sum(map(len, places))
        pieces = batch_of(inputs, read.index_B.tolist(), places, labels, None)
        return pieces, split_rows(examples, self._counted(pieces), self._counted(read))


class CrossAttention(Comparison):
    """The student's tokens attend to the teacher's, in both directions: nothing is aligned (`DualSpace`).

    Paper: Zhang et al. 2024 (DSKD), arXiv:2406.17328.

    Args:
        own: the examples in the student's tokens.
        theirs: the same examples in the teacher's tokens.
        readers: of the student's and the teacher's tokenizer.
    """

    def __init__(self, own: DataSet, theirs: DataSet, *, readers: tuple[TokenReader, TokenReader]):
        super().__init__(own, theirs, shift=1)
        self.vocabulary = SharedVocabulary.of(readers[0].surfaces, readers[1].surfaces)

    @property
    def shared(self) -> tuple[Tensor, Tensor]:
        """The ids of the tokens that both have, the student's and the teacher's."""
        return torch.from_numpy(self.vocabulary.student_C), torch.from_numpy(self.vocabulary.teacher_C)

    def rows_of(self, index: Sequence[int], epoch: int) -> int:
        """The student's own rows."""
        return self.own.rows_of(index, epoch)

    def rows(self, turn: Turn) -> Rows:
        """The rows of a forward pass."""
        batch, said, models = turn.batch, turn.said, turn.models
        read = self._read(turn).to(batch.index_B.device)
        taught = turn.teacher(read)
        if isinstance(taught, SparsePrediction) or taught.activations is None or said.activations is None:
            raise AlignmentError(
                "cross_attention needs a teacher that runs on every batch; leave teacher.cache out"
            )
        assert models is not None and read.rows_BT is not None and batch.rows_BT is not None  # noqa: S101, PT018
        hidden_BTH = next(iter(taught.activations.output.values()))
        tokens = TokenStates(
            hidden=hidden_BTH[read.rows_BT],
            logits=taught.logits_NC,
            target=read.label_N,
            sequence=read.rows_BT.nonzero()[:, 0],
            read=read.inputs["input_ids"][read.rows_BT],
        )
        return Rows(
            student=said.logits_NC,
            label=batch.label_N,
            weight=batch.weight_N,
            group=batch.group_N,
            activations=PairedActivations(
                models,
                said.activations,
                Activations(),
                batch.inputs["attention_mask"],
                batch.rows_BT.flatten().nonzero()[:, 0],
                read=batch.inputs["input_ids"],
                teacher_tokens=tokens,
            ),
        )
