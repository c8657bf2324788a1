"""Did the teacher help? A paired bootstrap of the student against the same student trained without one.

Shapes: S seeds, U units of a task (examples, questions, queries), K counted columns, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.tasks import TASKS, Answer

RESAMPLES = 2000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and the middle 95 % of its bootstrap distribution, in points."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


class Resampler:
    """Scores of several models on the same resampled examples and seeds, so that they can be compared in pairs.

    Every resample draws the units of each task, and the seeds, with replacement; the same draw serves every model.
    Of S seeds it draws S − 1 (Rao and Wu 1988): drawing S of so few makes the spread between them too small,
    to (S − 1)/S of its variance, and calls chance a gain too often.

    Args:
        units: number of units by task.
        seeds: number of training seeds; 1 leaves the seeds out of the resampling.
    """

    def __init__(self, units: Mapping[str, int], seeds: int, *, resamples: int = RESAMPLES, seed: int = 0):
        generator = np.random.default_rng(seed)
        self._draws = {
            task: generator.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float32)
            for task, count in units.items()
        }
        drawn = max(seeds - 1, 1)
        self._seeds_RS = generator.multinomial(drawn, np.full(seeds, 1 / seeds), size=resamples) / drawn

    def scores(self, answers: Mapping[str, Sequence[Sequence[Answer]]]) -> dict[str, Floats]:
        """Resampled score in points by task, `[R]`, averaged over resampled seeds. `answers[task][seed]`."""
        result = {}
        for task, by_seed in answers.items():
            columns = []
            for answers_of_seed in by_seed:
                sums_RK = self._draws[task] @ TASKS[task].counts(answers_of_seed)
                metrics = TASKS[task].measure(sums_RK)
                columns.append(100 * np.mean([metrics[name] for name in TASKS[task].metrics], axis=0))
            scores_RS = np.stack(columns, axis=1)
            seeds_RS = (
                self._seeds_RS if scores_RS.shape[1] == self._seeds_RS.shape[1] else 1 / scores_RS.shape[1]
            )
            result[task] = (scores_RS * seeds_RS).sum(1)
        return result


def task_score(task: str, answers: Sequence[Answer]) -> float:
    """The mean of a task's metrics, in points."""
    metrics = TASKS[task].score(answers)
    return 100 * float(np.mean([metrics[name] for name in TASKS[task].metrics]))


def interval(mean: float, resampled_R: Floats) -> Interval:
    """`mean` with the middle 95 % of its resamples."""
    low, high = np.percentile(resampled_R, [2.5, 97.5])
    return Interval(mean, float(low), float(high))


def judge(
    student: Mapping[str, Sequence[Sequence[Answer]]], baseline: Mapping[str, Sequence[Sequence[Answer]]]
) -> dict[str, Any]:
    """The verdict on all tasks together and on each.

    Args:
        student: `answers[task][seed]` of the distilled student.
        baseline: the same of the student trained without a teacher, on the same seeds.

    Returns:
        `{"gain": points, "ci95": [low, high], "seeds": n, "significant": bool, "sentence": str, "tasks": {…}}`.
    """
    seeds = len(next(iter(student.values())))
    resampler = Resampler(
        {task: len(TASKS[task].counts(by_seed[0])) for task, by_seed in student.items()}, seeds
    )
    with_teacher, without = resampler.scores(student), resampler.scores(baseline)
    tasks = {}
    for task in student:
        gain = float(np.mean([task_score(task, a) for a in student[task]])) - float(
            np.mean([task_score(task, a) for a in baseline[task]])
        )
        tasks[task] = interval(gain, with_teacher[task] - without[task])
    overall = interval(
        float(np.mean([found.mean for found in tasks.values()])),
        np.mean([with_teacher[task] - without[task] for task in student], axis=0),
    )
    return {
        **_figures(overall),
        "seeds": seeds,
        "sentence": sentence(overall, seeds),
        "tasks": {task: _figures(found) for task, found in tasks.items()},
    }


def sentence(found: Interval, seeds: int) -> str:
    """The verdict in words, saying what the interval covers."""
    covers = (
        f"resampling validation examples and {seeds} seeds"
        if seeds > 1
        else "resampling validation examples; one seed"
    )
    # As many digits as tell the interval from zero: probabilities of bytes differ by less than accuracies do.
    digits = 1 if max(abs(found.low), abs(found.high)) >= 0.5 else 2
    gain, low, high = (f"{value:+.{digits}f}" for value in (found.mean, found.low, found.high))
    figures = f"95 % interval {low} to {high}, {covers}"
    if not found.excludes_zero:
        return f"No gain that can be told from chance: {gain} points against the same student trained without a teacher ({figures})."
    if found.mean > 0:
        return f"The teacher helped: {gain} points over the same student trained without one ({figures})."
    return f"The teacher hurt: {gain} points against the same student trained without one ({figures})."


def _figures(found: Interval) -> dict[str, Any]:
    return {"gain": found.mean, "ci95": [found.low, found.high], "significant": found.excludes_zero}
