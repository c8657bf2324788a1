"""Scores with error bars, compression, and the verdict against a matched baseline."""

from distill.evaluation.compression import Size, added, latency, ratios, shareable, size
from distill.evaluation.verdict import Interval, Resampler, interval, judge, sentence, task_score

__all__ = [
    "Interval",
    "Resampler",
    "Size",
    "added",
    "interval",
    "judge",
    "latency",
    "ratios",
    "sentence",
    "shareable",
    "size",
    "task_score",
]
