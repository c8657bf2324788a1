"""What two models' tokenizers do differently: tokens, special tokens, letters' case, chat template, frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPECIAL = ("bos", "eos", "pad", "unk", "mask", "sep", "cls")


@dataclass(frozen=True)
class TokenFacts:
    """What is known of the tokens of one model.

    Attributes:
        vocabulary: ids by token.
        head: columns of the model's logits over tokens; None where it has none (a classifier).
        special: token and id by what it is for; what a tokenizer has not is left out.
        lowers: whether it reads capital letters as small ones; None where it knows neither.
        before: the tokens it puts before a text.
        behind: the tokens it puts behind a text.
        template: its chat template.
    """

    vocabulary: Mapping[str, int]
    head: int | None
    special: Mapping[str, tuple[str, int]]
    lowers: bool | None
    before: tuple[str, ...]
    behind: tuple[str, ...]
    template: str | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, head: int | None) -> TokenFacts:
        """The facts of a tokenizer, and of a head that has `head` columns."""
        special = {}
        for name in SPECIAL:
            token, number = getattr(tokenizer, f"{name}_token"), getattr(tokenizer, f"{name}_token_id")
            if token is not None and number is not None:
                special[name] = str(token), int(number)
        plain, whole = (_ids(tokenizer, "a b", special_tokens=wanted) for wanted in (False, True))
        places = range(len(whole) - len(plain) + 1)
        at = next((at for at in places if whole[at : at + len(plain)] == plain), len(whole))
        template = getattr(tokenizer, "chat_template", None)
        return cls(
            tokenizer.get_vocab(),
            head,
            special,
            _lowers(tokenizer),
            tuple(map(str, tokenizer.convert_ids_to_tokens(whole[:at]))),
            tuple(map(str, tokenizer.convert_ids_to_tokens(whole[at + len(plain) :]))),
            None if not template else str(template),
        )

    @property
    def tokens(self) -> int:
        """How many ids it needs: one more than the largest."""
        return max(self.vocabulary.values()) + 1

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "tokens": self.tokens,
            "head": self.head,
            "special": {
                name: {"token": token, "id": number} for name, (token, number) in self.special.items()
            },
            "lower_cases": self.lowers,
            "before": list(self.before),
            "behind": list(self.behind),
            "chat_template": self.template is not None,
        }


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special_tokens: bool = False) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"])


def _lowers(tokenizer: PreTrainedTokenizerBase) -> bool | None:
    capital, small = _ids(tokenizer, "A B C"), _ids(tokenizer, "a b c")
    return None if tokenizer.unk_token_id in (*capital, *small) else capital == small


def head_columns(model: PreTrainedModel) -> int | None:
    """How many tokens a model's output layer has logits of; None where it has no such layer."""
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    weight = getattr(head, "weight", None)
    return None if weight is None else int(weight.shape[0])


@dataclass(frozen=True)
class TokenDifferences:
    """What a teacher and a student read differently.

    Attributes:
        student: of the student.
        teacher: of the teacher.
        chat: whether prompts are put into the chat template.
        aligned: whether the recipe says how to compare other tokens, or the task compares classes.
        trimmed: whether the student has some of the teacher's tokens, under ids of its own.
    """

    student: TokenFacts
    teacher: TokenFacts
    chat: bool = False
    aligned: bool = False
    trimmed: bool = False

    @cached_property
    def same(self) -> bool:
        """Whether both have the same tokens under the same ids."""
        return self.student.vocabulary == self.teacher.vocabulary

    @cached_property
    def shared(self) -> int:
        """How many tokens both have."""
        return len(self.student.vocabulary.keys() & self.teacher.vocabulary.keys())

    @property
    def special(self) -> list[str]:
        """Special tokens that are not the same, one line each."""
        lines = []
        for name in SPECIAL:
            mine, other = self.student.special.get(name), self.teacher.special.get(name)
            moved = self.trimmed and mine and other and mine[0] == other[0]
            if mine != other and not moved:
                lines.append(f"{name} is {_shown(mine)} for the student, {_shown(other)} for the teacher")
        return lines

    @property
    def lines(self) -> list[str]:
        """All differences, and what is the same, in words."""
        mine, other = self.student, self.teacher
        if self.same:
            lines = [f"the same {mine.tokens:,} tokens"]
        elif self.trimmed:
            lines = [f"{mine.tokens:,} of the teacher's {other.tokens:,} tokens"]
        else:
            lines = [f"{mine.tokens:,} tokens and the teacher's {other.tokens:,}, {self.shared:,} in common"]
        for who, facts in (("student", mine), ("teacher", other)):
            if facts.head is not None and facts.head > facts.tokens:
                lines.append(f"the {who}'s head is padded to {facts.head:,}")
        lines += self.special or ["special tokens alike"]
        if self._one_lowers:
            lines.append(
                f"only the {'student' if mine.lowers else 'teacher'} reads capitals as small letters"
            )
        if self._other_frame:
            lines.append(f"around a text {_frame(mine)} for the student, {_frame(other)} for the teacher")
        lines.append(self._templates)
        return lines

    def warnings(self) -> list[tuple[str, str]]:
        """What was found, and what to do about it."""
        found = []
        if not (self.same or self.trimmed or self.aligned):
            found.append(
                (
                    f"the student has other tokens than its teacher ({self.student.tokens:,} and "
                    f"{self.teacher.tokens:,}, {self.shared:,} in common)",
                    "say how to align them (alignment: {kind: shared}), or give the student the teacher's tokenizer",
                )
            )
        if self.same:
            found += [
                (line, "save both models with one tokenizer, or they begin, fill or end texts differently")
                for line in self.special
            ]
            if self._other_frame:
                found.append(
                    (
                        f"the tokenizers put {_frame(self.student)} (student) and {_frame(self.teacher)} (teacher) "
                        "around a text",
                        "save both models with one tokenizer",
                    )
                )
        if self._one_lowers:
            found.append(
                (
                    f"only the {'student' if self.student.lowers else 'teacher'}'s tokenizer reads capitals as small "
                    "letters, so that the models do not read the same text",
                    "choose models that agree in this",
                )
            )
        if self.chat and self.student.template != self.teacher.template:
            found.append(
                (
                    "data.chat puts prompts into different chat templates for student and teacher",
                    "give both one template, or set data.chat: false",
                )
            )
        return found

    @property
    def _one_lowers(self) -> bool:
        return {self.student.lowers, self.teacher.lowers} == {True, False}

    @property
    def _other_frame(self) -> bool:
        mine, other = self.student, self.teacher
        return (mine.before, mine.behind) != (other.before, other.behind)

    @property
    def _templates(self) -> str:
        mine, other = self.student.template, self.teacher.template
        if mine is None and other is None:
            return "no chat template"
        used = "used" if self.chat else "not used"
        if mine == other:
            return f"one chat template, {used}"
        if mine is None or other is None:
            return f"a chat template of the {'student' if mine else 'teacher'} alone, {used}"
        return f"different chat templates, {used}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "same": self.same,
            "in_common": self.shared,
            "trimmed": self.trimmed,
            "student": self.student.as_dict(),
            "teacher": self.teacher.as_dict(),
            "chat_template_used": self.chat,
            "same_chat_template": self.student.template == self.teacher.template,
            "differences": self.lines,
        }


def _shown(token: tuple[str, int] | None) -> str:
    return "missing" if token is None else f"{token[0]} ({token[1]})"


def _frame(facts: TokenFacts) -> str:
    return " ".join([*facts.before, "…", *facts.behind]) if facts.before or facts.behind else "nothing"
