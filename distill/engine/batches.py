"""The order in which a run sees its examples: a function of seed and epoch alone, so that it can be resumed."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from distill.recipe import TrainRecipe

MicroBatch = tuple[list[int], list[int], float]
"""The examples of one forward pass: their indices, their group ids, and the weight of their rows."""
# Sorting by length within this many batches keeps padding low and the order still random.
BATCHES_SORTED_TOGETHER = 10


@dataclass(frozen=True)
class Plan:
    """How the examples of a run become optimizer steps.

    Attributes:
        micro_batch: examples of one forward pass on one device.
        accumulation: forward passes of a device that one optimizer step adds up.
        devices: processes that share a step.
        group: examples of a batch-wise group; None is the whole batch of a step.
        at_once: examples of a forward pass where memory did not hold `micro_batch` of them; what a step and a device
            share of a batch stays the same.
    """

    micro_batch: int
    accumulation: int = 1
    devices: int = 1
    group: int | None = None
    at_once: int | None = None

    @property
    def held(self) -> int:
        """Examples that memory has to hold in a forward pass."""
        return self.at_once or self.micro_batch

    @property
    def batch(self) -> int:
        """Examples of one optimizer step, over all devices."""
        return self.micro_batch * self.accumulation * self.devices

    def steps_per_epoch(self, examples: int) -> int:
        """Optimizer steps that see every example once; the last may be smaller."""
        return -(-examples // self.batch)

    def micro_batches(self, batch: Sequence[int], device: int) -> list[MicroBatch]:
        """What one device does in one step, a forward pass each; as many on every device.

        The devices' passes of one turn stand side by side in the batch, so that a group of up to `micro_batch *
        devices` examples is one turn's. A device that a small last batch does not reach gets one example of weight 0,
        so that all devices take part in every pass.
        """
        group = self.group or self.batch
        if self.devices == 1:
            return self.split([(list(batch), [place // group for place in range(len(batch))], 1.0)])
        together = self.micro_batch * self.devices
        passes: list[MicroBatch] = []
        for turn in range(0, len(batch), together):
            start = turn + device * self.micro_batch
            places = range(start, min(start + self.micro_batch, len(batch)))
            if places:
                passes.append(([batch[p] for p in places], [p // group for p in places], 1.0))
            else:
                passes.append(([batch[0]], [0], 0.0))
        return passes

    @property
    def spans_devices(self) -> bool:
        """Whether a batch-wise group holds examples of several devices, whose rows must then be brought together."""
        return self.devices > 1 and self.micro_batch % (self.group or self.batch) != 0

    def split(self, micro_batches: Sequence[MicroBatch]) -> list[MicroBatch]:
        """The same examples, as many a forward pass as memory holds."""
        return [
            (index[first : first + self.held], group[first : first + self.held], weight)
            for index, group, weight in micro_batches
            for first in range(0, len(index), self.held)
        ]

    def halved(self, *, whole_groups: bool) -> Plan | None:
        """The same batches with half as many examples a forward pass; None where these cannot be fewer."""
        unit = (self.group or self.batch) if whole_groups else 1
        half = self.held // 2 // unit * unit
        return replace(self, at_once=half) if half else None


def total_steps(train: TrainRecipe, examples: int, devices: int = 1) -> int:
    """Optimizer steps of a whole training."""
    plan = Plan(train.per_device_train_batch_size, train.gradient_accumulation_steps, devices)
    return train.max_steps or math.ceil(train.num_train_epochs * plan.steps_per_epoch(examples))


def check_groups(plan: Plan) -> str | None:
    """Why a plan would cut a batch-wise group into pieces; None when it does not."""
    group, together = plan.group or plan.batch, plan.micro_batch * plan.devices
    if together % group == 0:
        return None
    devices = f" on {plan.devices} devices" if plan.devices > 1 else ""
    return (
        f"the loss compares groups of {group} examples, but a forward pass holds {together}{devices} "
        f"(batch {plan.batch} = {plan.micro_batch} × {plan.accumulation} accumulated × {plan.devices} devices): "
        f"a group would be cut; set the loss's group_size to a divisor of {plan.micro_batch}"
    )


def epoch_batches(
    lengths: Sequence[int], batch: int, *, seed: int, epoch: int, by_length: bool
) -> list[list[int]]:
    """The batches of one epoch: every example once, shuffled by (seed, epoch), similar lengths together if asked."""
    shuffle = random.Random(f"{seed}-{epoch}")  # noqa: S311 - an order, not a secret
    order = list(range(len(lengths)))
    shuffle.shuffle(order)
    if by_length:
        pool = batch * BATCHES_SORTED_TOGETHER
        order = [
            i
            for start in range(0, len(order), pool)
            for i in sorted(order[start : start + pool], key=lambda i: lengths[i])
        ]
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    if by_length:
        last = batches.pop() if len(batches[-1]) < batch else None  # the short batch stays last
        shuffle.shuffle(batches)
        if last is not None:
            batches.append(last)
    return batches
