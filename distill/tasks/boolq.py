"""BoolQ: does the passage answer the yes/no question with yes? (arXiv 1905.10044)."""

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
        texts = (row.text("passage"), row.text("question"))
        return [Example(name, (texts,), row.label({False: 0, True: 1}), group=name)]


TASK = BoolQ()
