"""The training texts of a run: what decides which tokens a student needs, or is given."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from distill.models import smaller_tokenizer, train_tokenizer
from distill.recipe import StudentVocabulary
from distill.tasks import PLAIN_TEXT, TaskData
from distill.tasks.completions import chat_frame
from distill.tasks.passages import read_text, text_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from distill.recipe import Recipe


# A fast tokenizer keeps offsets and pieces of everything in one call: batches bound that memory.
BATCH = 4096


class Corpus:
    """The training examples of all tasks of a run, uncut.

    All tasks together, so that a run's students are one architecture and can share their embeddings. Uncut, and in the
    words in which the run's architecture reads them, so that a tokenizer with these tokens alone gives the same
    pieces, and cuts the same ones off. No validation or diagnostic example is looked at.

    Args:
        recipe: says which training examples there are, and which other texts a new tokenizer is made from.
        data: the tasks of the run.
    """

    def __init__(self, recipe: Recipe, data: Sequence[TaskData]):
        self.digests = {task.task.name: task.sha256 for task in data}
        self._recipe = recipe
        self._data = data
        self._tokens: dict[str, frozenset[int]] = {}
        self._tokenizers: dict[tuple[str, int], PreTrainedTokenizerBase] = {}
        self._new: dict[int, PreTrainedTokenizerBase] = {}
        cut = recipe.student.from_teacher
        wanted = cut.vocabulary if cut is not None else None
        path = wanted.texts if isinstance(wanted, StudentVocabulary) else None
        self._beside = [] if path is None else [read_text(file) for file in text_files(path)]
        if self._beside:
            digest = hashlib.sha256()
            for text in self._beside:
                digest.update(hashlib.sha256(text.encode()).digest())
            self.digests["vocabulary.texts"] = digest.hexdigest()

    def tokens(self, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
        """The ids of all tokens that occur."""
        name = name_of(tokenizer)
        if name not in self._tokens:
            texts = self._texts(tokenizer)
            used: set[int] = set()
            for start in range(0, len(texts), BATCH):
                made = tokenizer(texts[start : start + BATCH], add_special_tokens=False, verbose=False)
                used.update(*made["input_ids"])
            self._tokens[name] = frozenset(used)
        return self._tokens[name]

    def tokenizer(self, teacher: PreTrainedTokenizerBase, size: int) -> PreTrainedTokenizerBase:
        """A tokenizer of the teacher's kind made from these texts, and from those named in the recipe beside them."""
        name = name_of(teacher), size
        if name not in self._tokenizers:
            lines = (line for text in self._beside for line in text.splitlines(keepends=True))
            self._tokenizers[name] = smaller_tokenizer(teacher, [*self._texts(teacher), *lines], size)
        return self._tokenizers[name]

    def new_tokenizer(self, size: int) -> PreTrainedTokenizerBase:
        """A tokenizer made from these texts alone, for models that start from a config."""
        if size not in self._new:
            self._new[size] = train_tokenizer(self._texts(None), size)
        return self._new[size]

    def _texts(self, tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
        """Every text once, in the chat frame of a tokenizer that has one."""
        return list(dict.fromkeys(text for text in self._all_texts(tokenizer) if text))

    def _all_texts(self, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[str]:
        wanted = self._recipe.data
        head, tail = chat_frame(tokenizer) if wanted.chat and tokenizer is not None else ("", "")
        for data in self._data:
            task = data.task
            for example in task.training_examples(data.train, negatives=wanted.negatives, seed=wanted.seed):
                if self._recipe.architecture == "encoder" or task is PLAIN_TEXT:
                    yield from (text for pair in example.texts for text in pair if text)
                elif self._recipe.architecture == "decoder":
                    # Every answer: which one is right differs from example to example, and all are asked about.
                    completion = task.completion(example)
                    for answer in completion.answers:
                        yield (
                            head
                            + completion.prompt.text
                            + tail
                            + (answer.lstrip() if wanted.chat else answer)
                        )
                else:
                    pair = task.text_to_text(example)
                    yield pair.source.text
                    yield from pair.targets


def name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """What tells tokenizers of different vocabularies apart, in one process."""
    return f"{type(tokenizer).__name__}-{hash(frozenset(tokenizer.get_vocab().items()))}"
