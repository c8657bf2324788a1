"""CommitmentBank: does the author of the premise commit to the hypothesis?"""

from collections.abc import Sequence

import numpy as np

from .formats import Completion, Framed, TextToText
from .row import Row
from .task import Answer, Array, Example, Task, f1, gold, ratio, sum_by_unit


class CB(Task):
    """Pairs (premise, hypothesis). Metrics: accuracy and macro F1.

    Macro F1 is the unweighted mean of the three one-versus-rest F1 scores, where a class that is neither
    predicted nor gold counts 0 (`sklearn.metrics.f1_score(average="macro", labels=range(3))`).
    Columns of the counts: true positives of the three classes, then predictions, then gold labels.
    """

    name = "cb"
    title = "CB"
    labels = ("entailment", "contradiction", "neutral")
    metrics = ("accuracy", "macro_f1")
    official_units = (250, 56)

    def read(self, row: Row) -> list[Example]:
        """One example a row."""
        name = str(row.integer("idx"))
        fields = {"premise": row.text("premise"), "hypothesis": row.text("hypothesis")}
        texts = (fields["premise"], fields["hypothesis"])
        label = row.label({label: number for number, label in enumerate(self.labels)})
        return [Example(name, (texts,), label, group=name, fields=fields)]

    def completion(self, example: Example) -> Completion:
        r"""`{premise}\nQuestion: {hypothesis}. True, False, or Neither?\nAnswer:` True, False, Neither."""
        hypothesis = example.fields["hypothesis"].rstrip(".")
        question = f"\nQuestion: {hypothesis}. True, False, or Neither?\nAnswer:"
        prompt = Framed("", example.fields["premise"], question)
        return Completion(prompt, (" True", " False", " Neither"), example.label)

    def text_to_text(self, example: Example) -> TextToText:
        """`cb hypothesis: {hypothesis} premise: {premise}`: entailment, contradiction or neutral."""
        before = f"cb hypothesis: {example.fields['hypothesis']} premise: "
        return TextToText(Framed(before, example.fields["premise"], ""), self.label_text(example))

    def counts(self, answers: Sequence[Answer]) -> Array:
        """Counts a unit, (U, 9)."""
        classes = np.arange(len(self.labels))
        predicted_NC = self.predicted(answers)[:, None] == classes
        gold_NC = gold(answers)[:, None] == classes
        columns_NK = np.concatenate([predicted_NC & gold_NC, predicted_NC, gold_NC], axis=1)
        return sum_by_unit(columns_NK.astype(np.float64), answers)

    def measure(self, counts: Array) -> dict[str, Array]:
        """Accuracy and macro F1 of summed counts."""
        hits, predicted, actual = counts[..., 0:3], counts[..., 3:6], counts[..., 6:9]
        return {
            "accuracy": ratio(hits.sum(axis=-1), actual.sum(axis=-1)),
            "macro_f1": f1(hits, predicted, actual).mean(axis=-1),
        }


TASK = CB()
