"""What a tokenizer's model needs beside the tokens that occur: letters, bytes, and the parts of BPE's tokens."""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from distill.models.tokenizer_layout import byte_level

WORD_START = "▁"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def ordinary_letters(layout: Mapping[str, Any]) -> set[str]:
    """The letters, as tokens write them, that a tokenizer must be able to read whatever texts it is made for."""
    if byte_level(layout):
        from tokenizers.pre_tokenizers import ByteLevel

        return set(ByteLevel.alphabet())
    return {*string.printable, WORD_START}


def added_parts(layout: Mapping[str, Any], letters: Iterable[str]) -> Iterator[str]:
    """Tokens without which words of these letters could not be read, or would be cut differently; some may not exist."""
    model = layout["model"]
    yield from letters
    if model["type"] == "WordPiece":
        yield from (model["continuing_subword_prefix"] + letter for letter in letters)
    if model["type"] == "Unigram":
        yield min(model["vocab"], key=lambda piece: piece[1])[0]
    if model.get("byte_fallback"):
        yield from BYTES
    if model.get("unk_token") is not None:
        yield model["unk_token"]


def usefulness(model: Mapping[str, Any], words: Callable[[str], Sequence[Any]] | None) -> list[str]:
    """All tokens, the most useful first: as training found them, or by Unigram's score.

    WordPiece tokens that no text gives come last: BERT's first thousand are mostly "[unused0]" and its like, which
    `words`, the tokenizer's cut into words (None: texts are left whole), would take apart.
    """
    if model["type"] == "Unigram":
        return [piece for piece, _ in sorted(model["vocab"], key=lambda piece: -piece[1])]
    names = sorted(model["vocab"], key=model["vocab"].__getitem__)
    if model["type"] == "WordPiece" and words is not None:
        inside = model["continuing_subword_prefix"]
        names.sort(key=lambda name: len(words(name.removeprefix(inside))) > 1)
    return names


def parts_of(model: Mapping[str, Any]) -> Callable[[str], set[str]]:
    """A function from a token to the tokens that BPE merges on its way to it; none for other kinds.

    The merges inside of a token are the same wherever it stands: none reaches over its ends, or it would not have come
    to be, and of those inside always the earliest is next. So it is enough to merge the token alone. A token that
    merges do not lead to (an added one, a byte) has no parts.
    """
    if model["type"] != "BPE":
        return lambda token: set()
    rank = {tuple(pair): number for number, pair in enumerate(model["merges"])}
    vocabulary = model["vocab"]

    def parts(token: str) -> set[str]:
        symbols = list(token)
        seen = set(symbols)
        while len(symbols) > 1:
            pairs = list(itertools.pairwise(symbols))
            # The leftmost of the earliest.
            at = min(range(len(pairs)), key=lambda i: rank.get(pairs[i], len(rank)))
            if pairs[at] not in rank:
                break
            symbols[at : at + 2] = ["".join(pairs[at])]
            seen.add(symbols[at])
        return seen & vocabulary.keys() if symbols == [token] else set()

    return parts
