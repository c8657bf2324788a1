"""A loss far above those before it."""

from __future__ import annotations

import statistics

WINDOW = 128
DEVIATIONS = 6.0


class Spikes:
    """Notices the first loss that stands more than 6 standard deviations above the mean of the 128 before it.

    The rule by which OLMo-core's optimizers skip a step. Here nothing is skipped: gradients are clipped, and a step
    that is left out would be one that the baseline takes.

    Attributes:
        losses: the last ones, all of which a checkpoint keeps; None once a spike was found.
    """

    def __init__(self) -> None:
        self.losses: list[float] | None = []

    def above(self, loss: float) -> float | None:
        """How many standard deviations this loss stands above those before it, if it is the first spike."""
        before = self.losses
        if before is None:
            return None
        if len(before) == WINDOW:
            deviation = statistics.pstdev(before)
            height = loss - statistics.fmean(before)
            if height > DEVIATIONS * deviation > 0:
                self.losses = None
                return height / deviation
            del before[0]
        before.append(loss)
        return None
