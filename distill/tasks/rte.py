"""RTE: does the premise entail the hypothesis?"""

from .formats import Completion, Framed, TextToText
from .row import Row
from .task import Example, Task


class RTE(Task):
    """Pairs (premise, hypothesis). Metric: accuracy. The same model answers AX-b and AX-g."""

    name = "rte"
    title = "RTE"
    labels = ("entailment", "not_entailment")
    official_units = (2490, 277)

    def read(self, row: Row) -> list[Example]:
        """One example a row."""
        name = str(row.integer("idx"))
        fields = {"premise": row.text("premise"), "hypothesis": row.text("hypothesis")}
        texts = (fields["premise"], fields["hypothesis"])
        label = row.label({label: number for number, label in enumerate(self.labels)})
        return [Example(name, (texts,), label, group=name, fields=fields)]

    def completion(self, example: Example) -> Completion:
        r"""`{premise}\nQuestion: {hypothesis} True or False?\nAnswer:` True, False."""
        question = f"\nQuestion: {example.fields['hypothesis']} True or False?\nAnswer:"
        prompt = Framed("", example.fields["premise"], question)
        return Completion(prompt, (" True", " False"), example.label)

    def text_to_text(self, example: Example) -> TextToText:
        """`rte hypothesis: {hypothesis} premise: {premise}`: entailment or not_entailment."""
        before = f"rte hypothesis: {example.fields['hypothesis']} premise: "
        return TextToText(Framed(before, example.fields["premise"], ""), self.label_text(example))


TASK = RTE()
