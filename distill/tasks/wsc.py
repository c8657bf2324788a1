"""WSC: does the pronoun refer to the noun phrase?"""

import re

from .row import Row
from .task import Example, Task


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
        return [Example(name, (pair,), row.label({False: 0, True: 1}), group=name)]


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
