"""WiC: has the word the same meaning in both sentences? (arXiv 1808.09121)."""

import re

from .row import Row
from .task import Example, Task


class WiC(Task):
    """Pairs ("word: sentence with * word * marked", the other sentence, marked). Metric: accuracy.

    The marks are plain text, so that any sequence classifier reads them without a special head.
    """

    name = "wic"
    title = "WiC"
    labels = ("False", "True")
    official_units = (5428, 638)

    def read(self, row: Row) -> list[Example]:
        """One example a row."""
        name = str(row.integer("idx"))
        word = row.text("word")
        first, second = (marked(row, word, side) for side in ("1", "2"))
        return [Example(name, ((f"{word}: {first}", second),), row.label({False: 0, True: 1}), group=name)]


def marked(row: Row, word: str, side: str) -> str:
    """The sentence with asterisks around the word, found by its character offsets."""
    sentence = row.text(f"sentence{side}")
    start, end = row.integer(f"start{side}"), row.integer(f"end{side}")
    if not 0 <= start < end <= len(sentence):
        row.fail(f"end{side}", f"the end of a span that starts at {start} of {len(sentence)} characters")
    start, end = repaired(sentence, word, start, end)
    return f"{sentence[:start]}* {sentence[start:end]} *{sentence[end:]}"


def repaired(sentence: str, word: str, start: int, end: int) -> tuple[int, int]:
    """The span, or that of a regular form of the word where the offsets point at something else.

    One official training row marks "round" in "The engineer called round" for the word "call". Irregular
    forms ("went" for "go") start with another letter too, and are right: they stay.
    """
    if sentence[start].lower() == word[:1].lower():
        return start, end
    form = re.search(rf"\b{re.escape(word)}(?:s|es|d|ed|ing)?\b", sentence, re.IGNORECASE)
    return form.span() if form else (start, end)


TASK = WiC()
