"""Several teachers that speak as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from distill.errors import ModelError
from distill.models.batch import Batch
from distill.models.prediction import Prediction
from distill.models.teacher import Teacher

if TYPE_CHECKING:
    from distill.losses import Ensemble


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
            raise ModelError("teacher.members: have different tokenizers; their logits cannot be averaged")

    def reading(self, tokens: Sequence[int]) -> EnsembleTeacher:
        """The same teachers for batches in a student's token ids, see `Teacher.reading`."""
        return EnsembleTeacher([member.reading(tokens) for member in self.members], self.mean)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Prediction:
        """The mean of all members' logits."""
        return Prediction(self.mean([member(batch).logits_NC for member in self.members]))
