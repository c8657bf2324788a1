"""Examples to token ids, unpadded, with an exact count of what was cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .framing import unlimited
from .task import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Pair = tuple[str, str | None]
FIELDS = ("input_ids", "attention_mask", "token_type_ids")
# A fast tokenizer keeps offsets and pieces of everything in one call: batches bound that memory.
BATCH = 4096


@dataclass(frozen=True, slots=True)
class Encoded:
    """Encoded examples, in the order they came in.

    Attributes:
        features: for each example one dictionary a choice: input_ids, attention_mask, and token_type_ids if the
            tokenizer makes them. Nothing is padded.
        lengths: the tokens of each example's longest choice, as encoded: what to sort by when batching.
        truncated: how many examples lost at least one token.
    """

    features: list[list[dict[str, list[int]]]]
    lengths: list[int]
    truncated: int


def encode(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    truncate: Literal["only_first", "longest_first"],
) -> Encoded:
    """Encode examples with any transformers tokenizer.

    Args:
        examples: what to encode.
        tokenizer: a fast or slow transformers tokenizer. Where it puts nothing between the texts of a pair
            (GPT-2 and its kin), a line break separates them.
        max_length: the most tokens a pair may have, special tokens included.
        truncate: what is cut from a longer pair: the first text, or whichever is longer, on the tokenizer's
            truncation side. A pair whose second text leaves no room for the first falls back to "longest_first".

    Raises:
        ValueError: `max_length` leaves no room for a token of each text, or `truncate` is not a strategy.
    """
    if truncate not in ("only_first", "longest_first"):
        raise ValueError(f"truncate must be 'only_first' or 'longest_first', got {truncate!r}")
    special = tokenizer.num_special_tokens_to_add(pair=True)
    if max_length < special + 2:
        raise ValueError(f"max_length must be at least {special + 2} for this tokenizer, got {max_length}")
    separator = "" if special > tokenizer.num_special_tokens_to_add(pair=False) else "\n"
    features: list[list[dict[str, list[int]]]] = []
    truncated = 0
    for start in range(0, len(examples), BATCH):
        batch = examples[start : start + BATCH]
        pairs: list[Pair] = [
            (first, None if second is None else separator + second)
            for example in batch
            for first, second in example.texts
        ]
        rows = rows_of_fast if tokenizer.is_fast else rows_of_slow
        made = rows(pairs, tokenizer, max_length, truncate)
        for example in batch:
            choices = [next(made) for _ in example.texts]
            features.append([row for row, _ in choices])
            truncated += any(cut for _, cut in choices)
    lengths = [max(len(row["input_ids"]) for row in choices) for choices in features]
    return Encoded(features, lengths, truncated)


def strategy(truncate: str, second: int, special: int, max_length: int) -> str:
    """How to cut a pair whose second text has so many tokens."""
    return truncate if max_length - special - second >= 1 else "longest_first"


def rows_of_fast(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, max_length: int, truncate: str
) -> Iterator[tuple[dict[str, list[int]], bool]]:
    """Encode pairs, each with whether it was cut.

    Long passages come with many questions, so each text is tokenized once and the pairs are put together by
    the tokenizer's own post-processor: the same ids as a call with pairs, several times sooner.
    """
    backend = tokenizer.backend_tokenizer
    side = tokenizer.truncation_side
    special = {paired: tokenizer.num_special_tokens_to_add(pair=paired) for paired in (True, False)}
    fields = [field for field in FIELDS if field == "attention_mask" or field in tokenizer.model_input_names]
    with unlimited(tokenizer):
        texts = list(dict.fromkeys(text for pair in pairs for text in pair if text is not None))
        encodings = dict(zip(texts, backend.encode_batch(texts, add_special_tokens=False), strict=True))
        rows: list[tuple[dict[str, list[int]], bool]] = [({}, False)] * len(pairs)
        how: dict[str, list[int]] = {}
        for number, (first, second) in enumerate(pairs):
            behind = 0 if second is None else len(encodings[second])
            added = special[second is not None]
            cut = len(encodings[first]) + behind + added > max_length
            how.setdefault(strategy(truncate, behind, added, max_length) if cut else "whole", []).append(
                number
            )
        for chosen, numbers in how.items():
            backend.no_truncation()
            if chosen != "whole":
                backend.enable_truncation(max_length, strategy=chosen, direction=side)
            for number in numbers:
                first, second = pairs[number]
                made = backend.post_process(encodings[first], None if second is None else encodings[second])
                values = (made.ids, made.attention_mask, made.type_ids)
                row = {field: ids for field, ids in zip(FIELDS, values, strict=True) if field in fields}
                rows[number] = (row, chosen != "whole")
    return iter(rows)


def rows_of_slow(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, max_length: int, truncate: str
) -> Iterator[tuple[dict[str, list[int]], bool]]:
    """Encode pairs, each with whether it was cut, by plain calls of the tokenizer."""
    for first, second in pairs:
        # verbose=False: uncut lengths are wanted here, so being told of long ones helps nobody.
        options: dict[str, Any] = {"return_attention_mask": True, "verbose": False}
        made = tokenizer(first, second, **options)
        cut = len(made["input_ids"]) > max_length
        if cut:
            behind = (
                [] if second is None else tokenizer(second, add_special_tokens=False, **options)["input_ids"]
            )
            special = tokenizer.num_special_tokens_to_add(pair=second is not None)
            how = strategy(truncate, len(behind), special, max_length)
            made = tokenizer(first, second, truncation=how, max_length=max_length, **options)
        yield {field: list(made[field]) for field in FIELDS if field in made}, cut
