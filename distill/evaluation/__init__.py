"""Scores with error bars, compression, and the verdict against a matched baseline."""

from distill.evaluation.agreement import agreement
from distill.evaluation.calibration import calibration
from distill.evaluation.compression import Size, added, latency, ratios, shareable, size
from distill.evaluation.verdict import Interval, Resampler, interval, judge, sentence, task_score

__all__ = [
    "Interval",
    "Resampler",
    "Size",
    "added",
    "agreement",
    "calibration",
    "interval",
    "judge",
    "latency",
    "ratios",
    "sentence",
    "shareable",
    "size",
    "task_score",
]
