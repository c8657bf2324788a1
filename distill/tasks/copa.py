"""COPA: which of two sentences is the cause, or the effect, of the premise?"""

from .formats import Completion, Framed, TextToText
from .row import Row
from .task import Example, Task

CONNECTORS = {"cause": "because", "effect": "therefore"}
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
        fields = {"premise": row.text("premise"), "question": asked}
        fields |= {choice: row.text(choice) for choice in self.labels}
        first = f"{fields['premise']} {QUESTIONS[asked]}"
        texts = tuple((first, fields[choice]) for choice in self.labels)
        return [Example(name, texts, row.label({0: 0, 1: 1}), group=name, fields=fields)]

    def completion(self, example: Example) -> Completion:
        """The premise without its full stop, because or therefore, and the choices in small letters."""
        premise = example.fields["premise"].strip().removesuffix(".")
        choices = (example.fields[choice] for choice in self.labels)
        answers = tuple(f" {choice[:1].lower()}{choice[1:]}" for choice in choices)
        prompt = Framed("", premise, f" {CONNECTORS[example.fields['question']]}")
        return Completion(prompt, answers, example.label)

    def text_to_text(self, example: Example) -> TextToText:
        """`copa choice1: … choice2: … premise: … question: cause|effect`: choice1 or choice2."""
        before = f"copa choice1: {example.fields['choice1']} choice2: {example.fields['choice2']} premise: "
        source = Framed(before, example.fields["premise"], f" question: {example.fields['question']}")
        return TextToText(source, self.label_text(example))


TASK = COPA()
