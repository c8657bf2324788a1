"""How far a model's confidence can be taken for the share of answers that are right.

Shapes: N answers, K bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.tasks import TASKS, Answer

BINS = 10
DRAWS = 200


def calibration(task: str, by_seed: Sequence[Sequence[Answer]]) -> dict[str, Any] | None:
    """The expected calibration error (ECE) of stored answers, those of all seeds together, and the bins it is made of.

    Confidence is the largest of the softmax of an answer's logits (ReCoRD: of each candidate's two). Bin k of ten
    holds the confidences above k/10, up to (k + 1)/10. ECE is the mean over answers of |share right − mean confidence|
    of their bin. Of few answers it is never near 0: `ece_if_calibrated` is what it would be on average if these
    confidences were right.

    Paper: Guo et al. 2017, arXiv:1706.04599, eq. 3.

    Returns:
        `{"ece", "ece_if_calibrated", "confidence", "accuracy", "n", "bins": [{"from", "to", "n", "confidence",
        "accuracy"}, …]}`, empty bins left out; None where there are no probabilities (written texts, plain text).
    """
    chosen, answers = TASKS[task], [answer for answers in by_seed for answer in answers]
    if not chosen.labels or not answers or any(a.text is not None or a.gold is None for a in answers):
        return None
    probability_NC = np.concatenate([chosen.probabilities(each) for each in by_seed])
    confidence_N = probability_NC.max(axis=1)
    right_N = (probability_NC.argmax(axis=1) == np.array([answer.gold for answer in answers])).astype(float)
    bin_N = np.clip(np.ceil(confidence_N * BINS).astype(int) - 1, 0, BINS - 1)
    count_K = np.bincount(bin_N, minlength=BINS)
    confidence_K, right_K = (np.bincount(bin_N, v, minlength=BINS) for v in (confidence_N, right_N))
    draw = np.random.default_rng(0)
    drawn = [
        _error(np.bincount(bin_N, draw.random(len(confidence_N)) < confidence_N, BINS), confidence_K)
        for _ in range(DRAWS)
    ]
    return {
        "ece": _error(right_K, confidence_K) / len(answers),
        "ece_if_calibrated": float(np.mean(drawn)) / len(answers),
        "confidence": float(confidence_N.mean()),
        "accuracy": float(right_N.mean()),
        "n": len(answers),
        "bins": [
            {
                "from": k / BINS,
                "to": (k + 1) / BINS,
                "n": int(count_K[k]),
                "confidence": float(confidence_K[k] / count_K[k]),
                "accuracy": float(right_K[k] / count_K[k]),
            }
            for k in range(BINS)
            if count_K[k]
        ],
    }


def _error(right_K: NDArray[Any], confidence_K: NDArray[Any]) -> float:
    """Sums over answers, so that a bin counts by what is in it."""
    return float(np.abs(right_K - confidence_K).sum())
