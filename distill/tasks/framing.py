"""Framed texts to token ids: which tokens a character belongs to, and which of a passage are cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill.errors import DataError, ModelError

from .formats import Framed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@contextmanager
def unlimited(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """The tokenizer's backend without truncation and padding; what it had comes back afterwards."""
    backend = tokenizer.backend_tokenizer
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        yield
    finally:
        backend.no_truncation()
        backend.no_padding()
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before a text (BOS, [CLS]) and behind it (EOS, [SEP]).

    Raises:
        ModelError: the tokenizer is a slow one, which does not say which characters a token stands for.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} gives no character offsets, which completions need; "
            f"use the model's fast tokenizer (tokenizer.json)"
        )
    with unlimited(tokenizer):
        made = tokenizer.backend_tokenizer.encode("a", add_special_tokens=True)
    own = [place for place, special in enumerate(made.special_tokens_mask) if not special]
    return made.ids[: own[0]], made.ids[own[-1] + 1 :]


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenized text, without special tokens around it.

    Attributes:
        ids: the token ids.
        starts: the first character of each token. White space that a tokenizer drops belongs to the token behind.
        ends: the character after each token's last one.
    """

    ids: list[int]
    starts: list[int]
    ends: list[int]

    def at(self, character: int) -> int:
        """The first token that holds the character or a later one."""
        return next((place for place, end in enumerate(self.ends) if end > character), len(self.ids))

    def within(self, framed: Framed) -> tuple[int, int]:
        """The tokens that stand for characters of the passage alone: first, and one after the last."""
        start = len(framed.before)
        end = start + len(framed.passage)
        inside = [
            place
            for place, (begins, ends) in enumerate(zip(self.starts, self.ends, strict=True))
            if begins >= start and ends <= end
        ]
        return (inside[0], inside[-1] + 1) if inside else (0, 0)


def tokenized(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    """Tokenize texts as they are: nothing is added, padded or cut."""
    from tokenizers.processors import TemplateProcessing

    backend = tokenizer.backend_tokenizer
    with unlimited(tokenizer):
        # A byte-level post-processor takes white space out of the offsets, on both sides of a token.
        own, backend.post_processor = backend.post_processor, TemplateProcessing("$A", "$A $B", [])
        try:
            made = backend.encode_batch(list(texts), add_special_tokens=False)
        finally:
            backend.post_processor = own
    found = []
    for encoding in made:
        starts, ends, before = [], [], 0
        for start, end in encoding.offsets:
            starts.append(min(start, before))
            before = max(end, before)
            ends.append(before)
        found.append(Tokens(encoding.ids, starts, ends))
    return found


class Room:
    """Keeps count of what has to be cut so that texts fit, and of what does not fit whatever is cut.

    Args:
        max_length: the most tokens of a sequence.
    """

    def __init__(self, max_length: int):
        self.max_length = max_length
        self._worst: tuple[int, str] | None = None

    def cut(self, name: str, length: int, most: int) -> int:
        """How many of at most `most` tokens have to go from a sequence of so many."""
        excess = max(length - self.max_length, 0)
        if excess > most:
            needed = length - most
            if self._worst is None or needed > self._worst[0]:
                self._worst = needed, name
        return min(excess, most)

    def check(self) -> None:
        """Refuse a length into which a question and its answers do not fit.

        Raises:
            DataError: one did not; the line says what length all of them need.
        """
        if self._worst is not None:
            needed, name = self._worst
            raise DataError(
                f"{name}: the question and its answers alone take {needed} tokens, more than max_length "
                f"{self.max_length}; only passages are cut, so raise max_length to {needed} at least"
            )
