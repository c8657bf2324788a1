"""WSC: does the pronoun refer to the noun phrase?"""

import re

from .formats import Completion, Framed, TextToText
from .row import Row
from .task import Answer, Example, Task

# Words that tell nothing about who is meant (t5.data.postprocessors.wsc_simple).
DETERMINERS = frozenset(
    "a an few her his each every many much my our some that the their these this those which whose your".split()  # noqa: SIM905
)


class WSC(Task):
    """Pairs (text with the * noun phrase * and the # pronoun # marked, "# he # refers to * Mark *").

    The marks are those of T5's version of the task (arXiv 1910.10683, section 2.4), plain text that any
    sequence classifier reads. Metric: accuracy.
    """

    name = "wsc"
    title = "WSC"
    labels = ("False", "True")
    truncate = "only_first"
    official_units = (554, 104)

    def read(self, row: Row) -> list[Example]:
        """One example a row."""
        name = str(row.integer("idx"))
        text = row.text("text")
        target = row.row("target")
        noun, pronoun = target.text("span1_text"), target.text("span2_text")
        noun_start, noun_end = located(target, text, "span1")
        pronoun_start, pronoun_end = located(target, text, "span2")
        # A pronoun may lie inside the noun phrase ("their mothers"): the outer mark opens first and closes last.
        marks = [
            (noun_start, 1, -noun_end, "* "),
            (pronoun_start, 1, -pronoun_end, "# "),
            (noun_end, 0, -noun_start, " *"),
            (pronoun_end, 0, -pronoun_start, " #"),
        ]
        shown, done = "", 0
        for place, _, _, mark in sorted(marks):
            shown += text[done:place] + mark
            done = place
        pair = (shown + text[done:], f"# {pronoun} # refers to * {noun} *")
        starred = f"{text[:pronoun_start]}*{text[pronoun_start:pronoun_end]}*{text[pronoun_end:]}"
        fields = {"text": starred, "noun": noun, "pronoun": pronoun}
        return [Example(name, (pair,), row.label({False: 0, True: 1}), group=name, fields=fields)]

    def completion(self, example: Example) -> Completion:
        """The passage with its `*pronoun*` marked, and whether that refers to the noun phrase: no, yes."""
        noun, pronoun = example.fields["noun"], example.fields["pronoun"]
        question = (
            f'\nQuestion: In the passage above, does the pronoun "*{pronoun}*" refer to "*{noun}*"?\nAnswer:'
        )
        return Completion(
            Framed("Passage: ", example.fields["text"], question), (" no", " yes"), example.label
        )

    def text_to_text(self, example: Example) -> TextToText:
        """`wsc: {text with *pronoun* marked}`: the noun phrase. What is not meant by the pronoun teaches nothing."""
        targets = (example.fields["noun"],) if example.label == 1 else ()
        return TextToText(Framed("wsc: ", example.fields["text"], ""), targets)

    def expected(self, example: Example) -> tuple[str, ...]:
        """The noun phrase."""
        return (example.fields["noun"],)

    def read_answer(self, example: Example, text: str) -> Answer:
        """The prediction, which keeps the noun phrase that the text is compared with."""
        return Answer(
            example.id,
            example.group,
            example.label,
            (),
            answer=example.fields["noun"],
            text=text.strip(),
        )

    def class_of(self, answer: Answer) -> int:
        """True if the text names the noun phrase, False if it names something else, -1 if it names nothing."""
        text = answer.text or ""
        return int(same_referent(text, answer.answer)) if told(text) else -1


def same_referent(text: str, noun: str) -> bool:
    """Whether the words of one are among those of the other, determiners and case aside.

    "Bob" is not "Bob's hat": either both have an apostrophe or neither (as in T5's own postprocessor).
    """
    said, wanted = told(text), told(noun)
    if any("'" in word for word in said) != any("'" in word for word in wanted):
        return False
    return bool(said and wanted) and (said <= wanted or wanted <= said)


def told(text: str) -> set[str]:
    """The words of a text in small letters, without determiners."""
    return set(text.lower().split()) - DETERMINERS


def located(target: Row, text: str, span: str) -> tuple[int, int]:
    """The characters of a span, which the file names by its text and the number of its first word.

    The number counts the words of `text.split()`. In a few official rows the words there are not the
    span's: then the nearest occurrence of the span's text is taken, and failing that the words themselves.
    """
    wanted, number = target.text(f"{span}_text").strip(), target.integer(f"{span}_index")
    words = [(word.start(), word.end()) for word in re.finditer(r"\S+", text)]
    if not wanted:
        target.fail(f"{span}_text", "the words of the span")
    if not 0 <= number < len(words):
        target.fail(f"{span}_index", f"the number of one of the text's {len(words)} words")
    start, end = words[number]
    spaced = r"\s+".join(re.escape(word) for word in wanted.split())
    # Whole words only, but "Emma" is found in "Emma's" and in '"Emma,'.
    form = re.compile(rf"(?<!\w){spaced}(?!\w)", re.IGNORECASE)
    found = [match.span() for match in form.finditer(text)]
    if found:
        return min(found, key=lambda characters: distance(characters[0], start, end))
    last = min(number + len(wanted.split()), len(words)) - 1
    return start, words[last][1]


def distance(place: int, start: int, end: int) -> int:
    """How far a character lies from a word, 0 inside it."""
    return max(start - place, place - end + 1, 0)


TASK = WSC()
