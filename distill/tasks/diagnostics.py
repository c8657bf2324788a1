"""AX-b and AX-g: the diagnostics that the RTE model answers. They never enter the SuperGLUE score."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from distill.errors import DataError

from .row import Row
from .task import Answer, Array, Example, Task, gold, ratio, sum_by_unit


class AXb(Task):
    """Broad-coverage diagnostics, pairs (sentence1, sentence2). Metric: Matthews correlation, in [-1, 1].

    Columns of the counts: both not_entailment, predicted so only, gold so only, both entailment.
    """

    name = "axb"
    title = "AX-b"
    labels = ("entailment", "not_entailment")
    metrics = ("matthews",)
    official_units = (0, 1104)

    def read(self, row: Row) -> list[Example]:
        """One example a row. The official idx is a string of digits."""
        name = str(row.integer("idx"))
        texts = (row.text("sentence1"), row.text("sentence2"))
        label = row.label({label: number for number, label in enumerate(self.labels)})
        return [Example(name, (texts,), label, group=name)]

    def counts(self, answers: Sequence[Answer]) -> Array:
        """The confusion matrix, a unit at a time, (U, 4)."""
        found_N, gold_N = self.predicted(answers) == 1, gold(answers) == 1
        columns_NK = np.stack(
            [found_N & gold_N, found_N & ~gold_N, ~found_N & gold_N, ~found_N & ~gold_N], axis=1
        )
        return sum_by_unit(columns_NK.astype(np.float64), answers)

    def measure(self, counts: Array) -> dict[str, Array]:
        """Matthews correlation of summed counts; 0 where a margin of the confusion matrix is empty."""
        hits, extra, missed, rest = (counts[..., column] for column in range(4))
        margins = (hits + extra) * (hits + missed) * (rest + extra) * (rest + missed)
        return {"matthews": ratio(hits * rest - extra * missed, np.sqrt(margins))}


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
        texts = (row.text("premise"), row.text("hypothesis"))
        label = row.label({label: number for number, label in enumerate(self.labels)})
        return [Example(name, (texts,), label, group=str(row.number // 2))]

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
        columns_NK = np.stack([found_N == 1, found_N == gold(answers), np.ones(len(answers))], axis=1)
        sums_UK = sum_by_unit(columns_NK.astype(np.float64), answers)
        if (sums_UK[:, 2] != 2).any():
            raise DataError(f"{self.title}: gender parity needs both answers of every minimal pair")
        equal_U = sums_UK[:, 0] != 1
        return np.stack([equal_U, np.ones(len(sums_UK)), sums_UK[:, 1], sums_UK[:, 2]], axis=1).astype(
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
