"""Training with losses that look inside: they learn, resume bitwise, split exactly, and leave nothing in the student."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from distill.engine import Engine
from distill.errors import CheckpointError, NumericsError, RecipeError
from distill.losses import (
    PKD,
    AttentionMaps,
    ForwardKL,
    HiddenStates,
    Labels,
    Relations,
    Sinkhorn,
)
from distill.models import RememberedTeacher, Student
from distill.recipe import TrainRecipe

from .weights import assert_bitwise_equal, weights

LOSSES = {
    "hidden_states": HiddenStates(),
    "hidden_states_identity": HiddenStates(projection="identity", embeddings=True),
    "hidden_states_cosine": HiddenStates(distance="cosine", layers=((-1, -1),)),
    "pkd": PKD(),
    "attention_maps": AttentionMaps(),
    "attention_scores": AttentionMaps(distance="mean_squared"),
    "relations": Relations(heads=4),
}
EVERYTHING = 0.5 * Labels() + 0.5 * ForwardKL() + 0.1 * Sinkhorn()
for _loss in LOSSES.values():
    EVERYTHING = EVERYTHING + 0.1 * _loss
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@pytest.fixture
def narrow_student(tokenizer):
    """A function that makes a two-layer student of another width, with no layer of the teacher's in it."""

    def make(heads: int = 2) -> Student:
        config = {
            "model_type": "bert",
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": heads,
            "intermediate_size": 32,
        }
        return Student.from_config(config, tokenizer, kind="classification", labels=("no", "yes"), seed=1)

    return make


def shaken(student: Student) -> Student:
    """The student away from its teacher, whose layers it started as."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return student


@each_loss
def test_the_student_comes_closer_to_its_teacher_inside(new_student, teacher, features, loss):
    train = TrainRecipe(num_train_epochs=10, learning_rate=5e-3, logging_steps=4)
    lines = []
    before = weights(teacher.model)
    Engine(shaken(new_student()), loss, features, train, teacher=teacher, log=lines.append).run()
    name = f"loss/{loss.kind}"
    assert lines[0][name] > 1e-6
    assert lines[-1][name] < 0.7 * lines[0][name]
    assert_bitwise_equal(before, weights(teacher.model))
    assert json.loads(json.dumps(lines)) == lines


@pytest.mark.parametrize(
    "loss",
    [HiddenStates(embeddings=True), HiddenStates(distance="cosine"), AttentionMaps(), Relations(heads=8)],
    ids=repr,
)
def test_a_student_of_another_width_learns_too(narrow_student, teacher, features, loss):
    lines = []
    train = TrainRecipe(num_train_epochs=10, learning_rate=5e-3, logging_steps=4)
    Engine(narrow_student(), loss, features, train, teacher=teacher, log=lines.append).run()
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]


def test_a_student_cut_from_the_teacher_is_compared_with_the_channels_it_keeps(tiny_bert, teacher, features):
    student = Student.from_teacher(
        str(tiny_bert), layers=2, hidden=16, kind="classification", labels=("no", "yes")
    )
    assert student.channels == tuple(range(16))
    loss = HiddenStates(projection="channels", layers=((0, 0), (1, 3)))
    lines = []
    train = TrainRecipe(num_train_epochs=10, learning_rate=5e-3, logging_steps=4)
    engine = Engine(shaken(student), loss, features, train, teacher=teacher, log=lines.append)
    assert engine.models.channels == student.channels
    engine.run()
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]


@pytest.mark.parametrize("step", [3, 6])
@pytest.mark.parametrize("width", ["same", "narrow"])
def test_an_interrupted_run_ends_with_bitwise_the_same_weights_and_projections(
    new_student, narrow_student, teacher, features, tmp_path, stop_at, step, width
):
    loss = EVERYTHING if width == "same" else Labels() + HiddenStates() + Relations(heads=8)
    make = new_student if width == "same" else narrow_student
    train = TrainRecipe(max_steps=8, save_steps=2, learning_rate=1e-3, weight_decay=0.01)

    def engine(folder):
        return Engine(make(), loss, features, train, teacher=teacher, seed=3, checkpoints=folder, owner="a")

    whole = engine(tmp_path / "straight")
    before = weights(whole.projections)
    straight = weights(whole.run().model)
    assert before
    assert not any(torch.equal(before[name], tensor) for name, tensor in weights(whole.projections).items())

    broken = engine(tmp_path / "broken")
    stop_at(broken, step)
    continued = engine(tmp_path / "broken")
    assert continued.resume() == step // 2 * 2
    assert_bitwise_equal(straight, weights(continued.run().model))
    assert_bitwise_equal(weights(whole.projections), weights(continued.projections))


def test_a_checkpoint_without_the_projections_is_refused(new_student, teacher, features, tmp_path):
    train = TrainRecipe(max_steps=3, save_steps=2)
    Engine(new_student(), Labels(), features, train, checkpoints=tmp_path, owner="a").run()
    with pytest.raises(CheckpointError, match="projections tensors are others"):
        Engine(
            new_student(), HiddenStates(), features, train, teacher=teacher, checkpoints=tmp_path, owner="a"
        ).run()


def test_the_students_folder_holds_the_student_and_nothing_else(new_student, teacher, features, tmp_path):
    plain = Engine(new_student(), Labels(), features, TrainRecipe(max_steps=2)).run()
    plain.save(tmp_path / "plain")
    engine = Engine(
        new_student(),
        EVERYTHING,
        features,
        TrainRecipe(max_steps=3, save_steps=2),
        teacher=teacher,
        checkpoints=tmp_path / "checkpoints",
        owner="a",
    )
    engine.run().save(tmp_path / "student")
    assert len(list(engine.projections.parameters())) == 3

    def tensors(folder: Path) -> dict[str, list[int]]:
        with safe_open(folder / "model.safetensors", "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a mapping

    assert tensors(tmp_path / "student") == tensors(tmp_path / "plain")
    assert {path.name for path in (tmp_path / "student").iterdir()} == {
        path.name for path in (tmp_path / "plain").iterdir()
    }
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert config == json.loads((tmp_path / "plain" / "config.json").read_text())
    (kept,) = (tmp_path / "checkpoints").iterdir()
    with safe_open(kept / "projections.safetensors", "pt") as file:
        assert sorted(file.keys()) == sorted(engine.projections.state_dict())
    with safe_open(kept / "student.safetensors", "pt") as file:
        assert not any("maps" in name for name in file.keys())  # noqa: SIM118 - not a mapping


@each_loss
@pytest.mark.parametrize(("micro", "accumulation"), [(8, 4), (20, 2)])
def test_a_split_batch_has_the_whole_batchs_gradient(
    new_student, gradient_of_one_batch, loss, micro, accumulation
):
    """Padding differs between the splits, too: a micro-batch is as long as its longest example."""
    whole = gradient_of_one_batch(shaken(new_student()), loss, 32, 1)
    split = gradient_of_one_batch(shaken(new_student()), loss, micro, accumulation)
    assert whole.norm() > 1e-3
    assert (split - whole).abs().max() <= 2e-5 * whole.abs().max()


def test_projections_are_clipped_with_the_student(narrow_student, teacher, features):
    train = TrainRecipe(max_steps=1, max_grad_norm=1e-3)
    engine = Engine(narrow_student(), 100 * HiddenStates(), features, train, teacher=teacher)
    norms = []
    engine.optimizer.optimizer.register_step_pre_hook(
        lambda *_: norms.append(
            float(torch.nn.utils.get_total_norm([p.grad for _, p in engine._trained() if p.grad is not None]))
        )
    )
    engine.run()
    assert norms == [pytest.approx(1e-3, rel=1e-3)]


def test_the_students_own_layers_meet_the_ones_they_came_from(new_student, narrow_student, teacher, features):
    made = Engine(new_student(), HiddenStates(), features, TrainRecipe(), teacher=teacher)
    assert made.models.layer_map == ((0, 0), (1, 3))  # as keep_layers kept them
    assert made.wanted[1].hidden == {0, 3}
    other = Engine(narrow_student(), HiddenStates(), features, TrainRecipe(), teacher=teacher)
    assert other.models.origin is None
    assert other.models.layer_map == ((0, 1), (1, 3))


def test_terms_without_weights_leave_the_rest_of_the_run_alone(new_student, teacher, features):
    """A term of weight 0 that looks inside changes no weight, so neither dropout nor order depend on it."""
    train = TrainRecipe(max_steps=4, learning_rate=1e-3, max_grad_norm=None)
    loss = Labels() + ForwardKL()
    plain = weights(Engine(new_student(), loss, features, train, teacher=teacher).run().model)
    more = loss + 0.0 * HiddenStates() + 0.0 * AttentionMaps()
    beside = weights(Engine(new_student(), more, features, train, teacher=teacher).run().model)
    for name, tensor in plain.items():
        torch.testing.assert_close(beside[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "heads", "says"),
    [
        (HiddenStates(projection="identity"), 2, "loss: hidden_states: projection identity needs one width"),
        (PKD(), 2, "loss: pkd: needs one width"),
        (AttentionMaps(), 4, "loss: attention_maps: needs one number of heads, but the student has 4"),
        (Relations(heads=5), 2, "no multiple of 5 relation heads"),
        (HiddenStates(layers=((0, 9),)), 2, "loss: layers: the teacher has no layer 9"),
    ],
)
def test_models_that_cannot_be_compared_are_refused_before_the_first_step(
    narrow_student, teacher, features, loss, heads, says
):
    with pytest.raises(RecipeError, match=says):
        Engine(narrow_student(heads), loss, features, TrainRecipe(), teacher=teacher)


def test_remembered_logits_are_refused_where_a_term_looks_inside(new_student, features):
    remembered = RememberedTeacher(torch.zeros(64, 2))
    with pytest.raises(RecipeError, match="must run on every batch, found RememberedTeacher"):
        Engine(new_student(), Labels() + PKD(), features, TrainRecipe(), teacher=remembered)
    with pytest.raises(RecipeError, match="no teacher was given"):
        Engine(new_student(), PKD(), features, TrainRecipe())
    Engine(new_student(), ForwardKL(), features, TrainRecipe(max_steps=1), teacher=remembered).run()


def test_a_projection_that_explodes_is_named_and_nothing_has_changed(new_student, teacher, features):
    student = new_student()
    engine = Engine(student, HiddenStates(), features, TrainRecipe(), teacher=teacher)
    engine.projections["hidden_states"].maps[1].weight.register_hook(lambda gradient: gradient * float("nan"))
    before = weights(student.model), weights(engine.projections)
    with pytest.raises(
        NumericsError, match=r"the gradient of loss\.hidden_states\.maps\.1\.weight is not finite"
    ):
        engine.run()
    assert_bitwise_equal(before[0], weights(student.model))
    assert_bitwise_equal(before[1], weights(engine.projections))


def test_a_nan_inside_the_teacher_is_named_with_its_layer(new_student, teacher, features):
    # Hidden from the logits: they are read off the last layer's first token through a head of zeros.
    teacher.model.bert.encoder.layer[3].output.LayerNorm.bias.data[5] = float("nan")
    teacher.model.classifier.weight.data.zero_()
    teacher.model.bert.pooler.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    student = new_student()
    before = weights(student.model)
    with pytest.raises(
        NumericsError, match=r"step 1: training example \d+: teacher's hidden of layer 3: sequence 0 of 16"
    ):
        Engine(student, HiddenStates(), features, TrainRecipe(), teacher=teacher).run()
    assert_bitwise_equal(before, weights(student.model))


def test_what_a_loss_sees_is_the_two_models_own(new_student, teacher, features):
    """The first batch's loss, computed again from plain forward passes of transformers."""
    student = new_student()
    engine = Engine(student, HiddenStates(projection="identity"), features, TrainRecipe(), teacher=teacher)
    student.model.train(mode=False)
    index = list(range(8))
    rows = engine._rows(features.batch(index))
    found = engine.loss(rows).detach()
    batch = features.batch(index)
    with torch.no_grad():
        inside = student.model(**batch.inputs, output_hidden_states=True).hidden_states
        taught = teacher.model(**batch.inputs, output_hidden_states=True).hidden_states
    for row, length in enumerate(batch.inputs["attention_mask"].sum(1).tolist()):
        expected = [
            (inside[s + 1][row, :length] - taught[t + 1][row, :length]).square().mean()
            for s, t in ((0, 0), (1, 3))
        ]
        assert float(found[row]) == pytest.approx(float(sum(expected)) / 2, rel=1e-5)
