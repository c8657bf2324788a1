"""Several teachers that speak as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from distill.errors import ModelError
from distill.models.batch import Batch
from distill.models.prediction import Prediction
from distill.models.teacher import Teacher

if TYPE_CHECKING:
    from torch import Tensor

    from distill.losses import Ensemble

UNLIKE = "teacher.members: have different tokenizers; their logits cannot be averaged"


class EnsembleTeacher:
    """Teachers that read the same tokens, all in memory, and the mean of what they say.

    Args:
        members: teachers with one vocabulary.
        mean: how their logits become one teacher's.

    Raises:
        ModelError: the members have different tokenizers.
    """

    def __init__(self, members: Sequence[Teacher], mean: Ensemble):
        self.members = tuple(members)
        self.mean = mean
        self.model = torch.nn.ModuleList(member.model for member in members)
        self.tokenizer = members[0].tokenizer
        vocabulary = self.tokenizer.get_vocab()
        if any(member.tokenizer.get_vocab() != vocabulary for member in members):
            raise ModelError(UNLIKE)

    def member(self, number: int) -> Teacher:
        """One of them."""
        return self.members[number]

    def reading(self, tokens: Sequence[int]) -> EnsembleTeacher:
        """The same teachers for batches in a student's token ids, see `Teacher.reading`."""
        return EnsembleTeacher([member.reading(tokens) for member in self.members], self.mean)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Prediction:
        """The mean of all members' logits."""
        return Prediction(self.mean([member(batch).logits_NC for member in self.members]))


class EnsembleInTurn(EnsembleTeacher):
    """The same of teachers that fit into memory one at a time: each is loaded when it is asked.

    The last one that was asked stays, and the next batch begins with it.

    Args:
        load: of each member a function that loads it.
        mean: how their logits become one teacher's.

    Raises:
        ModelError: when it is asked, and the members have different tokenizers.
    """

    def __init__(self, load: Sequence[Callable[[], Teacher]], mean: Ensemble):
        self.mean = mean
        self._load = tuple(load)
        self._loaded: tuple[int, Teacher] | None = None
        self.tokenizer = self.member(0).tokenizer

    def member(self, number: int) -> Teacher:
        """A member, in memory in place of the one before it."""
        if self._loaded is None or self._loaded[0] != number:
            self._loaded = None
            self._loaded = number, self._load[number]()
        return self._loaded[1]

    def reading(self, tokens: Sequence[int]) -> EnsembleInTurn:
        """The same teachers for batches in a student's token ids, see `Teacher.reading`."""
        return EnsembleInTurn([lambda load=load: load().reading(tokens) for load in self._load], self.mean)  # type: ignore[misc]

    @property
    def model(self) -> torch.nn.Module:  # type: ignore[override]
        """The member that is in memory."""
        assert self._loaded is not None  # noqa: S101 - there always is one
        return self._loaded[1].model

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Prediction:
        """The mean of all members' logits."""
        assert self._loaded is not None  # noqa: S101 - there always is one
        first = self._loaded[0]
        said: dict[int, Tensor] = {}
        for number in (first, *(n for n in range(len(self._load)) if n != first)):
            # No name for the member: it would keep it while the next is loaded.
            if self.member(number).tokenizer.get_vocab() != self.tokenizer.get_vocab():
                raise ModelError(UNLIKE)
            said[number] = self.member(number)(batch).logits_NC
        return Prediction(self.mean([said[number] for number in range(len(self._load))]))
