"""Which bytes of a text each token covers.

Shapes: T tokens of one text, special tokens left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .surfaces import TokenSurfaces

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

    Integers = NDArray[np.int64]

_SPACE = np.array([chr(point).isspace() for point in range(0x3001)])


class SourceText:
    """A text as both tokenizers were given it, and the tables that say where its characters are.

    Args:
        text: what was tokenized, before any normalisation.
    """

    def __init__(self, text: str):
        self.text = text
        self.bytes = text.encode()

    @cached_property
    def _points(self) -> NDArray[np.uint32]:
        return np.frombuffer(self.text.encode("utf-32-le"), np.uint32)

    @cached_property
    def _widths(self) -> Integers:
        points = self._points
        return 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)

    def byte_at(self, character: Integers) -> Integers:
        """Where characters begin, in bytes."""
        return character if len(self.bytes) == len(self.text) else self._begins[character]

    @cached_property
    def _begins(self) -> Integers:
        return np.concatenate(([0], np.cumsum(self._widths)))

    @cached_property
    def ink(self) -> Integers:
        """How many of the bytes before each byte are not of whitespace, (bytes + 1,)."""
        points = self._points
        space = _SPACE[np.minimum(points, len(_SPACE) - 1)] & (points < len(_SPACE))
        if len(self.bytes) != len(self.text):
            space = np.repeat(space, self._widths)
        return np.concatenate(([0], np.cumsum(~space)))


@dataclass(frozen=True, eq=False)
class TokenSpans:
    """The tokens of one text, in order, and the bytes of the original text that each covers.

    Spans do not overlap and do not run backwards. What lies between them nobody read: whitespace that the tokenizer
    drops, characters it removes. A token may have no width: the space that SentencePiece puts before a text, or all
    but the last of the tokens that normalisation makes of one character.

    Attributes:
        position_T: where the token is in the model's sequence.
        id_T: the token.
        start_T: the first byte it covers.
        end_T: the byte after the last.
        known_T: whether it reads what it covers: False for the unknown token.
        ink_T: how many bytes that are not whitespace it reads.
        before_T: how many such bytes the text has before the token's end.
        hidden: the tokens without width, by their number, and the bytes they stand for.
        length: bytes of the text.
    """

    position_T: Integers
    id_T: Integers
    start_T: Integers
    end_T: Integers
    known_T: NDArray[np.bool_]
    ink_T: Integers
    before_T: Integers
    hidden: Mapping[int, bytes] = field(repr=False)
    length: int

    def __len__(self) -> int:
        """Return T."""
        return len(self.id_T)

    def moved(self, place_S: Integers) -> TokenSpans:
        """Return the same tokens at other places of a sequence.

        Args:
            place_S: for each place of the sequence that the spans were made of, the new one; −1 leaves its token out.
        """
        place_T = place_S[self.position_T]
        kept = place_T >= 0
        number = np.cumsum(kept) - 1
        return TokenSpans(
            place_T[kept],
            self.id_T[kept],
            self.start_T[kept],
            self.end_T[kept],
            self.known_T[kept],
            self.ink_T[kept],
            self.before_T[kept],
            {int(number[token]): read for token, read in self.hidden.items() if kept[token]},
            self.length,
        )

    def uncovered(self) -> list[tuple[int, int]]:
        """Return the stretches of bytes, [start, end), that no token but the unknown one covers, in order."""
        read = self.known_T
        bounds = np.concatenate(([0], self.end_T[read])), np.concatenate((self.start_T[read], [self.length]))
        return [(start, end) for start, end in zip(*(b.tolist() for b in bounds), strict=True) if start < end]


class TokenReader:
    """Turns what a tokenizer says of a text into byte spans. Made once a tokenizer.

    Args:
        tokenizer: a fast tokenizer of transformers.

    Raises:
        AlignmentError: see `TokenSurfaces.of`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.surfaces = TokenSurfaces.of(tokenizer)

    def encode(self, *texts: str) -> Encoding:
        """Return the tokenizer's own encoding of a text, or of a pair, special tokens included."""
        made: Encoding = self.tokenizer(*texts, verbose=False)[0]
        return made

    def spans(self, encoding: Encoding, *sources: SourceText) -> list[TokenSpans]:
        """Return the spans of each of the texts that an encoding is of.

        Where the tokens written one after the other are the text, or a stretch of it if it was cut, that gives exact
        bytes, also for the parts of one character. Elsewhere the tokenizer's character offsets do.
        """
        id_S = np.array(encoding.ids, dtype=np.int64)
        own_S = np.array(encoding.special_tokens_mask, dtype=bool)
        if len(sources) == 1:
            return [self._of_text(encoding, id_S, np.flatnonzero(~own_S), sources[0])]
        text_S = np.array([-1 if number is None else number for number in encoding.sequence_ids])
        return [
            self._of_text(encoding, id_S, np.flatnonzero(~own_S & (text_S == number)), source)
            for number, source in enumerate(sources)
        ]

    def read(self, text: str) -> TokenSpans:
        """Return the spans of a text that stands alone."""
        return self.spans(self.encode(text), SourceText(text))[0]

    def _of_text(
        self, encoding: Encoding, id_S: Integers, position_T: Integers, source: SourceText
    ) -> TokenSpans:
        id_T = id_S[position_T]
        known_T = np.ones(len(id_T), bool) if self.surfaces.unknown is None else id_T != self.surfaces.unknown
        spans = self._spelled(encoding, id_T, position_T, source) if known_T.all() else None
        start_T, end_T = spans or self._told(encoding, id_T, position_T, source)
        ink_T = np.where(known_T, source.ink[end_T] - source.ink[start_T], 0)
        hidden = {
            int(number): self.surfaces.written_V[id_T[number]] for number in np.flatnonzero(start_T == end_T)
        }
        return TokenSpans(
            position_T, id_T, start_T, end_T, known_T, ink_T, source.ink[end_T], hidden, len(source.bytes)
        )

    def _spelled(
        self, encoding: Encoding, id_T: Integers, position_T: Integers, source: SourceText
    ) -> tuple[Integers, Integers] | None:
        """The spans of tokens that spell a stretch of the text, or None."""
        if not len(id_T):
            return id_T, id_T
        written = [self.surfaces.written_V[token] for token in id_T.tolist()]
        spelled = b"".join(written)
        told = encoding.token_to_chars(int(position_T[0]))
        begin = int(source.byte_at(np.array(told[0] if told else 0)))
        # Some tokenizers do not tell of the whitespace that a token begins with.
        leading = len(written[0]) - len(written[0].lstrip())
        bound = np.concatenate(([0], np.cumsum(self.surfaces.length_V[id_T])))
        for start in range(begin, max(begin - leading, 0) - 1, -1):
            if source.bytes.startswith(spelled, start):
                bound += start
                break
        else:
            if spelled[:1] != b" " or not source.bytes.startswith(spelled[1:], begin):
                return None
            bound = np.maximum(bound - 1, 0) + begin  # the space that SentencePiece puts before a text
        return bound[:-1], bound[1:]

    def _told(
        self, encoding: Encoding, id_T: Integers, position_T: Integers, source: SourceText
    ) -> tuple[Integers, Integers]:
        """The spans that the tokenizer's character offsets give."""
        offset = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)[position_T]
        bound = source.byte_at(np.minimum(offset, len(source.text)))
        start_T, end_T = bound[:, 0].copy(), bound[:, 1].copy()
        overlap = np.flatnonzero(start_T[1:] < end_T[:-1])
        done = -1
        for first in overlap.tolist():
            if first > done:
                done = self._separate(id_T, start_T, end_T, first, source)
        return start_T, end_T

    def _separate(
        self, id_T: Integers, start_T: Integers, end_T: Integers, first: int, source: SourceText
    ) -> int:
        """Divide the bytes that tokens from `first` on share, in place; return the last of these tokens."""
        last, end = first, int(end_T[first])
        while last + 1 < len(id_T) and start_T[last + 1] < end:
            last += 1
            end = max(end, int(end_T[last]))
        begin = int(start_T[first])
        parts = [self.surfaces.written_V[token] for token in id_T[first : last + 1].tolist()]
        spelled, covered = b"".join(parts), source.bytes[begin:end]
        if spelled in (covered, b" " + covered):
            bound = begin - (len(spelled) - len(covered)) + np.cumsum([len(part) for part in parts])
            end_T[first : last + 1] = np.maximum(bound, begin)
            start_T[first + 1 : last + 1] = end_T[first:last]
            return last
        # Normalisation wrote something else. A character belongs to the last of its tokens: only then is it read.
        reached = begin
        for number in range(first, last + 1):
            start_T[number] = max(int(start_T[number]), reached)
            until = end if number == last else min(int(end_T[number]), int(start_T[number + 1]))
            reached = end_T[number] = max(until, int(start_T[number]))
        return last


def read_texts(reader: TokenReader, texts: Sequence[str]) -> list[TokenSpans]:
    """Return the spans of texts that stand alone, encoded together, which is faster."""
    made = reader.tokenizer(list(texts), verbose=False).encodings if len(texts) else []
    return [reader.spans(one, SourceText(text))[0] for one, text in zip(made or [], texts, strict=True)]
