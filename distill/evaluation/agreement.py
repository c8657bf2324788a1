"""Where teacher and student give different answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from distill.tasks import PLAIN_TEXT, TASKS, Answer

WORST = 8


def agreement(
    task: str, teacher: Sequence[Answer], students: Sequence[Sequence[Answer]], *, worst: int = WORST
) -> dict[str, Any]:
    """How often a task's students answer as their teacher, and the examples on which the first one differs most.

    Args:
        task: a key of `TASKS`.
        teacher: its answers.
        students: the student's by seed, to the same examples in the same order.
        worst: how many examples to name: the sharpest differences first, by the sum of both confidences. Of plain text
            the passages on which the student loses most bits a byte.

    Returns:
        `{"same", "per_seed", "outcomes": {"both_right", "teacher_alone", "student_alone", "both_wrong"}, "n",
        "differ", "examples": [{"id", "gold", "teacher": {"answer", "confidence"}, "student": …}, …]}`: shares of 1,
        means over seeds; `differ` and `examples` are the first seed's. Of plain text `n` and `examples` alone, with
        `{"bits_per_byte"}` of either model.
    """
    if task == PLAIN_TEXT.name:
        return _of_passages(teacher, students[0], worst)
    taught = TASKS[task].replies(teacher)
    said = [TASKS[task].replies(answers) for answers in students]
    pairs = [list(zip(taught, replies, strict=True)) for replies in said]
    same = [float(np.mean([t.said == s.said for t, s in by_seed])) for by_seed in pairs]
    outcomes = {
        name: float(np.mean([(t.right, s.right) == both for by_seed in pairs for t, s in by_seed]))
        for name, both in {
            "both_right": (True, True),
            "teacher_alone": (True, False),
            "student_alone": (False, True),
            "both_wrong": (False, False),
        }.items()
    }
    different = [(t, s) for t, s in pairs[0] if t.said != s.said]
    sharpest = sorted(different, key=lambda pair: -sum(each.confidence or 0.0 for each in pair))
    return {
        "same": float(np.mean(same)),
        "per_seed": same,
        "outcomes": outcomes,
        "n": len(taught),
        "differ": len(different),
        "examples": [
            {
                "id": t.id,
                "gold": t.gold,
                "teacher": {"answer": t.said, "confidence": t.confidence},
                "student": {"answer": s.said, "confidence": s.confidence},
            }
            for t, s in sharpest[:worst]
        ],
    }


def _of_passages(teacher: Sequence[Answer], student: Sequence[Answer], worst: int) -> dict[str, Any]:
    def bits(answer: Answer) -> float:
        nats, _, size, *_ = answer.logits
        return -nats / size / math.log(2)

    lost = sorted(zip(teacher, student, strict=True), key=lambda pair: bits(pair[0]) - bits(pair[1]))
    return {
        "n": len(lost),
        "examples": [
            {"id": t.id, "teacher": {"bits_per_byte": bits(t)}, "student": {"bits_per_byte": bits(s)}}
            for t, s in lost[:worst]
        ],
    }
