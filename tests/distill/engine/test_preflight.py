"""The look ahead: what it finds is there, and the training after it is the one without it."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from distill.engine import Engine
from distill.engine.preflight import (
    Gradient,
    Scores,
    examples_to_score,
    gradient_of,
    preflight,
    supervision_of,
)
from distill.engine.token_differences import TokenDifferences, TokenFacts
from distill.errors import DataError, RecipeError
from distill.losses import TAID, ForwardKL, HiddenStates, Labels, Sinkhorn
from distill.models import NextTokens, Student
from distill.models.loading import load_model, load_tokenizer
from distill.models.source import find_model
from distill.recipe import TrainRecipe
from distill.tasks import Example

WORDS = [*"abcABC", "<s>", "</s>", "<pad>"]
TRAIN = TrainRecipe(max_steps=6, learning_rate=1e-3, per_device_train_batch_size=8, dropout=0.1)


def made(
    words=WORDS, *, lower=False, template=None, bos_before=False, **special: str
) -> PreTrainedTokenizerFast:
    """A tokenizer of a few letters."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if lower:
        backend.normalizer = normalizers.Lowercase()
    if bos_before:
        place = ("<s>", words.index("<s>"))
        backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[place])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.chat_template = template
    return tokenizer


def differences(student, teacher, heads=(None, None), **facts) -> TokenDifferences:
    return TokenDifferences(TokenFacts.of(student, heads[0]), TokenFacts.of(teacher, heads[1]), **facts)


def warned(found) -> str:
    return "\n".join(f"{what}; {cure}" for what, cure in found.warnings())


# What it measures.


@pytest.mark.parametrize(
    "loss",
    [
        0.5 * Labels() + 0.4 * ForwardKL(temperature=2.0) + 0.1 * Sinkhorn(),
        TAID(start=0.2, rate=0.1) + 0.1 * HiddenStates(),
    ],
    ids=["logits", "hidden-states"],
)
def test_the_training_behind_it_is_bitwise_the_one_without_it(new_student, teacher, features, loss):
    ends = []
    for looks in (False, True):
        engine = Engine(new_student(), loss, features, TRAIN, teacher=teacher, seed=3)
        if looks:
            random = torch.get_rng_state()
            found = preflight(engine, "student-x", scores=lambda: Scores(4, 50.0, 50.0, 50.0))
            assert set(found.gradient.norms) == set(loss.names)
            assert torch.equal(torch.get_rng_state(), random)
            assert engine.student.model.training
            assert engine.tokens == engine.step_number == 0
            assert not engine.optimizer.state
            assert all(parameter.grad is None for _, parameter in engine._trained())
        engine.run()
        ends.append({**engine.student.model.state_dict(), **engine.projections.state_dict()})
        assert engine.tokens > 0
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


def test_the_norms_are_those_of_each_terms_own_gradient(new_student, teacher, features):
    train = TrainRecipe(max_steps=1, per_device_train_batch_size=16, dropout=0.0)
    engine = Engine(new_student(), 0.5 * Labels() + 0.25 * ForwardKL(), features, train, teacher=teacher)
    found = gradient_of(engine, list(range(16)))
    reference, batch = new_student(), features.batch(range(16))
    reference.model.eval()
    functions = torch.nn.functional
    for name, weight, loss in (
        ("labels", 0.5, lambda logits: functions.cross_entropy(logits, batch.label_N)),
        (
            "forward_kl",
            0.25,
            lambda logits: functions.kl_div(
                logits.log_softmax(-1),
                teacher(batch).logits_NC.clone().log_softmax(-1),
                reduction="batchmean",
                log_target=True,
            ),
        ),
    ):
        reference.model.zero_grad()
        (weight * loss(reference(batch).logits_NC)).backward()
        expected = math.sqrt(sum(float(p.grad.square().sum()) for p in reference.model.parameters()))
        assert found.norms[name] == pytest.approx(expected, rel=1e-4)
    assert sum(found.shares.values()) == pytest.approx(1)


def test_supervised_tokens_are_counted(tiny_llama):
    tokenizer = load_tokenizer(find_model(str(tiny_llama)))
    counted = [[False, False, True, True], [False] * 5, [True, True]]  # nothing predicts a text's first token
    found = supervision_of(NextTokens([[5] * len(c) for c in counted], counted, tokenizer, truncated=2))
    assert (found.examples, found.rows, found.tokens, found.truncated, found.empty) == (3, 3, 11, 2, 1)
    lines = warned(found)
    assert "2 of 3 training examples are truncated; raise data.max_length" in lines
    assert "1 of 3 training examples have no supervised token; raise data.max_length" in lines


def test_a_classifier_predicts_once_an_example(features):
    found = supervision_of(features)
    assert (found.rows, found.empty) == (len(features), 0)
    assert found.line == (
        f"{len(features)} examples, {sum(features.lengths):,} tokens; one prediction an example; 0 truncated"
    )


def test_what_comes_out_is_plain_json(new_student, teacher, features):
    loss = 0.5 * Labels() + 0.5 * ForwardKL()
    train = TrainRecipe(max_steps=40, per_device_train_batch_size=4, gradient_accumulation_steps=4)
    found = preflight(
        Engine(new_student(), loss, features, train, teacher=teacher),
        "student-x",
        tokens=differences(new_student().tokenizer, teacher.tokenizer, aligned=True),
        notes=["the sky is clear"],
    )
    plain = json.loads(json.dumps(found.as_dict()))
    assert set(plain) == {
        "tokens", "supervision", "memory_bytes", "seconds", "gradient", "scores", "notes", "warnings",
    }  # fmt: skip
    assert plain["tokens"]["same"]
    memory = plain["memory_bytes"]
    assert memory["peak"] == sum(size for name, size in memory.items() if name != "peak")
    trained = 4 * sum(parameter.numel() for parameter in new_student().model.parameters())
    assert (memory["weights"], memory["gradients"], memory["moments"]) == (trained, trained, 2 * trained)
    assert plain["seconds"]["student"] == 40 * plain["seconds"]["student_step"] > 0
    assert plain["seconds"]["baseline"] > 0
    assert plain["scores"] is None
    assert plain["warnings"] == found.warnings
    text = found.as_text()
    for part in ("preflight: student-x", "tokens", "memory", "40 steps", "labels", "the sky is clear"):
        assert part in text


def test_no_baseline_costs_no_time(new_student, features):
    found = preflight(Engine(new_student(), Labels(), features, TRAIN), "student-x", baseline=False)
    assert found.duration.baseline is None
    assert "baseline" not in found.as_text()


def test_up_to_64_examples_are_scored_in_whole_groups():
    def split(groups: int, size: int) -> list[Example]:
        return [
            Example(f"{group}-{place}", (("a", None),), 0, str(group))
            for group in range(groups)
            for place in range(size)
        ]

    assert examples_to_score(split(10, 1)) == list(range(10))
    spread = examples_to_score(split(640, 1))
    assert spread == list(range(0, 640, 10))
    several = examples_to_score(split(100, 5))
    assert len(several) <= 64
    assert len(several) % 5 == 0
    assert examples_to_score(split(3, 100)) == list(range(100))


# What is wrong with a training, one fault each.


def test_a_term_that_hardly_counts(new_student, teacher, features):
    engine = Engine(new_student(), Labels() + 1e-6 * ForwardKL(), features, TRAIN, teacher=teacher)
    (line,) = preflight(engine, "student-x").warnings
    assert line.startswith("preflight: student-x: forward_kl makes ")
    assert line.endswith("of the gradient (labels 100.0%); raise its weight or leave it out")


def test_a_term_that_is_zero(teacher, features):
    student = Student(copy.deepcopy(teacher.model).requires_grad_(True), teacher.tokenizer)
    train = TrainRecipe(max_steps=6, per_device_train_batch_size=8, dropout=0.0)
    engine = Engine(student, Labels() + ForwardKL(), features, train, teacher=teacher)
    (line,) = preflight(engine, "student-x").warnings
    assert line == (
        "preflight: student-x: the gradient of forward_kl is zero; there is nothing to learn from it: is the "
        "student a copy of its teacher?"
    )


def test_one_term_has_no_share_to_speak_of():
    assert Gradient({"labels": 3.0}, {"labels": 1.0}).warnings() == []


def test_a_gradient_that_is_not_finite(new_student, teacher, features):
    teacher.model.classifier.bias.data.fill_(float("nan"))
    engine = Engine(new_student(), Labels() + ForwardKL(), features, TRAIN, teacher=teacher)
    with pytest.raises(
        RecipeError, match=r"^preflight: student-x: the gradient of forward_kl is not finite; "
    ):
        preflight(engine, "student-x")
    assert all(parameter.grad is None for _, parameter in engine._trained())


def test_nothing_to_learn(tiny_llama):
    source = find_model(str(tiny_llama))
    student = Student(load_model(source, kind="causal_lm", labels=(), seed=0), load_tokenizer(source))
    data = NextTokens([[5, 6, 7]] * 3, [[False] * 3] * 3, student.tokenizer)
    with pytest.raises(DataError, match="none of 3 training examples has a supervised token; raise data"):
        preflight(Engine(student, Labels(), data, TRAIN), "student-x")


def test_a_teacher_that_knows_less():
    assert warned(Scores(64, teacher=60.0, student=50.0, majority=55.0)) == ""
    lines = warned(Scores(64, teacher=40.0, student=45.0, majority=50.0)).splitlines()
    assert lines[0].startswith(
        "the teacher (40.0) is worse than the student before training (45.0) on 64 validation examples; "
    )
    assert lines[1].startswith("the teacher (40.0) is worse than the majority row (50.0)")


# What two tokenizers do differently.


def test_tokenizers_alike():
    found = differences(made(eos_token="</s>"), made(eos_token="</s>"))
    assert found.lines == ["the same 9 tokens", "special tokens alike", "no chat template"]
    assert warned(found) == ""


def test_other_tokens():
    other = differences(made(), made([*WORDS, "x", "y"]))
    assert "9 tokens and the teacher's 11, 9 in common" in other.lines
    assert (
        "the student has other tokens than its teacher (9 and 11, 9 in common); say how to align"
        in warned(other)
    )
    assert warned(differences(made(), made([*WORDS, "x"]), aligned=True)) == ""
    few = made(["a", "b", "c", "<s>", "</s>", "<pad>"], eos_token="</s>")
    trimmed = differences(few, made(eos_token="</s>"), trimmed=True)
    assert trimmed.lines[:2] == ["6 of the teacher's 9 tokens", "special tokens alike"]
    assert warned(trimmed) == ""


def test_a_padded_head():
    found = differences(made(), made(), heads=(9, 64))
    assert "the teacher's head is padded to 64" in found.lines
    assert not any("student's head" in line for line in found.lines)


def test_special_tokens_that_differ_or_are_missing():
    found = differences(made(eos_token="</s>", pad_token="<pad>"), made(eos_token="<s>"))
    assert found.special == [
        "eos is </s> (7) for the student, <s> (6) for the teacher",
        "pad is <pad> (8) for the student, missing for the teacher",
    ]
    assert "eos is </s> (7) for the student, <s> (6) for the teacher; save both models" in warned(found)


def test_one_that_reads_capitals_as_small_letters():
    found = differences(made(lower=True), made())
    assert "only the student reads capitals as small letters" in found.lines
    assert "only the student's tokenizer reads capitals as small letters" in warned(found)
    assert "capitals" not in warned(differences(made(lower=True), made(lower=True)))


def test_a_frame_of_one_alone():
    found = differences(made(bos_token="<s>", bos_before=True), made(bos_token="<s>"))
    assert "around a text <s> … for the student, nothing for the teacher" in found.lines
    assert "the tokenizers put <s> … (student) and nothing (teacher) around a text" in warned(found)


def test_the_frame_of_a_sentence_encoder(tokenizer):
    facts = TokenFacts.of(tokenizer, None)
    assert (facts.before, facts.behind, facts.lowers) == (("[CLS]",), ("[SEP]",), True)
    assert facts.special["mask"] == ("[MASK]", 103)


@pytest.mark.parametrize(
    ("mine", "other", "chat", "line", "warns"),
    [
        (None, None, False, "no chat template", False),
        ("{{ 1 }}", "{{ 1 }}", True, "one chat template, used", False),
        (None, "{{ 1 }}", False, "a chat template of the teacher alone, not used", False),
        ("{{ 1 }}", "{{ 2 }}", False, "different chat templates, not used", False),
        ("{{ 1 }}", "{{ 2 }}", True, "different chat templates, used", True),
    ],
)
def test_chat_templates(mine, other, chat, line, warns):
    found = differences(made(template=mine), made(template=other), chat=chat)
    assert found.lines[-1] == line
    assert ("data.chat puts prompts into different chat templates" in warned(found)) is warns


# The peak of memory, in a process of its own.

MEASURED = """
import re, sys
from pathlib import Path

import torch

from distill.engine import Engine
from distill.engine.preflight import preflight
from distill.losses import ForwardKL, Labels
from distill.models import NextTokens, Student, Teacher
from distill.models.loading import load_tokenizer
from distill.models.source import find_model
from distill.recipe import DataRecipe, TrainRecipe

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def minilm(folder):
    from distill.engine.reading import reading_of
    from distill.recipe_data import load_recipe_data

    data = load_recipe_data(DataRecipe(source="demo"), "boolq")
    task = data.task
    student, teacher = (
        Student.from_teacher(folder, layers=layers, kind=task.kind, labels=task.labels) for layers in (3, 6)
    )
    reading = reading_of("encoder", task, max_length=96, batch_size=8)
    return student, Teacher(teacher.model, teacher.tokenizer), reading.examples(data.train, student)

def llama(folder):
    import random
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(find_model(folder))
    def model(layers):
        sizes = dict(hidden_size=256, intermediate_size=704, num_attention_heads=4)
        return LlamaForCausalLM(LlamaConfig(vocab_size=4096, num_hidden_layers=layers, **sizes))
    draw = random.Random(0)
    texts = [[draw.randrange(3, 4096) for _ in range(draw.randrange(20, 129))] for _ in range(200)]
    data = NextTokens(texts, None, tokenizer)
    return Student(model(4), tokenizer), Teacher(model(6), tokenizer), data

if __name__ == "__main__":
    torch.manual_seed(0)
    student, teacher, data = {"minilm": minilm, "llama": llama}[sys.argv[1]](sys.argv[2])
    train = TrainRecipe(max_steps=25, per_device_train_batch_size=8)
    loss = 0.5 * Labels() + 0.5 * ForwardKL()
    if sys.argv[3] == "after another":
        import copy
        Engine(Student(copy.deepcopy(student.model), student.tokenizer), loss, data, train, teacher=teacher).run()
    engine = Engine(student, loss, data, train, teacher=teacher)
    found = preflight(engine, "student").memory
    Path("/proc/self/clear_refs").write_text("5")
    engine.run()
    print(found.peak, peak(), found.rest + found.weights)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets an earlier peak")
@pytest.mark.parametrize(
    ("shape", "when"), [("minilm", "first"), ("minilm", "after another"), ("llama", "first")]
)
def test_the_predicted_memory_is_the_peak_of_the_training(shape, when, minilm_folder, tiny_llama):
    folder = str({"minilm": minilm_folder, "llama": tiny_llama}[shape])
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, shape, folder, when], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    predicted, measured, before = map(int, done.stdout.split())
    assert predicted == pytest.approx(measured, rel=0.15)
    # What the training adds to the process, without the libraries that the process holds anyway.
    assert predicted - before == pytest.approx(measured - before, rel=0.25)
