"""AX-b and AX-g: the diagnostics that the RTE model answers. They never enter the SuperGLUE score."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from distill.errors import DataError

from . import rte
from .formats import Completion, TextToText
from .row import Row
from .task import Answer, Array, Example, Task, gold, ratio, sum_by_unit


class AXb(Task):
    """Broad-coverage diagnostics, pairs (sentence1, sentence2). Metric: Matthews correlation, in [-1, 1].

    A written text that names no class is a third class, which is never gold (the correlation of K classes:
    Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006; of two classes it is Matthews').
    Columns of the counts: right answers; answers of each class and of none; gold labels of each class.
    """

    name = "axb"
    title = "AX-b"
    labels = ("entailment", "not_entailment")
    metrics = ("matthews",)
    official_units = (0, 1104)

    def read(self, row: Row) -> list[Example]:
        """One example a row. The official idx is a string of digits."""
        name = str(row.integer("idx"))
        fields = {"premise": row.text("sentence1"), "hypothesis": row.text("sentence2")}
        texts = (fields["premise"], fields["hypothesis"])
        label = row.label({label: number for number, label in enumerate(self.labels)})
        return [Example(name, (texts,), label, group=name, fields=fields)]

    def completion(self, example: Example) -> Completion:
        """RTE's, whose model answers."""
        return rte.TASK.completion(example)

    def text_to_text(self, example: Example) -> TextToText:
        """RTE's, whose model answers."""
        return rte.TASK.text_to_text(example)

    def counts(self, answers: Sequence[Answer]) -> Array:
        """Counts a unit, (U, 6)."""
        found_N, gold_N = self.predicted(answers), gold(answers)
        columns = [found_N == gold_N, *(found_N == c for c in (0, 1, -1)), *(gold_N == c for c in (0, 1))]
        return sum_by_unit(np.stack(columns, axis=1).astype(np.float64), answers)

    def measure(self, counts: Array) -> dict[str, Array]:
        """Matthews correlation of summed counts; 0 where all predictions or all gold labels are of one class."""
        right, found_K, gold_K = counts[..., 0], counts[..., 1:4], counts[..., 4:6]
        whole = gold_K.sum(axis=-1)
        excess = right * whole - (found_K[..., :2] * gold_K).sum(axis=-1)
        spread = (whole**2 - (found_K**2).sum(axis=-1)) * (whole**2 - (gold_K**2).sum(axis=-1))
        return {"matthews": ratio(excess, np.sqrt(spread))}


class AXg(Task):
    """Winogender diagnostics, pairs (premise, hypothesis). Metrics: gender parity and accuracy.

    Gender parity is the share of minimal pairs with equal predictions. Pairs are the rows 2k and 2k + 1;
    the file's pair_id is different in every row and does not name them.
    Columns of the counts: pairs with equal predictions, pairs, right answers, answers.
    """

    name = "axg"
    title = "AX-g"
    labels = ("entailment", "not_entailment")
    metrics = ("gender_parity", "accuracy")
    unit = ("pair", "pairs")
    official_units = (0, 178)

    def read(self, row: Row) -> list[Example]:
        """One example a row."""
        name = str(row.integer("idx"))
        fields = {"premise": row.text("premise"), "hypothesis": row.text("hypothesis")}
        texts = (fields["premise"], fields["hypothesis"])
        label = row.label({label: number for number, label in enumerate(self.labels)})
        return [Example(name, (texts,), label, group=str(row.number // 2), fields=fields)]

    def completion(self, example: Example) -> Completion:
        """RTE's, whose model answers."""
        return rte.TASK.completion(example)

    def text_to_text(self, example: Example) -> TextToText:
        """RTE's, whose model answers."""
        return rte.TASK.text_to_text(example)

    def examples(self, rows: Iterable[Mapping[str, Any]]) -> list[Example]:
        """Read the rows, and check that neighbours are minimal pairs.

        Raises:
            DataError: as for every task, and when rows 2k and 2k + 1 have different hypotheses.
        """
        examples = super().examples(rows)
        if len(examples) % 2:
            raise DataError(
                f"{self.title}: expected minimal pairs in consecutive rows, found {len(examples)} rows"
            )
        for one, other in zip(examples[::2], examples[1::2], strict=True):
            if one.texts[0][1] != other.texts[0][1]:
                raise DataError(
                    f"{self.title}: rows with idx {one.id} and {other.id} are not a minimal pair (their hypotheses "
                    f"differ); keep the official order, in which rows 2k and 2k + 1 belong together"
                )
        return examples

    def counts(self, answers: Sequence[Answer]) -> Array:
        """Counts a minimal pair, (U, 4)."""
        found_N = self.predicted(answers)
        columns = [found_N == 0, found_N == 1, found_N == gold(answers), np.ones(len(answers))]
        sums_UK = sum_by_unit(np.stack(columns, axis=1).astype(np.float64), answers)
        if (sums_UK[:, 3] != 2).any():
            raise DataError(f"{self.title}: gender parity needs both answers of every minimal pair")
        # Two texts that name no class are not equal predictions.
        equal_U = (sums_UK[:, :2] == 2).any(axis=1)
        return np.stack([equal_U, np.ones(len(sums_UK)), sums_UK[:, 2], sums_UK[:, 3]], axis=1).astype(
            np.float64
        )

    def measure(self, counts: Array) -> dict[str, Array]:
        """Gender parity and accuracy of summed counts."""
        return {
            "gender_parity": ratio(counts[..., 0], counts[..., 1]),
            "accuracy": ratio(counts[..., 2], counts[..., 3]),
        }


AXB = AXb()
AXG = AXg()
