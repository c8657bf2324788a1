"""BoolQ: does the passage answer the yes/no question with yes? (arXiv 1905.10044)."""

from .formats import Completion, Framed, TextToText
from .row import Row
from .task import Example, Task


class BoolQ(Task):
    """Pairs (passage, question). Metric: accuracy."""

    name = "boolq"
    title = "BoolQ"
    labels = ("False", "True")
    truncate = "only_first"
    official_units = (9427, 3270)

    def read(self, row: Row) -> list[Example]:
        """One example a row."""
        name = str(row.integer("idx"))
        fields = {"passage": row.text("passage"), "question": row.text("question")}
        texts = (fields["passage"], fields["question"])
        return [Example(name, (texts,), row.label({False: 0, True: 1}), group=name, fields=fields)]

    def completion(self, example: Example) -> Completion:
        r"""`{passage}\nQuestion: {question}?\nAnswer:` no, yes."""
        question = example.fields["question"].rstrip("?")
        prompt = Framed("", example.fields["passage"], f"\nQuestion: {question}?\nAnswer:")
        return Completion(prompt, (" no", " yes"), example.label)

    def text_to_text(self, example: Example) -> TextToText:
        """`boolq passage: {passage} question: {question}`: True or False."""
        source = Framed(
            "boolq passage: ", example.fields["passage"], f" question: {example.fields['question']}"
        )
        return TextToText(source, self.label_text(example))


TASK = BoolQ()
