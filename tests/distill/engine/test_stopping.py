"""Asked to stop, an engine finishes its step and leaves a checkpoint; started again it ends as if it had gone on."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch

from distill.engine import Engine
from distill.engine.checkpoint import KIND, latest_checkpoint
from distill.errors import CheckpointError, MismatchError
from distill.losses import TAID, ForwardKL, HiddenStates, Labels
from distill.manifest import seal
from distill.recipe import TrainRecipe
from distill.signals import HeldBack

# 64 examples in batches of 2 × 6: an epoch is 6 steps, the last of them of one forward pass. Nothing is saved but when asked.
TRAIN = TrainRecipe(
    max_steps=14,
    learning_rate=3e-3,
    per_device_train_batch_size=6,
    gradient_accumulation_steps=2,
    warmup_steps=4,
    max_grad_norm=0.3,
    dropout=0.1,
    logging_steps=5,
    eval_steps=7,
    save_steps=1000,
)
LOSS = 0.5 * Labels() + 0.4 * TAID(rate=0.1) + 0.1 * HiddenStates(layers=((0, 0), (-1, -1)))


class Asked(Exception):
    """What the test's own signal handler raises."""


@pytest.fixture(autouse=True)
def own_handlers():
    """SIGTERM raises Asked; what was there before comes back."""

    def ask(number, frame):
        raise Asked(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    yield ask
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def new_engine(new_student, teacher, features, tmp_path):
    """A function that makes the same engine each time, with a folder of its own and a list that it logs to."""

    def make(name: str, lines: list, loss=LOSS, train=TRAIN) -> Engine:
        return Engine(
            new_student(),
            loss,
            features,
            train,
            teacher=teacher,
            seed=5,
            checkpoints=tmp_path / name,
            owner="me",
            evaluate=lambda: {"validation/fixed": 1.0},
            log=lines.append,
        )

    return make


@pytest.fixture
def straight(new_engine):
    """Everything that the undisturbed training ends with."""
    lines: list[dict] = []
    return everything(new_engine("straight", lines), lines)


def everything(engine: Engine, lines: list[dict]) -> dict:
    """Run to the end; weights, projections, optimizer, rate, loss, random numbers and figures."""
    student = engine.run()
    return {
        "weights": {name: tensor.clone() for name, tensor in student.model.state_dict().items()},
        "projections": {name: tensor.clone() for name, tensor in engine.projections.state_dict().items()},
        "optimizer": {
            f"{number}.{name}": tensor.clone()
            for number, entry in engine.optimizer.state_dict()["state"].items()
            for name, tensor in entry.items()
        },
        "random": {"cpu": torch.get_rng_state()},
        "rate": engine.scheduler.get_last_lr(),
        "loss": engine.loss.terms,
        "tokens": engine.tokens,
        "lines": [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines],
    }


def assert_the_same(found: dict, expected: dict) -> None:
    for what in ("weights", "projections", "optimizer", "random"):
        assert found[what].keys() == expected[what].keys()
        for name, tensor in expected[what].items():
            assert torch.equal(found[what][name], tensor), f"{what}: {name}"
    for what in ("rate", "loss", "tokens", "lines"):
        assert found[what] == expected[what], what


def ask_in_step(engine: Engine, step: int, *, number: int = signal.SIGTERM, times: int = 1) -> None:
    """Send this process a signal before the last forward pass of a step, counted from 1."""
    original, passes = engine._parts, []

    def parts(work, micro):
        if engine.step_number + 1 == step:
            passes.append(1)
            if len(passes) == len(work.micro_batches):
                for _ in range(times):
                    os.kill(os.getpid(), number)
        return original(work, micro)

    engine._parts = parts


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(1, id="the first step"),
        pytest.param(4, id="in the first epoch, between two lines of the log"),
        pytest.param(6, id="the last step of an epoch"),
        pytest.param(7, id="where an evaluation is due"),
        pytest.param(14, id="the last step"),
    ],
)
def test_a_training_asked_to_stop_amid_a_batch_ends_as_the_undisturbed_one(new_engine, straight, step):
    lines: list[dict] = []
    stopped = new_engine("stopped", lines)
    ask_in_step(stopped, step)
    with pytest.raises(Asked):
        stopped.run()
    assert stopped.step_number == step
    torch.manual_seed(999)  # whatever happens in between must not matter
    continued = new_engine("stopped", lines)
    assert continued.resume() == step
    assert_the_same(everything(continued, lines), straight)


def test_a_training_asked_again_and_again_ends_as_the_undisturbed_one(new_engine, straight):
    lines: list[dict] = []
    for step in (2, 3, 8, 9, 13):
        stopped = new_engine("stopped", lines)
        ask_in_step(stopped, step)
        with pytest.raises(Asked):
            stopped.run()
    assert_the_same(everything(new_engine("stopped", lines), lines), straight)


def test_a_second_signal_ends_it_at_once(new_engine, tmp_path, own_handlers):
    engine = new_engine("hurried", [])
    ask_in_step(engine, 3, times=2)
    with pytest.raises(Asked):
        engine.run()
    assert engine.step_number == 2
    assert not (tmp_path / "hurried").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGINT) is own_handlers


def test_an_interrupt_is_held_back_too_and_the_handlers_come_back(new_engine, own_handlers):
    engine = new_engine("interrupted", [])
    ask_in_step(engine, 3, number=signal.SIGINT)
    with pytest.raises(Asked, match=str(int(signal.SIGINT))):
        engine.run()
    assert engine.step_number == 3
    assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGINT) is own_handlers


def test_a_handler_that_comes_back_lets_the_training_go_on(new_engine, straight):
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(engine.step_number))
    lines: list[dict] = []
    engine = new_engine("goes on", lines)
    ask_in_step(engine, 3)
    assert_the_same(everything(engine, lines), straight)
    assert heard == [3]


def test_an_ignored_signal_stays_ignored_and_a_thread_holds_nothing_back(own_handlers):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with HeldBack() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    inside = []

    def elsewhere():
        with HeldBack():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert inside == [own_handlers]


def test_a_signal_that_nobody_asked_about_is_delivered_at_the_end():
    done = []

    def work() -> None:
        with HeldBack():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append(1)

    with pytest.raises(Asked):
        work()
    assert done == [1]


@pytest.fixture
def saved(new_student, teacher, features, tmp_path):
    """A checkpoint of a short training, and a function that makes the engine that goes on from it."""
    train = TrainRecipe(max_steps=3, save_steps=2)

    def engine() -> Engine:
        return Engine(
            new_student(),
            Labels() + ForwardKL(),
            features,
            train,
            teacher=teacher,
            checkpoints=tmp_path,
            owner="a",
        )

    engine().run()
    return tmp_path / "step-00000002", engine


@pytest.mark.parametrize("part", ["student", "optimizer", "random", "figures"])
def test_a_checkpoint_that_was_written_without_a_part_is_refused(saved, part):
    folder, engine = saved
    (folder / f"{part}.safetensors").unlink()
    seal(folder, KIND)
    with pytest.raises(CheckpointError, match=f"holds no {part}"):
        engine().run()


@pytest.mark.parametrize(
    ("part", "without", "says"),
    [
        ("optimizer", "0.exp_avg", "optimizer lacks exp_avg of parameter 0"),
        ("optimizer", None, "optimizer is empty"),
        ("random", "cpu.0", "holds no cpu random state"),
        ("student", "classifier.bias", "student tensors are others"),
    ],
)
def test_a_part_that_was_written_incomplete_is_refused(saved, part, without, says):
    from safetensors.torch import load_file, save_file

    folder, engine = saved
    path = folder / f"{part}.safetensors"
    tensors = load_file(path)
    save_file({name: t for name, t in tensors.items() if without not in (name, None)}, path)
    seal(folder, KIND)
    with pytest.raises(CheckpointError, match=says):
        engine().run()


def test_another_format_and_another_owner_are_told_apart_from_damage(saved):
    folder, _ = saved
    with pytest.raises(MismatchError, match="belongs to a run with other settings"):
        latest_checkpoint(folder.parent, "b")
    seal(folder, "checkpoint 2")
    with pytest.raises(CheckpointError, match=r"has format 'distill checkpoint 2', but this version reads"):
        latest_checkpoint(folder.parent, "a")
