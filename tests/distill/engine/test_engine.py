"""Training does what it says: it learns, resumes bitwise, leaves the teacher alone, stops at a NaN."""

from __future__ import annotations

import itertools
import json
import time

import pytest
import torch

from distill.engine import Engine
from distill.engine.checkpoint import latest_checkpoint
from distill.errors import CheckpointError, NumericsError
from distill.losses import TAID, ForwardKL, Labels, Sinkhorn
from distill.models import Prediction
from distill.recipe import TrainRecipe

from .weights import assert_bitwise_equal, weights

LOSS = 0.5 * Labels() + 0.4 * ForwardKL(temperature=2.0) + 0.1 * Sinkhorn()


def test_a_student_learns_a_rule_from_labels(new_student, features):
    train = TrainRecipe(num_train_epochs=40, learning_rate=5e-3, per_device_train_batch_size=16)
    lines = []
    student = Engine(new_student(), Labels(), features, train, log=lines.append).run()
    with torch.inference_mode():
        predicted = student(features.batch(range(64))).logits_NC.argmax(1).tolist()
    assert sum(p == label for p, label in zip(predicted, features.labels, strict=True)) >= 60
    assert lines[-1]["loss"] < 0.4 * lines[0]["loss"]
    assert lines[-1]["step"] == 160


def test_a_student_moves_towards_its_teacher(new_student, teacher, features):
    lines = []
    train = TrainRecipe(num_train_epochs=20, learning_rate=5e-3)
    Engine(new_student(), ForwardKL(), features, train, teacher=teacher, log=lines.append).run()
    assert lines[-1]["loss/forward_kl"] < 0.3 * lines[0]["loss/forward_kl"]


def test_a_small_student_says_in_a_minute_what_its_teacher_says(new_student, teacher, features):
    """Within 0.05 nats, on examples it was trained on, by torch's own divergence."""
    from torch.distributions import Categorical, kl_divergence

    started = time.process_time()
    student = new_student()
    batch = features.batch(range(64))
    theirs = Categorical(logits=teacher(batch).logits_NC.clone())

    def divergence() -> float:
        student.model.train(mode=False)
        with torch.no_grad():
            return float(kl_divergence(theirs, Categorical(logits=student(batch).logits_NC)).mean())

    before = divergence()
    train = TrainRecipe(num_train_epochs=40, learning_rate=5e-3, dropout=0.0)
    Engine(student, ForwardKL(), features, train, teacher=teacher).run()
    assert before > 0.1
    assert divergence() < 0.05
    assert time.process_time() - started < 60


@pytest.mark.parametrize("step", [3, 4, 7, 9])
def test_an_interrupted_run_ends_with_bitwise_the_same_weights(
    new_student, teacher, features, tmp_path, stop_at, step
):
    train = TrainRecipe(max_steps=10, save_steps=2, learning_rate=1e-3, per_device_train_batch_size=16)

    def engine(folder):
        return Engine(
            new_student(), LOSS, features, train, teacher=teacher, seed=3, checkpoints=folder, owner="a"
        )

    straight = weights(engine(tmp_path / "straight").run())
    broken = engine(tmp_path / "broken")
    stop_at(broken, step)
    continued = engine(tmp_path / "broken")
    assert continued.resume() == step // 2 * 2
    assert_bitwise_equal(straight, weights(continued.run()))


def test_a_scheduled_loss_advances_each_step_and_resumes_where_it_was(
    new_student, teacher, features, tmp_path, stop_at
):
    loss = TAID(start=0.2, rate=0.1) + 0.5 * Labels()
    train = TrainRecipe(max_steps=10, save_steps=2, logging_steps=1, per_device_train_batch_size=16)

    def engine(folder, lines):
        return Engine(
            new_student(), loss, features, train, teacher=teacher, checkpoints=folder, log=lines.append
        )

    lines, more = [], []
    straight_engine = engine(tmp_path / "straight", lines)
    straight = weights(straight_engine.run())
    shares = [line["taid/t"] for line in lines]
    assert shares[0] == pytest.approx(0.2)
    assert all(earlier < later for earlier, later in itertools.pairwise(shares))
    assert straight_engine.loss.terms[0].share == 1.0
    assert straight_engine.loss.terms[0].previous == pytest.approx(lines[-1]["loss/taid"], rel=1e-6)

    broken = engine(tmp_path / "broken", more)
    stop_at(broken, 7)
    continued = engine(tmp_path / "broken", more)
    assert continued.resume() == 6
    assert_bitwise_equal(straight, weights(continued.run()))
    assert continued.loss == straight_engine.loss


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(new_student, teacher, features, tmp_path):
    train = TrainRecipe(max_steps=9, save_steps=2, learning_rate=1e-3)

    def engine():
        return Engine(new_student(), LOSS, features, train, teacher=teacher, checkpoints=tmp_path, owner="a")

    straight = weights(engine().run())
    newest = sorted(tmp_path.glob("step-*"))[-1]
    file = newest / "student.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1  # one bit, in the middle of the weights
    file.write_bytes(content)
    said = []
    resumed = engine()
    resumed.progress.say = said.append
    assert resumed.resume() == 6
    assert "student.safetensors is damaged" in said[0]
    assert_bitwise_equal(straight, weights(resumed.run()))


@pytest.mark.parametrize(
    "lost", ["optimizer.safetensors", "random.safetensors", "state.json", "manifest.json"]
)
def test_a_checkpoint_with_a_missing_file_is_never_used(new_student, features, tmp_path, lost):
    train = TrainRecipe(max_steps=3, save_steps=2)
    Engine(new_student(), Labels(), features, train, checkpoints=tmp_path, owner="a").run()
    (tmp_path / "step-00000002" / lost).unlink()
    with pytest.raises(CheckpointError, match=lost):
        latest_checkpoint(tmp_path, "a")


def test_a_checkpoint_of_another_training_is_refused(new_student, features, tmp_path):
    train = TrainRecipe(max_steps=3, save_steps=2)
    Engine(new_student(), Labels(), features, train, checkpoints=tmp_path, owner="a").run()
    with pytest.raises(CheckpointError, match="belongs to a run with other settings"):
        Engine(new_student(), Labels(), features, train, checkpoints=tmp_path, owner="b").run()


def test_a_half_written_checkpoint_is_not_seen(new_student, features, tmp_path, monkeypatch):
    train = TrainRecipe(max_steps=5, save_steps=2)
    import distill.engine.checkpoint as checkpoint

    written = []

    def full_disk(tensors, path):
        written.append(path)
        if len(written) == 5:  # the second tensor file of the second checkpoint
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        checkpoint_save(tensors, path)

    checkpoint_save = checkpoint.save_file
    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(CheckpointError, match="No space left on device"):
        Engine(new_student(), Labels(), features, train, checkpoints=tmp_path, owner="a").run()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    found, problems = latest_checkpoint(tmp_path, "a")
    assert found is not None
    assert found.step == 2
    assert problems == []


def test_a_nan_teacher_stops_the_run_before_the_weights_change(new_student, teacher, features):
    calls = []

    def breaking(batch):
        calls.append(1)
        logits_NC = teacher(batch).logits_NC.clone()
        if len(calls) > 3:
            logits_NC[1, 0] = float("nan")
        return Prediction(logits_NC)

    student = new_student()
    engine = Engine(
        student, ForwardKL() + Labels(), features, TrainRecipe(learning_rate=1e-3), teacher=breaking
    )
    before = []
    original = engine.step

    def watching(batch):
        before[:] = [weights(student)]
        original(batch)

    engine.step = watching
    with pytest.raises(NumericsError, match=r"step 4: training example \d+: teacher logits: row 1 of 16"):
        engine.run()
    assert_bitwise_equal(before[0], weights(student))


@pytest.mark.parametrize("what", ["inf", "nan"])
def test_an_exploding_gradient_is_named(new_student, features, what):
    student = new_student()
    student.model.classifier.weight.register_hook(lambda gradient: gradient * float(what))
    before = weights(student)
    with pytest.raises(
        NumericsError, match=r"step 1: training example \d+: the gradient of classifier\.weight is not finite"
    ):
        Engine(student, Labels(), features, TrainRecipe()).run()
    assert_bitwise_equal(before, weights(student))


def test_sinkhorns_convergence_is_logged(new_student, teacher, features):
    lines = []
    loss = Sinkhorn(iterations=1, epsilon=0.01, tolerance=1e-9) + Labels()
    Engine(new_student(), loss, features, TrainRecipe(max_steps=1), teacher=teacher, log=lines.append).run()
    assert lines[0]["sinkhorn/marginal_error"] > 0
    assert lines[0]["sinkhorn/converged"] < 1


def test_figures_are_json(new_student, teacher, features):
    lines = []
    Engine(
        new_student(),
        LOSS,
        features,
        TrainRecipe(max_steps=3, logging_steps=1),
        teacher=teacher,
        log=lines.append,
    ).run()
    assert [json.loads(json.dumps(line))["step"] for line in lines] == [1, 2, 3]
    assert all(line["learning_rate"] >= 0 and line["gradient_norm"] > 0 for line in lines)
    first = lines[0]
    weighted = 0.5 * first["loss/labels"] + 0.4 * first["loss/forward_kl"] + 0.1 * first["loss/sinkhorn"]
    assert first["loss"] == pytest.approx(weighted)


def test_evaluation_during_training_does_not_change_the_weights(new_student, teacher, features):
    train = TrainRecipe(max_steps=6, learning_rate=1e-3)
    plain = weights(Engine(new_student(), LOSS, features, train, teacher=teacher).run())
    student = new_student()
    seen = []

    def evaluate():
        assert not student.model.training
        with torch.inference_mode():
            seen.append(float(student(features.batch(range(8))).logits_NC.sum()))
        return {"validation/sum": seen[-1]}

    import dataclasses

    evaluated = Engine(
        student, LOSS, features, dataclasses.replace(train, eval_steps=2), teacher=teacher, evaluate=evaluate
    ).run()
    assert len(seen) == 3
    assert_bitwise_equal(plain, weights(evaluated))


def test_frozen_embeddings_stay_bitwise_the_same_and_the_rest_learns(new_student, teacher, features):
    student = new_student()
    before = weights(student)
    train = TrainRecipe(max_steps=5, learning_rate=1e-3, freeze_embeddings=True, weight_decay=0.1)
    after = weights(Engine(student, LOSS, features, train, teacher=teacher).run())
    for name in before:
        table = "embeddings" in name and "LayerNorm" not in name
        assert torch.equal(before[name], after[name]) == table or "pooler" in name, name


def test_the_recipe_s_dropout_replaces_the_model_s_while_training_and_not_in_its_config(
    new_student, features, tmp_path
):
    def trained(dropout: float | None):
        return Engine(new_student(), Labels(), features, TrainRecipe(max_steps=3, dropout=dropout)).run()

    own, explicit, none = trained(None), trained(0.1), trained(0.0)
    assert_bitwise_equal(weights(own), weights(explicit))
    with pytest.raises(AssertionError):
        assert_bitwise_equal(weights(own), weights(none))
    none.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["hidden_dropout_prob"] == 0.1
