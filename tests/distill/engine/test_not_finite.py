"""A NaN or an infinity stops a run before the weights change, and is traced to its tensor, step and example."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch

from distill.engine import Engine
from distill.engine.batches import epoch_batches
from distill.engine.checkpoint import latest_checkpoint
from distill.engine.spikes import Spikes
from distill.errors import NumericsError
from distill.losses import ForwardKL, Labels, Loss, Rows, Sinkhorn
from distill.models import NextTokens, Prediction, Student, Teacher
from distill.recipe import OnPolicy, TrainRecipe

from .weights import assert_bitwise_equal, weights

TRAIN = TrainRecipe(
    max_steps=6,
    learning_rate=1e-3,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=2,
    save_steps=1,
    dropout=0.3,
)
PLACE = 11  # of the broken example in its batch: in the second forward pass
LOSS = 0.5 * Labels() + 0.5 * ForwardKL()


@dataclass(frozen=True)
class Weighed(Loss):
    """Cross-entropy, and NaN for the rows of group −1."""

    kind: Literal["weighed"] = "weighed"

    def values(self, rows: Rows) -> torch.Tensor:
        values_N = Labels().values(rows)
        return values_N.where(rows.group != -1, torch.nan)


class Broken(Engine):
    """An engine in which one example of one step is spoilt, in one tensor."""

    where, value, step_of, victim = "nowhere", float("nan"), 0, -1

    def _rows(self, batch):
        rows = super()._rows(batch)
        at_N = batch.index_B == self.victim
        if self.step_number + 1 != self.step_of or not bool(at_N.any()):
            return rows
        spoilt = {}
        if self.where in ("student", "teacher"):
            logits_NC = getattr(rows, self.where)
            one_NC = at_N[:, None] & (torch.arange(logits_NC.shape[1]) == 1)
            spoilt[self.where] = logits_NC.masked_fill(one_NC, self.value)
        elif self.where == "loss":
            spoilt["group"] = rows.group.masked_fill(at_N, -1)
        elif self.where == "gradient" and rows.student.requires_grad:
            student_NC = rows.student * 1.0
            student_NC.register_hook(lambda gradient: gradient.masked_fill(at_N[:, None], self.value))
            spoilt["student"] = student_NC
        return replace(rows, **spoilt)


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize(
    ("where", "value", "found"),
    [
        (
            "teacher",
            NAN,
            r"teacher logits: row 3 of 8: expected a row whose largest logit is finite, got nan",
        ),
        ("teacher", INFINITY, r"teacher logits: row 3 of 8: .*, got inf"),
        ("student", NAN, r"student logits: row 3 of 8: .*, got nan"),
        ("student", INFINITY, r"student logits: row 3 of 8: .*, got inf"),
        ("loss", NAN, r"loss term weighed is not finite, got nan"),
        ("gradient", NAN, r"the gradient of \S+ is not finite \(\d+ tensors in all\)"),
        ("gradient", INFINITY, r"the gradient of \S+ is not finite \(\d+ tensors in all\)"),
    ],
)
def test_the_run_stops_before_the_weights_change(
    new_student, teacher, features, tmp_path, where, value, found, step
):
    def engine(made, folder, steps=6):
        loss = Weighed() + Labels() if where == "loss" else LOSS
        train = replace(TRAIN, max_steps=steps, lr_scheduler_type="constant", warmup_steps=0)
        return made(
            new_student(), loss, features, train, teacher=teacher, seed=2, checkpoints=folder, owner="a"
        )

    batches = epoch_batches(features.lengths, 16, seed=2, epoch=0, by_length=True)
    broken = engine(Broken, tmp_path / "broken")
    broken.where, broken.value, broken.step_of = where, value, step
    broken.victim = batches[step - 1][PLACE]
    with pytest.raises(
        NumericsError,
        match=rf"^step {step}: training example {broken.victim}: {found}.*; the weights are those of the step before",
    ):
        broken.run()
    assert broken.step_number == step - 1
    if step == 1:
        before = weights(new_student())
    else:
        before = weights(engine(Engine, tmp_path / "straight", steps=step - 1).run())
        assert latest_checkpoint(tmp_path / "broken", "a")[0].step == step - 1
    assert_bitwise_equal(before, weights(broken.student))
    assert all(parameter.grad is None for parameter in broken.student.model.parameters())


def test_after_the_cause_is_gone_the_run_goes_on_to_the_same_weights(
    new_student, teacher, features, tmp_path
):
    def engine(made, folder):
        return made(
            new_student(), LOSS, features, TRAIN, teacher=teacher, seed=2, checkpoints=folder, owner="a"
        )

    straight = weights(engine(Engine, tmp_path / "straight").run())
    broken = engine(Broken, tmp_path / "broken")
    broken.where, broken.step_of = "teacher", 4
    broken.victim = epoch_batches(features.lengths, 16, seed=2, epoch=0, by_length=True)[3][0]
    with pytest.raises(NumericsError):
        broken.run()
    assert_bitwise_equal(straight, weights(engine(Engine, tmp_path / "broken").run()))


def test_an_impossible_class_of_the_teacher_is_fine(new_student, teacher, features):
    engine = Broken(new_student(), LOSS, features, TRAIN, teacher=teacher)
    engine.where, engine.value, engine.step_of, engine.victim = "teacher", -INFINITY, 1, 0
    assert engine.run()


def test_a_gradient_of_a_batchwise_loss_is_named_without_an_example(new_student, teacher, features):
    engine = Broken(new_student(), Sinkhorn(group_size=8) + Labels(), features, TRAIN, teacher=teacher)
    engine.where, engine.step_of, engine.victim = "gradient", 1, 0
    engine.features = features
    with pytest.raises(NumericsError, match=r"^step 1: the gradient of \S+ is not finite"):
        engine.step(list(range(16)))


def test_a_gradient_whose_norm_alone_is_too_large_is_called_that(new_student, features):
    student = new_student()
    student.model.classifier.weight.register_hook(lambda gradient: gradient * 0 + 1e30)
    with pytest.raises(
        NumericsError, match=r"step 1: the gradient's norm is beyond float32; the weights are"
    ):
        Engine(student, Labels(), features, TRAIN).run()


def test_the_name_of_an_example_is_the_data_s(new_student, teacher, features):
    engine = Broken(
        new_student(), LOSS, features, TRAIN, teacher=teacher, example_name=lambda index: f"line {index + 1}"
    )
    engine.where, engine.step_of, engine.victim = "student", 1, 6
    with pytest.raises(NumericsError, match=r"^step 1: line 7: student logits"):
        engine.step(list(range(16)))


# Language models: a row is a token.


@pytest.fixture(scope="module")
def decoder(tiny_llama) -> Student:
    return Student.from_teacher(str(tiny_llama), layers=1, kind="causal_lm", labels=())


@pytest.fixture(scope="module")
def texts(decoder) -> NextTokens:
    draw = random.Random(0)
    ids = [[draw.randrange(2, 390) for _ in range(draw.randrange(5, 9))] for _ in range(16)]
    return NextTokens(ids, [[at > 2 for at in range(len(text))] for text in ids], decoder.tokenizer)


class Spoiling(Teacher):
    """Says NaN of the last token of the texts that begin in a certain way."""

    beginning: tuple[int, ...] = ()

    def __call__(self, batch, wanted=None):
        logits_NV = super().__call__(batch).logits_NC.clone()
        of_N = batch.rows_BT.nonzero()[:, 0]
        for place, ids in enumerate(batch.inputs["input_ids"].tolist()):
            if tuple(ids[: len(self.beginning)]) == self.beginning:
                logits_NV[(of_N == place).nonzero()[-1, 0]] = torch.nan
        return Prediction(logits_NV)


@pytest.mark.parametrize("own", [False, True], ids=["data", "own texts"])
def test_a_token_is_traced_to_its_text(decoder, texts, own):
    teacher = Spoiling(copy.deepcopy(decoder.model), decoder.tokenizer)
    teacher.beginning = tuple(texts.prompt(13, 32))
    student = Student(copy.deepcopy(decoder.model), decoder.tokenizer, decoder.provenance)
    train = TrainRecipe(
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        on_policy=OnPolicy(fraction=1.0, max_new_tokens=4) if own else None,
    )
    engine = Engine(student, ForwardKL(), texts, train, teacher=teacher)
    before = weights(student)
    whose = "the student's own text behind the prompt of " if own else ""
    with pytest.raises(NumericsError, match=rf"^step 1: {whose}training example 13: teacher logits: row"):
        engine.run()
    assert_bitwise_equal(before, weights(student))


# A loss far above those before it.


def test_a_spike_is_six_deviations_above_the_128_losses_before_it():
    draw = random.Random(0)
    ordinary = [draw.gauss(1.0, 0.1) for _ in range(400)]
    spikes = Spikes()
    assert [spikes.above(loss) for loss in ordinary] == [None] * 400
    last = ordinary[-128:]
    mean = sum(last) / 128
    deviation = (sum((loss - mean) ** 2 for loss in last) / 128) ** 0.5
    below, above = copy.deepcopy(spikes), copy.deepcopy(spikes)
    assert below.above(mean + 5.999 * deviation) is None
    assert above.above(mean + 6.001 * deviation) == pytest.approx(6.001)
    assert above.above(1e9) is None  # said once


def test_the_first_losses_and_equal_ones_are_no_ground_to_judge_by():
    spikes = Spikes()
    assert all(spikes.above(loss) is None for loss in [*[1.0, 1.1] * 63, 1.0, 1e6])
    spikes = Spikes()
    assert all(spikes.above(loss) is None for loss in [0.0] * 128 + [1e-30])


@pytest.mark.parametrize("stop", [None, 132])
def test_a_spike_is_said_once_also_by_a_run_that_was_interrupted(
    new_student, teacher, features, tmp_path, stop_at, stop
):
    class Spiking(Engine):
        def _rows(self, batch):
            rows = super()._rows(batch)
            spike = self.step_number + 1 in (135, 140)
            return replace(rows, teacher=rows.teacher + 1e4 * torch.eye(2)[0]) if spike else rows

    def engine():
        train = TrainRecipe(max_steps=142, save_steps=10, learning_rate=1e-6, per_device_train_batch_size=2)
        made = Spiking(
            new_student(),
            ForwardKL(),
            features,
            train,
            teacher=teacher,
            checkpoints=tmp_path,
            owner="student@0",
        )
        made.progress.say = said.append
        return made

    said: list[str] = []
    if stop:
        stop_at(engine(), stop)
        assert said == []
    engine().run()
    (line,) = said
    assert line.startswith("student: step 135: loss ")
    assert "standard deviations above the 128 before it" in line
