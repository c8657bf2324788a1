"""How models read a task: what they are trained on, and how what they say becomes answers.

Shapes: N examples, C classes or choices, R rows of a language model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from distill.engine.inference import predict, token_likelihoods
from distill.errors import ModelError
from distill.models import DataSet, EnsembleTeacher, Features, MaskedTokens, NextTokens, Student, Teacher
from distill.recipe import Architecture
from distill.tasks import Answer, Example, Task, encode

if TYPE_CHECKING:
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
        return self._read(examples, reader.tokenizer, seed)[0]

    def answer(
        self, examples: Sequence[Example], reader: Reader, progress: Progress | None = None
    ) -> Answers:
        """Of each passage: log-likelihood, tokens and bytes of what was predicted."""
        data, sizes = self._read(examples, reader.tokenizer, seed=0)
        likelihood_R, choice_R = token_likelihoods(
            reader, data, batch_size=self.batch_size, device=device_of(reader), progress=progress
        )
        said, at = [], 0
        for number, example in enumerate(examples):
            rows = data.rows_of([number])
            nats = float(likelihood_R[at : at + rows].double().sum())
            size = sum(sizes[number][token] for token in data.predicted(number))
            said.append(Answer(example.id, example.group, None, (nats, float(rows), float(size))))
            at += rows
        return Answers(said, data.truncated, choice_R)

    def _read(
        self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, seed: int
    ) -> tuple[MaskedTokens | NextTokens, list[list[int]]]:
        """The data set, and of each passage's tokens how many bytes of it they stand for."""
        if not tokenizer.is_fast:
            raise ModelError(
                "plain text needs a fast tokenizer, which says where in the text its tokens stand"
            )
        texts, sizes, truncated = [], [], 0
        made = tokenizer(
            [example.texts[0][0] for example in examples], return_offsets_mapping=True, verbose=False
        )
        for example, ids, spans in zip(examples, made["input_ids"], made["offset_mapping"], strict=True):
            begun = begin(ids, tokenizer) if not self.hides else []
            if len(begun) + len(ids) > self.max_length:
                truncated += 1
                # What ends a text (BERT's [SEP]) stays where the model is used to it.
                end = [ids[-1]] if ids[-1] in tokenizer.all_special_ids else []
                room = self.max_length - len(begun) - len(end)
                ids, spans = [*ids[:room], *end], [*spans[:room], *[(0, 0)] * len(end)]
            texts.append([*begun, *ids])
            sizes.append([*[0] * len(begun), *bytes_of_tokens(example.texts[0][0], spans)])
        if self.hides:
            return MaskedTokens(texts, tokenizer, seed=seed, truncated=truncated), sizes
        return NextTokens(texts, None, tokenizer, truncated=truncated), sizes


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


def reading_of(architecture: Architecture, task: Task, *, max_length: int, batch_size: int) -> Reading:
    """How models of an architecture read a task."""
    if task.name == "text":
        return Predicting(task, max_length=max_length, batch_size=batch_size, hides=architecture == "encoder")
    if architecture == "encoder":
        return Classifying(task, max_length=max_length, batch_size=batch_size)
    raise NotImplementedError(architecture)
