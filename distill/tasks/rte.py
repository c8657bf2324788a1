"""RTE: does the premise entail the hypothesis?"""

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
        texts = (row.text("premise"), row.text("hypothesis"))
        label = row.label({label: number for number, label in enumerate(self.labels)})
        return [Example(name, (texts,), label, group=name)]


TASK = RTE()
