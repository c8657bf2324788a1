"""How much of a validation split stands in training as well."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from operator import itemgetter

from .task import Example


@dataclass(frozen=True, slots=True)
class Overlap:
    """Validation examples that training holds too.

    Texts are compared without regard to case, white space and Unicode's compatible forms (NFKC).

    Attributes:
        examples: all texts of which are those of one training example, in the same places.
        passages: the longest text of which is a training example's longest text, whatever is asked about it. An
            example that is counted in `examples` is counted here too.
    """

    examples: int
    passages: int


def overlap(train: Sequence[Example], validation: Sequence[Example]) -> Overlap:
    """Count what validation has in common with training.

    Labels do not count: an example that training holds under another label is held all the same.
    """

    @cache  # many questions share a passage
    def fingerprint(text: str | None) -> tuple[int, bytes]:
        plain = "" if text is None else normalised(text)
        return len(plain), blake2b(plain.encode("utf-8", "replace"), digest_size=16).digest()

    def whole(example: Example) -> tuple[tuple[int, bytes], ...]:
        return tuple(fingerprint(text) for pair in example.texts for text in pair)

    def passage(example: Example) -> tuple[int, bytes]:
        return max(whole(example), key=itemgetter(0))

    examples, passages = {whole(example) for example in train}, {passage(example) for example in train}
    return Overlap(
        examples=sum(whole(example) in examples for example in validation),
        passages=sum(passage(example) in passages for example in validation),
    )


def normalised(text: str) -> str:
    """The text in one spelling of its letters, in lower case, with single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())
