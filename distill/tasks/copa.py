"""COPA: which of two sentences is the cause, or the effect, of the premise?"""

from .row import Row
from .task import Example, Task

QUESTIONS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


class COPA(Task):
    """Two pairs (premise and question, choice), of which the model scores one against the other."""

    name = "copa"
    title = "COPA"
    kind = "multiple_choice"
    labels = ("choice1", "choice2")
    official_units = (400, 100)

    def read(self, row: Row) -> list[Example]:
        """One example a row."""
        name = str(row.integer("idx"))
        asked = row.text("question")
        if asked not in QUESTIONS:
            row.fail("question", "'cause' or 'effect'")
        first = f"{row.text('premise')} {QUESTIONS[asked]}"
        texts = tuple((first, row.text(choice)) for choice in self.labels)
        return [Example(name, texts, row.label({0: 0, 1: 1}), group=name)]


TASK = COPA()
