"""Scores with error bars, compression, and the verdict against a matched baseline."""

from distill.evaluation.agreement import agreement
from distill.evaluation.calibration import calibration
from distill.evaluation.compression import (
    ROUNDS,
    WARM_UP,
    Size,
    added,
    latency,
    measure,
    ratios,
    shareable,
    size,
    together,
)
from distill.evaluation.verdict import Interval, Resampler, interval, judge, sentence, task_score

__all__ = [
    "ROUNDS",
    "WARM_UP",
    "Interval",
    "Resampler",
    "Size",
    "added",
    "agreement",
    "calibration",
    "interval",
    "judge",
    "latency",
    "measure",
    "ratios",
    "sentence",
    "shareable",
    "size",
    "task_score",
    "together",
]
