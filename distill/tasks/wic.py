"""WiC: has the word the same meaning in both sentences? (arXiv 1808.09121)."""

import re

from .formats import Completion, Framed, TextToText
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
        (first, form), (second, _) = (marked(row, word, side) for side in ("1", "2"))
        fields = {"word": word, "form": form}
        fields |= {sentence: row.text(sentence) for sentence in ("sentence1", "sentence2")}
        texts = (f"{word}: {first}", second)
        return [Example(name, (texts,), row.label({False: 0, True: 1}), group=name, fields=fields)]

    def completion(self, example: Example) -> Completion:
        """Both sentences, and whether the word, as the first one has it, is used in the same way: no, yes."""
        sentences = f"Sentence 1: {example.fields['sentence1']}\nSentence 2: {example.fields['sentence2']}"
        question = (
            f"\nQuestion: Is the word '{example.fields['form']}' used in the same way in the two sentences above?"
            "\nAnswer:"
        )
        return Completion(Framed("", sentences, question), (" no", " yes"), example.label)

    def text_to_text(self, example: Example) -> TextToText:
        """`wic sentence1: … sentence2: … word: …`: True or False."""
        sentences = f"{example.fields['sentence1']} sentence2: {example.fields['sentence2']}"
        source = Framed("wic sentence1: ", sentences, f" word: {example.fields['word']}")
        return TextToText(source, self.label_text(example))


def marked(row: Row, word: str, side: str) -> tuple[str, str]:
    """The sentence with asterisks around the word, found by its character offsets, and the word as it is there."""
    sentence = row.text(f"sentence{side}")
    start, end = row.integer(f"start{side}"), row.integer(f"end{side}")
    if not 0 <= start < end <= len(sentence):
        row.fail(f"end{side}", f"the end of a span that starts at {start} of {len(sentence)} characters")
    start, end = repaired(sentence, word, start, end)
    return f"{sentence[:start]}* {sentence[start:end]} *{sentence[end:]}", sentence[start:end]


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
