"""Examples to the sequences a decoder learns from, or whose answers it is asked the probability of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from distill.errors import ModelError

from .formats import Framed
from .framing import Room, special_tokens, tokenized
from .task import Answer, Example, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Offsets are kept for so many sequences at a time.
BATCH = 1024
# Stands for the prompt in a chat template that is being taken apart.
PLACE = "DISTILL-PROMPT"


@dataclass(frozen=True, slots=True)
class EncodedCompletions:
    """Prompts with their answers as token ids, unpadded; the answers of an example follow each other.

    Attributes:
        input_ids: a sequence a row: the prompt with what the tokenizer puts before it, then the answer.
        counted: for each token of a row whether it belongs to the answer, so is a target: it is predicted by the
            logits one position before it, and a prompt has at least one token.
        index: for each row the position of its example in what was encoded.
        answer: for each row which of the completion's answers it holds.
        truncated: how many examples lost at least one token.
        texts: for each row what was tokenized, prompt and answer together, uncut.
        cuts: for each row three numbers: how many tokens stand before the text (BOS), the first of the text's tokens that
            was cut, and how many were.
        merged: in how many rows a token holds the end of the prompt and the beginning of the answer. Such a token
            is counted.
    """

    input_ids: list[list[int]]
    counted: list[list[bool]]
    index: list[int]
    answer: list[int]
    truncated: int
    texts: list[str]
    cuts: list[tuple[int, int, int]]
    merged: int


def encode_completions(
    task: Task,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    answers: Literal["gold", "all"],
    chat: bool = False,
) -> EncodedCompletions:
    """Encode the completions of examples.

    Prompt and answer are tokenized as one text and divided by character offsets, in training as in evaluation. No
    end of sequence follows an answer: answers are compared by their own log-probability, as in
    lm-evaluation-harness, and nothing has to learn where to stop. A sequence that is too long loses tokens of its
    passage from the left, the same number for all answers encoded of an example; never of question or answer.

    Args:
        task: whose wording it is.
        examples: what to encode.
        tokenizer: a fast tokenizer; what it puts before a text (BOS) is put there, what it puts behind is not.
        max_length: the most tokens of a sequence.
        answers: "gold" for training (examples without a right answer are left out) or "all" for evaluation.
        chat: put the prompt as a user's message into the tokenizer's chat template, and the answer, without the
            white space before it, into the reply.

    Raises:
        DataError: a question with its answer is longer than `max_length`.
        ModelError: the tokenizer gives no offsets, or has no chat template that shows a message as it is.
    """
    before, _ = special_tokens(tokenizer)
    head, tail = "", ""
    if chat:
        before = []
        head, tail = chat_frame(tokenizer)
    made = EncodedCompletions([], [], [], [], 0, [], [], 0)
    room = Room(max_length)
    truncated = merged = 0
    for start in range(0, len(examples), BATCH):
        rows: list[tuple[int, int, Framed, str]] = []
        for index, example in enumerate(examples[start : start + BATCH], start):
            completion = task.completion(example)
            numbers = range(len(completion.answers)) if answers == "all" else [completion.gold]
            framed = completion.prompt
            if chat:
                framed = Framed(head + framed.before, framed.passage, framed.after + tail)
            for number in numbers:
                if number is not None:
                    answer = completion.answers[number]
                    rows.append((index, number, framed, answer.lstrip() if chat else answer))
        texts = tokenized([framed.text + answer for _, _, framed, answer in rows], tokenizer)
        for index, group in groupby(zip(rows, texts, strict=True), key=lambda row: row[0][0]):
            same = list(group)
            spans, counts = [], []
            for (_, _, framed, _), tokens in same:
                first, last = tokens.within(framed)
                boundary = len(framed.text)
                target = tokens.at(boundary)
                # The first target needs a token before it.
                last = min(last, target - 1) if first + len(before) == 0 else last
                spans.append((first, max(last - first, 0)))
                counts.append(target)
                merged += tokens.starts[target] < boundary
            longest = max(len(tokens.ids) for _, tokens in same)
            name = f"{task.title} {examples[index].id}"
            cut = room.cut(name, len(before) + longest, min(most for _, most in spans))
            truncated += cut > 0
            for ((_, number, framed, answer), tokens), (first, _), target in zip(
                same, spans, counts, strict=True
            ):
                made.texts.append(framed.text + answer)
                made.cuts.append((len(before), first, cut))
                ids = [*before, *tokens.ids[:first], *tokens.ids[first + cut :]]
                prompt = len(before) + target - cut
                made.input_ids.append(ids)
                made.counted.append([False] * prompt + [True] * (len(ids) - prompt))
                made.index.append(index)
                made.answer.append(number)
    room.check()
    return replace(made, truncated=truncated, merged=merged)


def scored(
    task: Task, examples: Sequence[Example], encoded: EncodedCompletions, scores: Sequence[float]
) -> list[Answer]:
    """The predictions of a decoder.

    Args:
        task: whose examples they are.
        examples: what was encoded, with all answers.
        encoded: what it was encoded to.
        scores: for each row the sum of the log-probabilities of its counted tokens, in nats.
    """
    by_example: dict[int, list[float]] = {}
    for index, score in zip(encoded.index, scores, strict=True):
        by_example.setdefault(index, []).append(float(score))
    return [examples[index].answered(task.completion_logits(row)) for index, row in by_example.items()]


def chat_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the tokenizer's chat template puts before a user's message, and behind it up to the reply.

    Raises:
        ModelError: there is no template, or it does not show the message as it is.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path or 'given'} has no chat template; use chat: false"
        )
    message = [{"role": "user", "content": PLACE}]
    try:
        shown = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # the template came with the model, and may ask for anything
        cause = " ".join(str(error).split())[:200]
        raise ModelError(f"the chat template cannot be used ({cause}); use chat: false") from error
    head, found, tail = shown.partition(PLACE)
    if not found or PLACE in tail:
        raise ModelError(
            "the chat template does not show the user's message once and as it is; use chat: false"
        )
    return head, tail


def chat_template_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the tokenizer's chat template: prompts of another template are other data."""
    return hashlib.sha256(json.dumps(tokenizer.chat_template, sort_keys=True).encode()).hexdigest()
