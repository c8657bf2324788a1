"""Examples to the sources an encoder–decoder reads, and the targets it learns to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from distill.errors import ModelError

from .framing import Room, special_tokens, tokenized
from .task import Example, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Offsets are kept for so many sequences at a time.
BATCH = 1024


@dataclass(frozen=True, slots=True)
class EncodedTextToText:
    """Sources and targets as token ids, unpadded.

    Attributes:
        source_ids: what the encoder reads, with the tokenizer's special tokens; rows of one question share a list.
        target_ids: what the decoder learns to write, with the token that ends it; without the one the model's
            decoder starts from. Empty lists where only sources were asked for.
        index: for each row the position of its example in what was encoded.
        truncated: how many questions lost at least one token.
        longest_target: the tokens of the longest string that an answer may be, its end included: how long a model
            has to be let write.
    """

    source_ids: list[list[int]]
    target_ids: list[list[int]]
    index: list[int]
    truncated: int
    longest_target: int


def encode_text_to_text(
    task: Task,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    rows: Literal["targets", "questions"],
) -> EncodedTextToText:
    """Encode examples for an encoder–decoder.

    A source that is too long loses tokens of its passage from the left; never of the question, the choices or the
    entities. What a model writes for row i is read by `task.read_answer(examples[encoded.index[i]], text)`.

    Args:
        task: whose wording it is.
        examples: what to encode.
        tokenizer: a fast tokenizer. A target ends with its EOS token, or its SEP token if it has no EOS.
        max_length: the most tokens of a source.
        rows: "targets" for training (a row for each string to learn) or "questions" for evaluation (one for each
            text to be written, labelled or not).

    Raises:
        DataError: what may not be cut of a source is longer than `max_length`.
        ModelError: the tokenizer gives no offsets, or has neither an EOS nor a SEP token.
    """
    before, behind = special_tokens(tokenizer)
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end is None:
        raise ModelError(
            "the tokenizer has neither an EOS nor a SEP token, one of which has to end what is written"
        )
    strings: dict[str, list[int]] = {}

    def target(text: str) -> list[int]:
        if text not in strings:
            strings[text] = [*tokenized([text], tokenizer)[0].ids, end]
        return strings[text]

    longest = 0
    for string in {string for example in examples for string in task.expected(example)}:
        longest = max(longest, len(target(string)))
    made = EncodedTextToText([], [], [], 0, longest)
    room = Room(max_length)
    truncated = 0
    asked = task.questions(examples)
    for start in range(0, len(asked), BATCH):
        places = asked[start : start + BATCH]
        texts = [task.text_to_text(examples[place]) for place in places]
        kept = [
            (place, text)
            for place, text in zip(places, texts, strict=True)
            if rows == "questions" or text.targets
        ]
        sources = tokenized([text.source.text for _, text in kept], tokenizer)
        for (place, text), tokens in zip(kept, sources, strict=True):
            first, last = tokens.within(text.source)
            length = len(before) + len(tokens.ids) + len(behind)
            cut = room.cut(f"{task.title} {examples[place].id}", length, last - first)
            truncated += cut > 0
            ids = [*before, *tokens.ids[:first], *tokens.ids[first + cut :], *behind]
            for learnt in [target(string) for string in text.targets] if rows == "targets" else [[]]:
                made.source_ids.append(ids)
                made.target_ids.append(learnt)
                made.index.append(place)
    room.check()
    return EncodedTextToText(made.source_ids, made.target_ids, made.index, truncated, longest)
