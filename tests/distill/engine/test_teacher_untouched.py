"""No training changes anything about its teacher: no bit of a tensor, no mode, flag, gradient, hook or setting."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from distill.alignment import TokenReader
from distill.cache import EachAlone
from distill.engine import Engine
from distill.engine.comparison import Aligned, CrossAttention
from distill.engine.reading import reading_of
from distill.losses import (
    PKD,
    TAID,
    AttentionMaps,
    DualSpace,
    Ensemble,
    ForwardKL,
    HiddenStates,
    Labels,
    Relations,
    ReverseKL,
    Sinkhorn,
    SortedTransport,
)
from distill.models import EnsembleTeacher, NextTokens, Student, Teacher, train_tokenizer
from distill.recipe import AlignmentRecipe, OnPolicy, TrainRecipe
from distill.tasks import PLAIN_TEXT

TRAIN = TrainRecipe(max_steps=3, learning_rate=1e-2, per_device_train_batch_size=8, weight_decay=0.1)
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}


@pytest.fixture
def trained_without_a_trace(model_state):
    """A function that trains a student and checks that the student changed and the teachers did not."""

    def train(student, loss, data, settings=TRAIN, *, teacher, members=None, **options) -> None:
        taught = [member.model for member in members or [teacher]]
        before, start = [model_state(model) for model in taught], model_state(student.model)
        Engine(student, loss, data, settings, teacher=teacher, **options).run()
        assert model_state(student.model)["tensors"] != start["tensors"]
        for model, was in zip(taught, before, strict=True):
            now = model_state(model)
            assert {what for what in was if was[what] != now[what]} == set()

    return train


def test_a_change_of_any_kind_is_seen(teacher, model_state):
    """What the other tests rest on."""
    model = teacher.model

    def becomes(what):
        before = model_state(model)
        what()
        return {name for name, value in model_state(model).items() if value != before[name]}

    def bit():
        with torch.no_grad():
            model.classifier.weight.view(torch.int32)[1, 3] ^= 1

    def buffer():
        model.bert.embeddings.position_ids[0, 5] = 7

    def swapped():
        model.classifier.bias = torch.nn.Parameter(model.classifier.bias.clone(), requires_grad=False)

    assert becomes(lambda: None) == set()
    assert becomes(bit) == becomes(buffer) == {"tensors"}
    assert becomes(swapped) == {"identity"}
    assert becomes(lambda: model.bert.pooler.train()) == {"training"}
    assert becomes(lambda: model.classifier.bias.requires_grad_(True)) == {"requires_grad"}
    assert becomes(lambda: setattr(model.classifier.bias, "grad", torch.zeros(2))) == {"gradients"}
    assert becomes(lambda: model.bert.register_forward_hook(print)) == {"hooks"}
    assert becomes(lambda: setattr(model.config, "output_hidden_states", True)) == {"settings"}


@pytest.mark.parametrize(
    "loss",
    [
        ForwardKL(temperature=2.0),
        TAID() + Sinkhorn(),
        HiddenStates(),
        HiddenStates(projection="identity", embeddings=True),
        PKD(),
        AttentionMaps(),
        Relations(heads=4),
        Labels() + ForwardKL() + HiddenStates() + AttentionMaps() + Relations(heads=4),
    ],
    ids=lambda loss: "+".join(term.kind for term in getattr(loss, "terms", (loss,))),
)
def test_a_classifier(new_student, teacher, features, trained_without_a_trace, loss):
    trained_without_a_trace(new_student(), loss, features, teacher=teacher)


def test_with_frozen_embeddings_and_other_dropout(new_student, teacher, features, trained_without_a_trace):
    settings = TrainRecipe(max_steps=3, learning_rate=1e-2, freeze_embeddings=True, dropout=0.3)
    trained_without_a_trace(new_student(), ForwardKL() + HiddenStates(), features, settings, teacher=teacher)


def test_a_student_that_began_as_its_teacher(teacher, features, trained_without_a_trace):
    student = Student(copy.deepcopy(teacher.model).requires_grad_(True), teacher.tokenizer)
    trained_without_a_trace(student, Labels() + ForwardKL() + HiddenStates(), features, teacher=teacher)


def test_one_asked_about_each_example_alone(new_student, teacher, features, trained_without_a_trace):
    trained_without_a_trace(
        new_student(), ForwardKL(), features, teacher=EachAlone(teacher), members=[teacher]
    )


def test_in_bfloat16(new_student, teacher, features, trained_without_a_trace):
    teacher.model.to(torch.bfloat16)
    settings = TrainRecipe(max_steps=3, learning_rate=1e-2, precision="bf16")
    trained_without_a_trace(new_student(), ForwardKL() + HiddenStates(), features, settings, teacher=teacher)


@pytest.mark.parametrize("wears", ["student", "teacher"])
def test_adapters(new_student, teacher, features, trained_without_a_trace, wears):
    pytest.importorskip("peft", reason="peft is not installed")
    student = new_student()
    if wears == "student":
        student = student.with_adapter(LORA, kind="classification", seed=0)
    else:
        adapted = Student(teacher.model.requires_grad_(True), teacher.tokenizer).with_adapter(
            LORA, kind="classification", seed=1
        )
        teacher = Teacher(adapted.model, teacher.tokenizer)
    trained_without_a_trace(student, ForwardKL() + HiddenStates(), features, teacher=teacher)


@pytest.fixture
def language_model(tiny_llama):
    """A function that makes a small Llama, as a student or as a teacher."""

    def make(layers: int) -> Student:
        student = Student.from_teacher(str(tiny_llama), layers=layers, kind="causal_lm", labels=())
        torch.manual_seed(layers)
        torch.nn.init.normal_(student.model.lm_head.weight)  # opinions to learn from
        return student

    return make


@pytest.fixture
def texts(language_model):
    draw = random.Random(0)
    made = [[draw.randrange(2, 390) for _ in range(draw.randrange(4, 12))] for _ in range(24)]
    return NextTokens(made, None, language_model(1).tokenizer)


def as_teacher(student: Student) -> Teacher:
    return Teacher(student.model, student.tokenizer)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_a_decoder_that_judges_its_students_texts(language_model, texts, trained_without_a_trace, fraction):
    settings = TrainRecipe(
        max_steps=4,
        learning_rate=1e-2,
        per_device_train_batch_size=8,
        on_policy=OnPolicy(fraction=fraction, max_new_tokens=4, prompt_tokens=3),
    )
    trained_without_a_trace(
        language_model(2),
        ReverseKL() + 0.1 * Labels(),
        texts,
        settings,
        teacher=as_teacher(language_model(3)),
    )


@pytest.mark.parametrize("of", ["probabilities", "logits"])
def test_several_teachers(language_model, texts, trained_without_a_trace, of):
    members = [as_teacher(language_model(3)), as_teacher(language_model(2))]
    trained_without_a_trace(
        language_model(1),
        ForwardKL(),
        texts,
        teacher=EnsembleTeacher(members, Ensemble(of=of)),
        members=members,
    )


def test_one_that_reads_a_part_of_its_tokens(language_model, texts, trained_without_a_trace):
    teacher = as_teacher(language_model(3))
    read = teacher.reading(range(len(teacher.tokenizer)))
    trained_without_a_trace(language_model(2), ForwardKL(), texts, teacher=read, members=[teacher])


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("match", ForwardKL()),
        ("shared", ForwardKL(temperature=2.0)),
        ("spans", SortedTransport()),
        ("chunks", ForwardKL()),
        ("cross_attention", DualSpace()),
    ],
)
def test_one_with_other_tokens(language_model, trained_without_a_trace, kind, loss):
    teacher = as_teacher(language_model(3))
    ours = train_tokenizer(["a license to copy the work, and the works of the licensor"] * 9, 330)
    config = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    student = Student.from_config(
        config | {"intermediate_size": 32}, ours, kind="causal_lm", labels=(), seed=0
    )
    examples = PLAIN_TEXT.examples([{"text": f"The work number {n} of the Licensor."} for n in range(16)])
    reading = reading_of("decoder", PLAIN_TEXT, max_length=64, batch_size=8)
    own, theirs, aligned = reading.together(examples, student, teacher, seed=0)
    readers = TokenReader(ours), TokenReader(teacher.tokenizer)
    if kind == "cross_attention":
        comparison = CrossAttention(own, theirs, readers=readers)
    else:
        wanted = AlignmentRecipe(kind=kind)
        comparison = Aligned(own, theirs, aligned, shift=1, readers=readers, wanted=wanted, temperature=1.0)
    trained_without_a_trace(student, Labels() + loss, own, teacher=teacher, comparison=comparison)
