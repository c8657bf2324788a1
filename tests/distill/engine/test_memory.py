"""A forward pass that memory does not hold is made again in halves: the same batch, the same gradient, the same bits again."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from distill.engine import Engine
from distill.engine.batches import Plan
from distill.engine.preflight import preflight
from distill.errors import ResourceError
from distill.losses import ForwardKL, Labels, Sinkhorn
from distill.memory import ran_out_of_memory, what_was_wanted
from distill.recipe import TrainRecipe

from .weights import assert_bitwise_equal, weights

LOSS = 0.5 * Labels() + 0.5 * ForwardKL(temperature=2.0)
GPU = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …"
)
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4611686018427387904 bytes. Error code 12 (Cannot allocate memory)"
)
NUMPY = MemoryError("Unable to allocate 8.00 EiB for an array with shape (1152921504606846976,)")
TRAIN = TrainRecipe(
    max_steps=6,
    learning_rate=1e-3,
    per_device_train_batch_size=16,
    gradient_accumulation_steps=2,
    logging_steps=1,
    save_steps=2,
    dropout=0.0,
)


class Starved(Engine):
    """An engine whose second backward pass of a step fails for more than `room` examples, from a step on.

    The first pass's gradients and figures are there by then, and dropout has been drawn.
    """

    room, from_step, error, failures = 0, 0, GPU, 0

    def _parts(self, work, micro):
        parts = super()._parts(work, micro)
        first = len(work.micro_batches) > 1 and work.micro_batches[0][0][0] == micro[0][0]
        if self.room and len(micro[0]) > self.room and self.step_number + 1 >= self.from_step and not first:
            (part,) = parts

            def starve(gradient):
                type(self).failures += 1
                raise self.error

            values = part.rows.student * 1.0
            values.register_hook(starve)
            return [replace(part, rows=replace(part.rows, student=values))]
        return parts


@pytest.fixture
def engine(new_student, teacher, features, monkeypatch):
    """A function that makes an engine, starved if `room` says how many examples it holds."""

    def make(room=0, from_step=0, error=GPU, train=TRAIN, loss=LOSS, **more):
        monkeypatch.setattr(Starved, "room", room)
        monkeypatch.setattr(Starved, "from_step", from_step)
        monkeypatch.setattr(Starved, "error", error)
        monkeypatch.setattr(Starved, "failures", 0)
        made = Starved(new_student(), loss, features, train, teacher=teacher, owner="student-rte@0", **more)
        made.said = []
        made.progress.say = made.said.append
        return made

    return make


@pytest.mark.parametrize("error", [GPU, CPU, NUMPY], ids=["gpu", "cpu", "numpy"])
@pytest.mark.parametrize(("room", "halvings"), [(8, 1), (3, 3)])
def test_losses_and_weights_are_those_of_a_machine_with_enough_memory(engine, room, halvings, error):
    enough, short = [], []
    unstarved = weights(engine(log=enough.append).run())
    starved = engine(room, 3, error, log=short.append)
    found = weights(starved.run())
    assert starved.failures == len(starved.said) == halvings  # said once each, and smaller ever after
    assert starved.plan.batch == 32
    assert starved.step_number == 6
    for one, other in zip(enough, short, strict=True):
        for figure in ("loss", "loss/labels", "loss/forward_kl", "gradient_norm"):
            assert other[figure] == pytest.approx(one[figure], rel=1e-6, abs=1e-6), (one["step"], figure)
    for name in unstarved:
        assert (found[name] - unstarved[name]).abs().max() <= 1e-6, name


def test_the_gradient_of_the_repeated_step_is_the_batchs(engine):
    caught = []
    for room in (0, 5):
        made = engine(room, train=replace(TRAIN, max_grad_norm=None))
        made.optimizer.optimizer.register_step_pre_hook(
            lambda *_, made=made: caught.append(
                torch.cat([p.grad.flatten() for _, p in made._trained() if p.grad is not None])
            )
        )
        made.step(list(range(32)))
    whole, parts = caught
    assert whole.norm() > 1e-3
    assert (parts - whole).abs().max() <= 1e-6


def test_what_is_said_names_training_step_size_and_what_comes(engine):
    starved = engine(8, 3, CPU)
    starved.run()
    (line,) = starved.said
    assert line == (
        "student-rte: step 3: out of memory with 16 examples a forward pass (can't allocate memory: you tried to "
        "allocate 4611686018427387904 bytes); goes on with 8 at once: the same batch, the same gradient, more forward "
        "passes"
    )


def test_dropout_of_the_repeated_step_is_what_it_would_have_been(engine):
    """Failing costs nothing but time: the weights are bitwise those of a run that went over to halves by itself."""
    train = replace(TRAIN, dropout=0.3)
    starved = weights(engine(8, 3, train=train).run())
    knowing = engine(train=train)
    step = knowing.step

    def halves_from_step_3(batch):
        if knowing.step_number == 2:
            knowing.plan = replace(knowing.plan, at_once=8)
        step(batch)

    knowing.step = halves_from_step_3
    assert_bitwise_equal(weights(knowing.run()), starved)


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_an_interrupted_starved_run_ends_with_bitwise_the_same_weights(engine, tmp_path, stop_at, stop):
    """Even where the memory is there again when it continues: the checkpoint knows how batches were split."""
    train = replace(TRAIN, dropout=0.3)
    straight = engine(5, 3, train=train, checkpoints=tmp_path / "straight")
    ended = weights(straight.run())
    stop_at(engine(5, 3, train=train, checkpoints=tmp_path / "broken"), stop)
    continued = engine(5 if stop == 2 else 0, 3, train=train, checkpoints=tmp_path / "broken")
    assert continued.resume() == (2 if stop < 4 else 4)
    assert continued.plan.at_once == (None if stop == 2 else 4)
    assert_bitwise_equal(ended, weights(continued.run()))
    assert continued.tokens == straight.tokens


def test_figures_of_the_failed_attempt_are_dropped(engine):
    enough, short = [], []
    train = replace(TRAIN, logging_steps=3)
    engine(log=enough.append, train=train).run()
    engine(8, 2, train=train, log=short.append).run()
    for one, other in zip(enough, short, strict=True):
        assert other["loss/labels"] == pytest.approx(one["loss/labels"], rel=1e-6)


def test_one_example_that_is_too_much_stops_the_run_with_advice(engine, monkeypatch):
    starved = engine(1, 4, train=replace(TRAIN, per_device_train_batch_size=4))
    monkeypatch.setattr(Starved, "_parts", _never_enough)
    before = []
    starved.run_step, starved.step = (
        starved.step,
        lambda batch: (
            before.append(weights(starved.student)),
            starved.run_step(batch),
        ),
    )
    with pytest.raises(
        ResourceError,
        match=r"^student-rte: step 4: out of memory with 1 examples a forward pass \(CUDA out of memory\), which cannot "
        r"be fewer; lower data\.max_length, take a smaller student or teacher, or set",
    ):
        starved.run()
    assert len(starved.said) == 2  # 4 -> 2 -> 1
    assert_bitwise_equal(before[-1], weights(starved.student))


def _never_enough(self, work, micro):
    if self.step_number == 3:
        raise GPU
    return Engine._parts(self, work, micro)


def test_a_batchwise_group_is_never_cut(engine):
    loss = Sinkhorn(group_size=4) + Labels()
    enough, short = [], []
    engine(loss=loss, log=enough.append).run()
    starved = engine(4, 3, loss=loss, log=short.append)
    starved.run()
    assert starved.plan.at_once == 4
    for one, other in zip(enough, short, strict=True):
        assert other["loss/sinkhorn"] == pytest.approx(one["loss/sinkhorn"], rel=1e-6, abs=1e-6)
    with pytest.raises(
        ResourceError,
        match=r"step 3: out of memory with 4 examples .* a group of a batch-wise loss must not be cut; lower the loss's "
        r"group_size",
    ):
        engine(2, 3, loss=loss).run()


def test_a_group_that_is_the_whole_batch_is_refused_at_once(engine):
    train = replace(TRAIN, gradient_accumulation_steps=1)
    starved = engine(8, 3, loss=Sinkhorn() + Labels(), train=train)
    with pytest.raises(ResourceError, match=r"step 3: out of memory with 16 examples .* must not be cut"):
        starved.run()
    assert starved.said == []


@pytest.mark.parametrize(
    ("plan", "sizes"),
    [
        (Plan(16), [8, 4, 2, 1]),
        (Plan(5, accumulation=2), [2, 1]),
        (Plan(24, group=8), [8]),
        (Plan(32, group=8), [16, 8]),
        (Plan(16), []),
    ],
    ids=["even", "odd", "three groups", "four groups", "one group"],
)
def test_halves_hold_the_same_examples_in_whole_groups(plan, sizes):
    whole_groups = plan.group is not None or not sizes
    found = []
    batch = list(range(100, 100 + plan.batch - 1))  # the last batch of an epoch is short
    groups = {
        i: g for index, group, _ in plan.micro_batches(batch, 0) for i, g in zip(index, group, strict=True)
    }
    while (plan := plan.halved(whole_groups=whole_groups)) is not None:
        found.append(plan.held)
        parts = plan.micro_batches(batch, 0)
        assert [i for index, _, _ in parts for i in index] == batch
        assert max(len(index) for index, _, _ in parts) == plan.held
        assert {i: g for index, group, _ in parts for i, g in zip(index, group, strict=True)} == groups
        if whole_groups:
            for (_, first, _), (_, second, _) in itertools.pairwise(parts):
                assert first[-1] != second[0]
    assert found == sizes


def test_the_look_ahead_finds_out_how_much_memory_holds(engine, tmp_path):
    starved = engine(8, checkpoints=tmp_path)
    found = preflight(starved, "student-rte", baseline=False)
    assert starved.plan.at_once == 8
    assert len(starved.said) == 1
    assert "preflight: student-rte: out of memory with 16 examples" in starved.said[0]
    assert found.duration.steps == 6
    assert starved.tokens == starved.step_number == 0
    assert all(parameter.grad is None for _, parameter in starved._trained())
    starved.run()
    assert len(starved.said) == 1


def test_memory_that_runs_out_in_the_optimizer_or_in_evaluation_is_one_line(engine):
    def fail(*_):
        raise GPU

    starved = engine()
    starved.optimizer.optimizer.register_step_pre_hook(fail)
    with pytest.raises(
        ResourceError, match=r"student-rte: step 1: out of memory \(CUDA out of memory\); take a smaller"
    ):
        starved.run()
    starved = engine(train=replace(TRAIN, eval_steps=2), evaluate=fail)
    with pytest.raises(ResourceError, match=r"evaluation at step 2: out of memory .*eval_batch_size"):
        starved.run()


def test_other_errors_of_a_step_are_not_taken_for_a_lack_of_memory(engine):
    with pytest.raises(RuntimeError, match="expected scalar type"):
        engine(4, error=RuntimeError("expected scalar type Half but found Float")).run()


def test_lack_of_memory_is_recognised_and_said_in_few_words():
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**60)
    assert ran_out_of_memory(real.value)
    assert what_was_wanted(real.value).startswith(
        "can't allocate memory: you tried to allocate 4611686018427387904 bytes"
    )
    assert all(
        map(ran_out_of_memory, (GPU, CPU, NUMPY, RuntimeError("CUDA error: out of memory\nCUDA kernel …")))
    )
    assert not any(
        map(
            ran_out_of_memory, (RuntimeError("shape mismatch"), ValueError("out of memory"), OSError(12, "?"))
        )
    )
    assert what_was_wanted(MemoryError()) == "MemoryError"
