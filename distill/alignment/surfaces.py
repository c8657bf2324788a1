"""What every token of a vocabulary stands for, in bytes, whatever way its tokenizer has of writing that.

Shapes: V token ids.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.errors import AlignmentError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

_ROLES = ("bos", "eos", "cls", "sep", "pad", "mask")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, eq=False)
class TokenSurfaces:
    """The bytes that each token of one tokenizer stands for.

    A surface is the same for the same piece of text in every tokenizer: `Ġcat` of a byte-level tokenizer, `▁cat` of
    SentencePiece and `cat` of WordPiece are all `b" cat"`, and `##cat` and a byte-level `cat` are both `b"cat"`: a
    leading space says that the token starts a word. A punctuation mark of WordPiece is always a token of its own,
    after a space or not, and is taken to be the one that starts no word.

    Attributes:
        surface_V: the surface; None for special tokens, the unknown token, and ids that no token has.
        written_V: the bytes it covers in a text: the surface, without the space where the tokenizer drops spaces.
        length_V: how many those are.
        special: the names of special tokens.
        unknown: the id for what the vocabulary cannot spell, or None.
        role: the ids of the special tokens that transformers has a name for: bos, eos, cls, sep, pad, mask.
        of_byte: the ids of tokens that are there to spell one byte of what has no other token (byte fallback).
    """

    surface_V: tuple[bytes | None, ...]
    written_V: tuple[bytes, ...]
    length_V: NDArray[np.int64]
    special: Mapping[int, str]
    unknown: int | None
    role: Mapping[str, int]
    of_byte: frozenset[int]

    def __len__(self) -> int:
        """Return V, one more than the largest id."""
        return len(self.surface_V)

    @property
    def end(self) -> int | None:
        """The id that ends a text, or None."""
        return self.role.get("eos", self.role.get("sep"))

    @cached_property
    def starts_word_V(self) -> NDArray[np.bool_]:
        """Whether a token begins with whitespace, or starts a word where spaces are no part of tokens, or ends a text."""
        starts = [surface is not None and surface[:1].isspace() for surface in self.surface_V]
        if self.end is not None:
            starts[self.end] = True
        return np.array(starts, dtype=bool)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TokenSurfaces:
        """Read the surfaces out of a fast tokenizer.

        Raises:
            AlignmentError: a slow tokenizer, or one whose tokens mark the ends of words.
        """
        if not tokenizer.is_fast:
            raise AlignmentError(
                f"{type(tokenizer).__name__} is a slow tokenizer and cannot say which bytes its tokens stand for; "
                "convert it to a tokenizer.json"
            )
        layout: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        if layout["model"].get("end_of_word_suffix"):
            raise AlignmentError(
                f"{type(tokenizer).__name__} marks where words end ({layout['model']['end_of_word_suffix']!r}), not "
                "where they start: its tokens cannot be compared with another vocabulary's"
            )
        read = _Writing(layout)
        vocabulary = tokenizer.get_vocab()
        size = 1 + max(vocabulary.values(), default=-1)
        surface_V: list[bytes | None] = [None] * size
        written_V = [b""] * size
        added = {token["id"]: token for token in layout["added_tokens"]}
        special = {number: token["content"] for number, token in added.items() if token["special"]}
        unknown = _unknown(layout["model"], vocabulary)
        for name, number in vocabulary.items():
            if number in special:
                # A text that holds the name of a special token is read as that token.
                written_V[number] = name.encode()
            elif number != unknown:
                surface, written = (name.encode(),) * 2 if number in added else read(name)
                surface_V[number], written_V[number] = surface, written
        found = {name: getattr(tokenizer, f"{name}_token_id") for name in _ROLES}
        role = {name: number for name, number in found.items() if number is not None}
        lengths = np.fromiter(map(len, written_V), np.int64, size)
        of_byte = frozenset(
            number for name, number in vocabulary.items() if read.fallback and _BYTE_TOKEN.fullmatch(name)
        )
        return cls(tuple(surface_V), tuple(written_V), lengths, special, unknown, role, of_byte)


def _unknown(model: Mapping[str, Any], vocabulary: Mapping[str, int]) -> int | None:
    """What the model itself gives for what it cannot spell; what transformers calls so, it may never give."""
    number: int | None = model.get("unk_id")
    return number if number is not None else vocabulary.get(model.get("unk_token") or "")


class _Writing:
    """How one tokenizer writes bytes and word starts into the names of its tokens."""

    def __init__(self, layout: Mapping[str, Any]):
        model = layout["model"]
        parts = [part for name in ("normalizer", "pre_tokenizer", "decoder") for part in _parts(layout[name])]
        kinds = {part["type"] for part in parts}
        self.byte_of = _byte_of_letter() if "ByteLevel" in kinds else None
        self.words = model.get("type") in ("WordPiece", "WordLevel")
        self.inside = model.get("continuing_subword_prefix") or ""
        self.fallback = bool(model.get("byte_fallback")) or "ByteFallback" in kinds
        self.space = next((part["replacement"] for part in parts if part["type"] == "Metaspace"), "▁")

    def __call__(self, name: str) -> tuple[bytes, bytes]:
        """Return a token's surface and the bytes it covers in a text."""
        if self.words:
            if self.inside and name.startswith(self.inside) and name != self.inside:
                inside = name.removeprefix(self.inside).encode()
                return inside, inside
            written = name.encode()
            return (written if _is_punctuation(name) else b" " + written), written
        if self.byte_of is not None:
            byte_of = self.byte_of
            if all(letter in byte_of for letter in name):
                surface = bytes(byte_of[letter] for letter in name)
                return surface, surface
        elif self.fallback and (found := _BYTE_TOKEN.fullmatch(name)):
            surface = bytes([int(found[1], 16)])
            return surface, surface
        surface = name.replace(self.space, " ").encode()
        return surface, surface


def _parts(component: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Every part of a normalizer, pre-tokenizer or decoder, out of their sequences."""
    if component is None:
        return
    yield component
    for key in ("normalizers", "pretokenizers", "decoders"):
        for part in component.get(key, ()):
            yield from _parts(part)


def _is_punctuation(name: str) -> bool:
    """Whether BERT's pre-tokenizer makes a token of this letter alone, whatever stands around it."""
    if len(name) != 1:
        return False
    ascii_mark = name.isascii() and name.isprintable() and not name.isalnum() and name != " "
    return ascii_mark or unicodedata.category(name).startswith("P")


def _byte_of_letter() -> dict[str, int]:
    """The printable letters that byte-level tokenizers write bytes as (GPT-2's table)."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(own)]
    return {chr(byte): byte for byte in own} | {chr(256 + n): byte for n, byte in enumerate(others)}
