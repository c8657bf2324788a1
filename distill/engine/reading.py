"""How models read a task: what they are trained on, and how what they say becomes answers.

Shapes: N examples, C classes or choices, R rows of a language model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from distill.alignment import AlignedExample, SourceText, TokenReader, TokenSpans, align_spans
from distill.engine.inference import predict, token_likelihoods
from distill.errors import ModelError
from distill.models import (
    DataSet,
    EnsembleTeacher,
    Features,
    MaskedTokens,
    NextTokens,
    Student,
    TargetTokens,
    Teacher,
)
from distill.models.recording import unwrapped
from distill.models.sequences import padded, padding_id
from distill.recipe import Architecture, Recipe
from distill.tasks import (
    PLAIN_TEXT,
    Answer,
    EncodedCompletions,
    Example,
    Task,
    encode,
    encode_completions,
    encode_text_to_text,
    scored,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from distill.models.loading import HeadKind
    from distill.progress import Progress

Reader = Student | Teacher | EnsembleTeacher


@dataclass(frozen=True)
class Answers:
    """What a model says about some examples.

    Attributes:
        answers: one an example, in their order.
        truncated: how many inputs lost tokens.
        choice_R: of plain text, the token that the model finds likeliest at each row.
    """

    answers: list[Answer]
    truncated: int
    choice_R: Tensor | None = None


class Reading(ABC):
    """One way of putting a task before a model.

    Args:
        task: what is read.
        max_length: the most tokens of an input.
        batch_size: examples of a forward pass when answering.
    """

    def __init__(self, task: Task, *, max_length: int, batch_size: int):
        self.task = task
        self.max_length = max_length
        self.batch_size = batch_size

    @property
    @abstractmethod
    def head(self) -> HeadKind:
        """The head that the model needs."""

    @abstractmethod
    def examples(self, examples: Sequence[Example], reader: Reader, *, seed: int = 0) -> DataSet:
        """Examples as a model's tokens, to be trained on."""

    @abstractmethod
    def answer(
        self, examples: Sequence[Example], reader: Reader, progress: Progress | None = None
    ) -> Answers:
        """What a model in inference mode says of examples, on the device where it stands."""

    @property
    def speaks(self) -> bool:
        """Whether the model predicts tokens, rather than classes or choices."""
        return self.head not in ("classification", "multiple_choice")

    def with_spans(
        self, examples: Sequence[Example], reader: Reader, *, seed: int = 0
    ) -> tuple[DataSet, list[TokenSpans]]:
        """What `examples` returns, and of each of its texts the bytes that its tokens cover.

        Raises:
            ModelError: the model does not read tokens that could be aligned.
        """
        raise ModelError(f"{self.task.title}: a {self.head} model has no tokens to align")

    def together(
        self, examples: Sequence[Example], own: Student, theirs: Teacher | EnsembleTeacher, *, seed: int
    ) -> tuple[DataSet, DataSet, list[AlignedExample]]:
        """Examples as a student's and as a teacher's tokens, and the groups of both that cover the same bytes.

        Raises:
            ModelError: these models do not read tokens that could be aligned.
        """
        mine, my_spans = self.with_spans(examples, own, seed=seed)
        other, their_spans = self.with_spans(examples, theirs, seed=seed)
        return mine, other, [align_spans(*pair) for pair in zip(my_spans, their_spans, strict=True)]


class Classifying(Reading):
    """An encoder with a classifier, which reads pairs of texts."""

    @property
    def head(self) -> HeadKind:
        """A classifier, or one score a choice."""
        return self.task.kind

    def examples(self, examples: Sequence[Example], reader: Reader, *, seed: int = 0) -> Features:
        """One row an example, or one a choice."""
        encoded = encode(examples, reader.tokenizer, max_length=self.max_length, truncate=self.task.truncate)
        known = [example.label for example in examples if example.label is not None]
        return Features(
            encoded.features,
            known if len(known) == len(examples) else None,
            reader.tokenizer,
            truncated=encoded.truncated,
        )

    def answer(
        self, examples: Sequence[Example], reader: Reader, progress: Progress | None = None
    ) -> Answers:
        """The classes' logits."""
        features = self.examples(examples, reader)
        logits_NC = predict(
            reader, features, batch_size=self.batch_size, device=device_of(reader), progress=progress
        )
        said = [e.answered(logits.tolist()) for e, logits in zip(examples, logits_NC, strict=True)]
        return Answers(said, features.truncated)


class Completing(Reading):
    """A decoder that continues a prompt with each of the answers; the likeliest is its answer.

    It learns the right answer's tokens alone, and an answer's logit is the sum of its tokens' log-probabilities.

    Args:
        chat: whether the prompt is put into the tokenizer's chat template.
    """

    def __init__(self, task: Task, *, max_length: int, batch_size: int, chat: bool = False):
        super().__init__(task, max_length=max_length, batch_size=batch_size)
        self.chat = chat

    @property
    def head(self) -> HeadKind:
        """A language model's."""
        return "causal_lm"

    def examples(self, examples: Sequence[Example], reader: Reader, *, seed: int = 0) -> NextTokens:
        """One row a token of the right answer."""
        return self._learnt(self._encoded(examples, reader, "gold"), reader)

    def with_spans(
        self, examples: Sequence[Example], reader: Reader, *, seed: int = 0
    ) -> tuple[NextTokens, list[TokenSpans]]:
        """The right answers, and the bytes of prompt and answer without what was cut."""
        encoded = self._encoded(examples, reader, "gold")
        tokens = TokenReader(reader.tokenizer)
        made = reader.tokenizer(encoded.texts, add_special_tokens=False, verbose=False).encodings or []
        found = []
        for text, encoding, (before, first, cut) in zip(encoded.texts, made, encoded.cuts, strict=True):
            place = np.arange(len(encoding.ids)) + before
            place[first + cut :] -= cut
            place[first : first + cut] = -1
            found.append(tokens.spans(encoding, SourceText(text))[0].moved(place))
        return self._learnt(encoded, reader), found

    def _encoded(
        self, examples: Sequence[Example], reader: Reader, answers: Literal["gold", "all"]
    ) -> EncodedCompletions:
        return encode_completions(
            self.task, examples, reader.tokenizer, max_length=self.max_length, answers=answers, chat=self.chat
        )

    def _learnt(self, encoded: EncodedCompletions, reader: Reader) -> NextTokens:
        return NextTokens(encoded.input_ids, encoded.counted, reader.tokenizer, truncated=encoded.truncated)

    def answer(
        self, examples: Sequence[Example], reader: Reader, progress: Progress | None = None
    ) -> Answers:
        """The answers' log-probabilities."""
        encoded = self._encoded(examples, reader, "all")
        data = NextTokens(encoded.input_ids, encoded.counted, reader.tokenizer)
        likelihood_R, _ = token_likelihoods(
            reader, data, batch_size=self.batch_size, device=device_of(reader), progress=progress
        )
        rows = [data.rows_of([number]) for number in range(len(data))]
        scores = [float(each.double().sum()) for each in torch.split(likelihood_R, rows)]
        return Answers(scored(self.task, examples, encoded, scores), encoded.truncated)


class Writing(Reading):
    """An encoder–decoder that writes the answer; what is no answer counts as wrong."""

    @property
    def head(self) -> HeadKind:
        """A language model's, behind an encoder."""
        return "seq2seq_lm"

    def examples(self, examples: Sequence[Example], reader: Reader, *, seed: int = 0) -> TargetTokens:
        """One row a token of the text to be written, its end included."""
        encoded = encode_text_to_text(
            self.task, examples, reader.tokenizer, max_length=self.max_length, rows="targets"
        )
        return TargetTokens(
            encoded.source_ids,
            encoded.target_ids,
            reader.tokenizer,
            start=self._start(reader),
            truncated=encoded.truncated,
        )

    def with_spans(
        self, examples: Sequence[Example], reader: Reader, *, seed: int = 0
    ) -> tuple[TargetTokens, list[TokenSpans]]:
        """The texts to be written, and their bytes."""
        asked = set(self.task.questions(examples))
        texts = [
            text
            for place, e in enumerate(examples)
            if place in asked
            for text in self.task.text_to_text(e).targets
        ]
        tokens = TokenReader(reader.tokenizer)
        made = reader.tokenizer(texts, add_special_tokens=False, verbose=False).encodings or []
        spans = [tokens.spans(one, SourceText(text))[0] for one, text in zip(made, texts, strict=True)]
        return self.examples(examples, reader, seed=seed), spans

    def answer(
        self, examples: Sequence[Example], reader: Reader, progress: Progress | None = None
    ) -> Answers:
        """What the model writes, likeliest token by likeliest token."""
        if isinstance(reader, EnsembleTeacher):
            raise ModelError("teacher.members: several encoder–decoders cannot write one answer together")
        encoded = encode_text_to_text(
            self.task, examples, reader.tokenizer, max_length=self.max_length, rows="questions"
        )
        model: Any = unwrapped(reader.model)
        written = [""] * len(encoded.index)
        order = sorted(range(len(written)), key=lambda i: len(encoded.source_ids[i]))
        self._start(reader)
        with torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                index = order[start : start + self.batch_size]
                ids_BT, mask_BT = padded([encoded.source_ids[i] for i in index], padding_id(reader.tokenizer))
                made = model.generate(
                    input_ids=ids_BT.to(model.device),
                    attention_mask=mask_BT.to(model.device),
                    max_new_tokens=encoded.longest_target,
                    do_sample=False,
                    num_beams=1,
                )
                texts = reader.tokenizer.batch_decode(made, skip_special_tokens=True)
                for i, text in zip(index, texts, strict=True):
                    written[i] = text
                if progress is not None:
                    progress.advance(min(start + self.batch_size, len(order)))
        said = [
            self.task.read_answer(examples[i], text) for i, text in zip(encoded.index, written, strict=True)
        ]
        return Answers(said, encoded.truncated)

    def _start(self, reader: Reader) -> int:
        start = getattr(unwrapped(reader.model).config, "decoder_start_token_id", None)
        if start is None:
            raise ModelError(
                "an encoder–decoder's config must say what its decoder begins with: decoder_start_token_id"
            )
        return int(start)


class Predicting(Reading):
    """Plain text: a decoder predicts every token, an encoder the tokens that are hidden from it.

    Args:
        hides: whether tokens are hidden (an encoder) rather than followed (a decoder).
    """

    def __init__(self, task: Task, *, max_length: int, batch_size: int, hides: bool):
        super().__init__(task, max_length=max_length, batch_size=batch_size)
        self.hides = hides

    @property
    def head(self) -> HeadKind:
        """A language model's."""
        return "masked_lm" if self.hides else "causal_lm"

    def examples(self, examples: Sequence[Example], reader: Reader, *, seed: int = 0) -> DataSet:
        """One row a token that is predicted."""
        return self._predicted(self._read(examples, reader), reader, seed)

    def answer(
        self, examples: Sequence[Example], reader: Reader, progress: Progress | None = None
    ) -> Answers:
        """Of each passage: log-likelihood, tokens and bytes of what was predicted."""
        passages = self._read(examples, reader)
        data = self._predicted(passages, reader, seed=0)
        likelihood_R, choice_R = token_likelihoods(
            reader, data, batch_size=self.batch_size, device=device_of(reader), progress=progress
        )
        said, at = [], 0
        for number, example in enumerate(examples):
            rows, sizes = data.rows_of([number]), passages.sizes(number)
            nats = float(likelihood_R[at : at + rows].double().sum())
            size = sum(sizes[token] for token in data.predicted(number))
            said.append(Answer(example.id, example.group, None, (nats, float(rows), float(size))))
            at += rows
        return Answers(said, data.truncated, choice_R)

    def with_spans(
        self, examples: Sequence[Example], reader: Reader, *, seed: int = 0
    ) -> tuple[DataSet, list[TokenSpans]]:
        """The passages, and the bytes of each as far as it was read."""
        passages = self._read(examples, reader)
        return self._predicted(passages, reader, seed), passages.spans(reader)

    def together(
        self, examples: Sequence[Example], own: Student, theirs: Teacher | EnsembleTeacher, *, seed: int
    ) -> tuple[DataSet, DataSet, list[AlignedExample]]:
        """As `Reading.together`; from encoders the same bytes are hidden."""
        if not self.hides:
            return super().together(examples, own, theirs, seed=seed)
        mine, other = self._read(examples, own), self._read(examples, theirs)
        aligned = [align_spans(*pair) for pair in zip(mine.spans(own), other.spans(theirs), strict=True)]
        my_units = [_places(each.student_first_G.tolist(), each.student_count_G.tolist()) for each in aligned]
        their_units = [
            _places(each.teacher_first_G.tolist(), each.teacher_count_G.tolist()) for each in aligned
        ]
        return (
            self._predicted(mine, own, seed, my_units),
            self._predicted(other, theirs, seed, their_units),
            aligned,
        )

    def _predicted(
        self, passages: Passages, reader: Reader, seed: int, units: list[list[list[int]]] | None = None
    ) -> MaskedTokens | NextTokens:
        if self.hides:
            return MaskedTokens(
                passages.ids, reader.tokenizer, seed=seed, units=units, truncated=passages.truncated
            )
        return NextTokens(passages.ids, None, reader.tokenizer, truncated=passages.truncated)

    def _read(self, examples: Sequence[Example], reader: Reader) -> Passages:
        tokenizer = reader.tokenizer
        if not tokenizer.is_fast:
            raise ModelError(
                "plain text needs a fast tokenizer, which says where in the text its tokens stand"
            )
        texts = [example.texts[0][0] for example in examples]
        passages = Passages(texts, tokenizer(texts, verbose=False).encodings or [], [], [])
        for encoding in passages.encodings:
            ids = encoding.ids
            begun = [] if self.hides else begin(ids, tokenizer)
            place = np.arange(len(ids)) + len(begun)
            excess = len(begun) + len(ids) - self.max_length
            if excess > 0:
                # What ends a text (BERT's [SEP]) stays where the model is used to it.
                end = len(ids) - int(ids[-1] in tokenizer.all_special_ids)
                place[end:] -= excess
                place[end - excess : end] = -1
            passages.ids.append([*begun, *(token for token, at in zip(ids, place, strict=True) if at >= 0)])
            passages.places.append(place)
        return passages


@dataclass(frozen=True)
class Passages:
    """Passages of plain text as a model reads them.

    Attributes:
        texts: the passages.
        encodings: what the tokenizer made of each.
        ids: what the model reads: behind a token that begins a text, and cut at the model's length.
        places: where each of an encoding's tokens stands in that; −1 where it was cut.
    """

    texts: list[str]
    encodings: Sequence[Encoding]
    ids: list[list[int]]
    places: list[NDArray[np.int64]]

    @property
    def truncated(self) -> int:
        """How many lost tokens."""
        return sum(bool((place < 0).any()) for place in self.places)

    def spans(self, reader: Reader) -> list[TokenSpans]:
        """The bytes that each token covers."""
        tokens = TokenReader(reader.tokenizer)
        return [
            tokens.spans(encoding, SourceText(text))[0].moved(place)
            for text, encoding, place in zip(self.texts, self.encodings, self.places, strict=True)
        ]

    def sizes(self, number: int) -> list[int]:
        """How many bytes of one passage each of its ids stands for; none for a token that begins or ends it."""
        place = self.places[number]
        kept = [span for span, at in zip(self.encodings[number].offsets, place, strict=True) if at >= 0]
        begun = [0] * (len(self.ids[number]) - len(kept))
        return [*begun, *bytes_of_tokens(self.texts[number], kept)]


def _places(first_G: Sequence[int], count_G: Sequence[int]) -> list[list[int]]:
    """The positions of each group's tokens."""
    return [list(range(first, first + count)) for first, count in zip(first_G, count_G, strict=True)]


def device_of(reader: Reader) -> torch.device:
    """Where a model stands, whatever accelerate has wrapped it in."""
    return next(reader.model.parameters()).device


def begin(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A token to put before a text that begins with none of its own, so that its first token too is predicted."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [] if start is None or (ids and ids[0] == start) else [start]


def bytes_of_tokens(text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """How many bytes of a text belong to each token: those up to its end which no token before it had.

    White space that a tokenizer drops belongs to the token behind it.
    """
    width = [0]
    for character in text:
        width.append(width[-1] + len(character.encode("utf-8", "surrogatepass")))
    sizes, done = [], 0
    for start, end in spans:
        reached = done if start == end else max(width[end], done)  # special tokens stand nowhere
        sizes.append(reached - done)
        done = reached
    return sizes


def reading_for(recipe: Recipe, task: Task) -> Reading:
    """How the models of a recipe read a task."""
    return reading_of(
        recipe.architecture,
        task,
        max_length=recipe.data.max_length,
        batch_size=recipe.train.per_device_eval_batch_size,
        chat=recipe.data.chat,
    )


def reading_of(
    architecture: Architecture, task: Task, *, max_length: int, batch_size: int, chat: bool = False
) -> Reading:
    """How models of an architecture read a task."""
    if task is PLAIN_TEXT:
        return Predicting(task, max_length=max_length, batch_size=batch_size, hides=architecture == "encoder")
    if architecture == "decoder":
        return Completing(task, max_length=max_length, batch_size=batch_size, chat=chat)
    reading = Classifying if architecture == "encoder" else Writing
    return reading(task, max_length=max_length, batch_size=batch_size)
