"""What others reached on SuperGLUE, to tell where a score stands. None of it was measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distill.tasks import SUPERGLUE, TASKS, mean_score

SUPERGLUE_PAPER = "Wang et al. 2019, SuperGLUE, arXiv:1905.00537"
LM_EVAL_README = (
    "EleutherAI lm-evaluation-harness, README of its SuperGLUE tasks in t5 format (the t5x column)"
)


@dataclass(frozen=True)
class Published:
    """One row of somebody else's table.

    Attributes:
        name: of the model, or of who answered.
        split: "dev" or "test".
        citation: where the figures stand.
        metrics: by task and metric, in percent.
    """

    name: str
    split: str
    citation: str
    metrics: Mapping[str, Mapping[str, float]]

    def score(self, tasks: Sequence[str]) -> float:
        """The mean over tasks of the mean of each task's metrics, in points."""
        return mean_score(
            {task: {name: value / 100 for name, value in self.metrics[task].items()} for task in tasks}
        )


def _row(*values: float | tuple[float, float]) -> dict[str, dict[str, float]]:
    """Values in the order of the tasks; those of a task with two metrics in their official order."""
    found = {}
    for task, value in zip(SUPERGLUE, values, strict=True):
        each = value if isinstance(value, tuple) else (value,)
        found[task] = dict(zip(TASKS[task].metrics, each, strict=True))
    return found


# BoolQ, CB (accuracy, macro-F1; the paper's Table 3 prints F1 first), COPA, MultiRC (F1a, EM), ReCoRD (F1, EM), RTE,
# WiC, WSC.
PUBLISHED = (
    Published(
        "human",
        "test",
        f"{SUPERGLUE_PAPER}, Table 3",
        _row(89.0, (98.9, 95.8), 100.0, (81.8, 51.9), (91.7, 91.3), 93.6, 80.0, 100.0),
    ),
    Published(
        "BERT++",
        "dev",
        f"{SUPERGLUE_PAPER}, Table 4",
        _row(80.1, (96.4, 95.0), 78.0, (70.5, 24.7), (70.6, 69.8), 82.3, 74.9, 68.3),
    ),
    Published(
        "BERT-large",
        "dev",
        f"{SUPERGLUE_PAPER}, Table 4",
        _row(77.7, (94.6, 93.7), 69.0, (70.5, 24.7), (70.6, 69.8), 75.8, 74.9, 68.3),
    ),
    Published(
        "T5 v1.1 base",
        "dev",
        LM_EVAL_README,
        _row(78.47, (87.5, 83.93), 50.0, (73.81, 33.26), (71.34, 70.09), 78.7, 63.64, 75.0),
    ),
    Published(
        "CBoW",
        "dev",
        f"{SUPERGLUE_PAPER}, Table 4",
        _row(62.4, (71.4, 49.6), 63.0, (20.3, 0.3), (14.4, 13.8), 54.2, 55.3, 61.5),
    ),
    Published(
        "most frequent class",
        "dev",
        f"{SUPERGLUE_PAPER}, Table 4",
        _row(62.2, (50.0, 22.2), 55.0, (59.9, 0.8), (32.4, 31.5), 52.7, 50.0, 63.5),
    ),
)


def published_for(tasks: Sequence[str]) -> tuple[Published, ...]:
    """The rows that know all of these tasks."""
    return tuple(row for row in PUBLISHED if all(task in row.metrics for task in tasks))
