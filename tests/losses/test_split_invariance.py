"""However a batch is cut into micro-batches, and in whatever order, its loss and the gradient are the same.

Sixty-four sequences of one to sixteen tokens, so that a mean of the micro-batches' means would be far off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from distill.losses import Loss, MultiLevelTransport, Rows, SampledTargets, Sinkhorn, SortedTransport, sampled

from .conftest import ROW_WISE

SEQUENCES, HIDDEN, CLASSES = 64, 8, 30
ADDITIVE = (*ROW_WISE, SampledTargets(samples=6), SortedTransport(), SortedTransport(kept=3))
# Of a loss that looks at a whole group, the batch may be cut between groups: here a group is a sequence.
GROUPED = (
    Sinkhorn(iterations=3),
    Sinkhorn(debias=False, memory="low", iterations=3),
    MultiLevelTransport(kept=20, iterations=3),
)
LIMITS = {torch.float32: 1e-6, torch.float64: 1e-12}


@dataclass
class Batch:
    """Hidden states of the tokens of all sequences, which a matrix makes logits of; and the rest of their rows."""

    hidden_NH: Tensor
    output_HV: Tensor
    rows: Rows
    sequence_N: Tensor


def batch_of(dtype: torch.dtype) -> Batch:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 17, (SEQUENCES,), generator=generator)
    count = int(lengths.sum())
    sequence_N = torch.arange(SEQUENCES).repeat_interleave(lengths)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # The longer a sequence, the more its teacher has to say.
    teacher_NV = random(count, CLASSES) * (lengths / 4).repeat_interleave(lengths)[:, None]
    rows = Rows(
        student=torch.zeros(count, CLASSES, dtype=dtype),
        teacher=teacher_NV.to(dtype),
        label=torch.randint(CLASSES, (count,), generator=generator),
        # A prompt's tokens do not count, and some examples count more than others.
        weight=((random(count) > -0.5) * (1 + sequence_N % 3)).to(dtype),
        group=sequence_N,
        sparse=sampled(teacher_NV.to(dtype), samples=6, generator=generator),
    )
    return Batch(random(count, HIDDEN).to(dtype), (random(HIDDEN, CLASSES) / 2).to(dtype), rows, sequence_N)


def of_cut(loss: Loss, batch: Batch, order_S: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The loss and its derivative for the output matrix, added up over micro-batches of so many sequences."""
    output_HV = batch.output_HV.clone().requires_grad_()
    total = batch.rows.weights.sum()
    added = torch.zeros((), dtype=output_HV.dtype)
    for members_S in order_S.split(size):
        place_M = torch.cat([(batch.sequence_N == each).nonzero().squeeze(-1) for each in members_S])
        part = batch.rows.select(place_M)
        part = replace(part, student=batch.hidden_NH[place_M] @ output_HV)
        if loss.sparse != "sampled":
            part = replace(part, sparse=None)
        mean = part.mean(loss(part), total_weight=total)
        mean.backward()
        added = added + mean.detach()
    assert output_HV.grad is not None
    return added, output_HV.grad


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("loss", [*ADDITIVE, *GROUPED], ids=repr)
def test_the_loss_and_its_gradient_do_not_depend_on_the_cut_or_the_order(loss, dtype):
    batch = batch_of(dtype)
    straight = torch.arange(SEQUENCES)
    shuffled = torch.randperm(SEQUENCES, generator=torch.Generator().manual_seed(1))
    whole, gradient_HV = of_cut(loss, batch, straight, SEQUENCES)
    for order_S, size in ((straight, 32), (straight, 8), (straight, 1), (shuffled, 64), (shuffled, 8)):
        found, found_HV = of_cut(loss, batch, order_S, size)
        assert error(found, whole) <= LIMITS[dtype]
        assert error(found_HV, gradient_HV) <= LIMITS[dtype]


def test_a_mean_of_the_micro_batches_means_is_another_number():
    """What the test above is for: the mistake is large on these sequences."""
    batch = batch_of(torch.float64)
    rows = replace(batch.rows, student=batch.hidden_NH @ batch.output_HV)
    loss = ROW_WISE[0]
    means = [
        part.mean(loss(part))
        for part in (rows.select(batch.sequence_N == number) for number in range(SEQUENCES))
    ]
    assert error(torch.stack(means).mean(), rows.mean(loss(rows))) > 0.1
