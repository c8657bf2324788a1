"""The training texts of a run: what decides which tokens a student needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill.tasks import TaskData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from distill.recipe import Recipe


# A fast tokenizer keeps offsets and pieces of everything in one call: batches bound that memory.
BATCH = 4096


class Corpus:
    """The training examples of all tasks of a run, uncut.

    All tasks together, so that a run's students are one architecture and can share their embeddings. Uncut, so that
    a tokenizer with these tokens alone gives the same pieces, and cuts the same ones off. No validation or diagnostic
    example is looked at.

    Args:
        recipe: says which training examples there are.
        data: the tasks of the run.
    """

    def __init__(self, recipe: Recipe, data: Sequence[TaskData]):
        self.digests = {task.task.name: task.sha256 for task in data}
        self._recipe = recipe
        self._data = data
        self._tokens: dict[str, frozenset[int]] = {}

    def tokens(self, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
        """The ids of all tokens that occur."""
        name = name_of(tokenizer)
        if name not in self._tokens:
            wanted = self._recipe.data
            used: set[int] = set()
            for data in self._data:
                training = data.task.training_examples(
                    data.train, negatives=wanted.negatives, seed=wanted.seed
                )
                texts = list(
                    dict.fromkeys(
                        text for example in training for pair in example.texts for text in pair if text
                    )
                )
                for start in range(0, len(texts), BATCH):
                    made = tokenizer(texts[start : start + BATCH], add_special_tokens=False, verbose=False)
                    used.update(*made["input_ids"])
            self._tokens[name] = frozenset(used)
        return self._tokens[name]


def name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """What tells tokenizers of different vocabularies apart, in one process."""
    return f"{type(tokenizer).__name__}-{hash(frozenset(tokenizer.get_vocab().items()))}"
