"""The order of the examples is a permutation each epoch, a function of seed and epoch, and little padded."""

from __future__ import annotations

import random

import pytest

from distill.engine import Engine
from distill.engine.batches import Plan, check_groups, epoch_batches, total_steps
from distill.losses import Labels
from distill.recipe import TrainRecipe

DRAW = random.Random(1)
LENGTHS = [DRAW.randrange(5, 120) for _ in range(500)]


@pytest.mark.parametrize("by_length", [True, False])
def test_every_epoch_sees_every_example_once(by_length):
    for epoch in range(3):
        batches = epoch_batches(LENGTHS, 16, seed=4, epoch=epoch, by_length=by_length)
        assert sorted(i for batch in batches for i in batch) == list(range(500))
        assert [len(batch) for batch in batches] == [16] * 31 + [4]


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return epoch_batches(LENGTHS, 16, seed=seed, epoch=epoch, by_length=True)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_sorting_by_length_saves_most_of_the_padding():
    def padding(by_length):
        batches = epoch_batches(LENGTHS, 16, seed=0, epoch=0, by_length=by_length)
        return sum(max(LENGTHS[i] for i in b) * len(b) for b in batches) / sum(LENGTHS)

    assert padding(by_length=True) <= 1.3 < padding(by_length=False)


@pytest.mark.parametrize(("by_length", "stop"), [(True, 5), (True, 8), (True, 20), (False, 14)])
def test_a_training_sees_every_example_once_an_epoch_stopped_or_not(
    new_student, features, tmp_path, stop_at, by_length, stop
):
    """Three epochs of 64 examples in 7 steps each. Nothing else decides the order: there are no worker processes."""
    train = TrainRecipe(
        num_train_epochs=3, per_device_train_batch_size=10, save_steps=4, group_by_length=by_length
    )

    def training(folder, seen):
        engine = Engine(new_student(), Labels(), features, train, seed=2, checkpoints=folder, owner="a")
        original = engine.step

        def watched(batch):
            original(batch)
            seen.append(batch)

        engine.step = watched
        return engine

    straight, broken, continued = [], [], []
    training(None, straight).run()
    assert len(straight) == 21
    for epoch in range(3):
        seen = [index for batch in straight[7 * epoch : 7 * (epoch + 1)] for index in batch]
        assert sorted(seen) == list(range(64))
    assert straight[:7] != straight[7:14] != straight[14:]

    stop_at(training(tmp_path, broken), stop)
    training(tmp_path, continued).run()
    assert broken == straight[:stop]
    assert continued == straight[stop // 4 * 4 :]


@pytest.mark.parametrize("size", [1, 5, 31, 32])
@pytest.mark.parametrize("devices", [1, 2])
def test_devices_and_forward_passes_share_a_batch_without_loss(size, devices):
    plan = Plan(micro_batch=4, accumulation=8 // devices, devices=devices, group=4)
    batch = list(range(100, 100 + size))
    parts = [part for device in range(devices) for part in plan.micro_batches(batch, device)]
    counted = [(i, g) for index, group, weight in parts if weight for i, g in zip(index, group, strict=True)]
    assert sorted(counted) == [(i, place // 4) for place, i in enumerate(batch)]
    assert len({len(plan.micro_batches(batch, device)) for device in range(devices)}) == 1


def test_the_passes_that_devices_make_at_once_stand_side_by_side_in_the_batch():
    plan = Plan(micro_batch=2, accumulation=2, devices=2, group=4)
    first, second = (plan.micro_batches(list(range(7)), device) for device in range(2))
    assert [index for index, _, _ in first] == [[0, 1], [4, 5]]
    assert [index for index, _, _ in second] == [[2, 3], [6]]
    assert [group for _, group, _ in first] == [[0, 0], [1, 1]]
    # Where there is nothing left for a device, it takes part with an example that does not count.
    assert plan.micro_batches(list(range(6)), 1)[1] == ([0], [0], 0.0)
    assert plan.spans_devices
    assert not Plan(micro_batch=4, devices=2, group=4).spans_devices
    assert not Plan(micro_batch=4).spans_devices


def test_a_group_that_fits_is_accepted_and_one_that_would_be_cut_is_not():
    assert check_groups(Plan(micro_batch=16, group=8)) is None
    assert check_groups(Plan(micro_batch=16)) is None
    assert "would be cut" in (check_groups(Plan(micro_batch=16, accumulation=2)) or "")
    assert "would be cut" in (check_groups(Plan(micro_batch=16, group=12)) or "")
    assert check_groups(Plan(micro_batch=16, devices=2)) is None
    assert check_groups(Plan(micro_batch=16, accumulation=3, devices=2, group=32)) is None
    assert "holds 32 on 2 devices" in (check_groups(Plan(micro_batch=16, accumulation=2, devices=2)) or "")


def test_steps_are_counted_by_epochs_unless_given():
    assert total_steps(TrainRecipe(num_train_epochs=3, per_device_train_batch_size=16), 100) == 21
    assert total_steps(TrainRecipe(num_train_epochs=0.5, per_device_train_batch_size=16), 100) == 4
    assert total_steps(TrainRecipe(max_steps=5), 100) == 5
    assert total_steps(TrainRecipe(gradient_accumulation_steps=2), 100, devices=2) == 6
