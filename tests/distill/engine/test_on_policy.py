"""A decoder that trains on its own texts: what it writes, what of that counts, and that it can be repeated."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.engine import Engine
from distill.engine.own_texts import Choose, OwnTexts
from distill.errors import NumericsError, RecipeError
from distill.losses import TAID, ForwardKL, HiddenStates, Labels, ReverseKL
from distill.models import Batch, NextTokens, Prediction, RememberedTeacher, Student, Teacher
from distill.recipe import OnPolicy, TrainRecipe

from .weights import assert_bitwise_equal, weights

EOS = 1
MIXED = 0.5 * Labels() + 0.5 * ReverseKL()


@pytest.fixture(scope="module")
def whole(tiny_llama: Path) -> Student:
    student = Student.from_teacher(str(tiny_llama), layers=3, kind="causal_lm", labels=())
    with torch.no_grad():  # opinions strong enough to be told apart, above all of where a text ends
        student.model.lm_head.weight.mul_(10)
        student.model.lm_head.weight[EOS].mul_(6)
    return student


@pytest.fixture
def teacher(whole: Student) -> Teacher:
    return Teacher(copy.deepcopy(whole.model), whole.tokenizer)


@pytest.fixture
def new_student(tiny_llama: Path, whole: Student) -> Callable[[], Student]:
    """A function that makes the same student of two layers each time."""
    cut = Student.from_teacher(str(tiny_llama), layers=2, kind="causal_lm", labels=())
    cut.model.lm_head.load_state_dict(whole.model.lm_head.state_dict())
    return lambda: Student(copy.deepcopy(cut.model), cut.tokenizer, cut.provenance)


@pytest.fixture(scope="module")
def completions(whole: Student) -> NextTokens:
    """32 prompts of 2 to 9 tokens with answers of 1 to 4."""
    draw = random.Random(0)
    texts, counted = [], []
    for _ in range(32):
        prompt, answer = draw.randrange(2, 10), draw.randrange(1, 5)
        texts.append([draw.randrange(2, 390) for _ in range(prompt + answer)])
        counted.append([False] * prompt + [True] * answer)
    return NextTokens(texts, counted, whole.tokenizer)


def training(on_policy: OnPolicy | None, **changes: object) -> TrainRecipe:
    plain = TrainRecipe(max_steps=8, learning_rate=1e-3, per_device_train_batch_size=8, on_policy=on_policy)
    return replace(plain, **changes)  # type: ignore[arg-type]


def writer(settings: OnPolicy, data: NextTokens, student: Student, **changes: int) -> OwnTexts:
    teacher = Teacher(copy.deepcopy(student.model), student.tokenizer)
    return OwnTexts(settings, data, student, teacher, **{"seed": 3, "batch_size": 64, **changes})


def by_hand(model: torch.nn.Module, prompt: list[int], chances: list[float], settings: OnPolicy) -> list[int]:
    """One text, without padding, cache or transformers' sampling."""
    text: list[int] = []
    for chance in chances:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *text]])).logits[0, -1].double().numpy()
        odds = np.exp(logits / settings.temperature)
        if settings.top_k is not None:
            odds[np.argsort(-odds)[settings.top_k :]] = 0
        if settings.top_p is not None:
            order = np.argsort(-odds)
            before = np.cumsum(odds[order]) - odds[order]
            odds[order[before >= settings.top_p * odds.sum()]] = 0
        text.append(int(np.flatnonzero(np.cumsum(odds) > chance * odds.sum())[0]))
        if text[-1] == EOS:
            break
    return text


@pytest.mark.parametrize(
    "settings",
    [
        OnPolicy(max_new_tokens=10),
        OnPolicy(max_new_tokens=6, temperature=1.5, top_k=20),
        OnPolicy(max_new_tokens=6, temperature=0.5, top_p=0.8),
    ],
)
def test_a_text_is_what_its_own_random_numbers_make_of_the_model(
    whole: Student, completions: NextTokens, settings: OnPolicy
):
    index = list(range(0, 32, 2))
    written = writer(settings, completions, whole).write(whole.model, index, step=5)
    ends = 0
    for place, example in enumerate(index):
        draw = random.Random(f"on-policy-3-5-{example}")
        chances = [draw.random() for _ in range(settings.max_new_tokens)]
        prompt = list(completions.prompt(example, 32))
        expected = by_hand(whole.model, prompt, chances, settings)
        assert written.texts[place] == [*prompt, *expected]
        ends += expected[-1] == EOS
    assert 0 < ends < len(index)


def test_tokens_come_as_often_as_the_model_says(whole: Student):
    """3,000 continuations of one prompt by a token each: Pearson's chi-squared over the tokens that are likely."""
    data = NextTokens([[7, 9, 11]] * 3000, [[False, False, True]] * 3000, whole.tokenizer)
    settings = OnPolicy(max_new_tokens=1, temperature=0.8)
    written = writer(settings, data, whole, batch_size=3000).write(whole.model, range(3000), step=0)
    counts = np.bincount([text[-1] for text in written.texts], minlength=400)
    with torch.no_grad():
        expected = whole.model(input_ids=torch.tensor([[7, 9]])).logits[0, -1]
    expected = 3000 * (expected.double() / 0.8).softmax(-1).numpy()
    likely = expected >= 5
    assert likely.sum() > 50
    statistic = ((counts - expected[: len(counts)]) ** 2 / expected)[likely].sum()
    assert statistic < likely.sum() + 4 * np.sqrt(2 * likely.sum())


def test_what_was_written_counts_and_its_prompt_does_not(whole: Student, completions: NextTokens):
    written = writer(OnPolicy(max_new_tokens=12), completions, whole).write(whole.model, range(32), step=1)
    batch = written.batch(range(32))
    rows, ends = 0, 0
    for index, text in enumerate(written.texts):
        prompt = list(completions.prompt(index, 32))
        new = text[len(prompt) :]
        assert text[: len(prompt)] == prompt
        assert prompt == completions.texts[index][: len(prompt)]
        assert 1 <= len(new) <= 12
        assert EOS not in new[:-1]  # a text is over where it ends
        assert new[-1] == EOS or len(new) == 12
        assert batch.label_N[rows : rows + len(new)].tolist() == new
        said = whole.tokenizer.decode(batch.label_N[rows : rows + len(new)])
        assert said == whole.tokenizer.decode(new)
        assert batch.rows_BT[index].nonzero().flatten().tolist() == list(
            range(len(prompt) - 1, len(text) - 1)
        )
        rows, ends = rows + len(new), ends + (new[-1] == EOS)
    assert rows == written.rows_of(range(32)) == len(batch.weight_N)
    assert int((batch.label_N == EOS).sum()) == ends > 0
    assert batch.inputs["attention_mask"].sum() == sum(map(len, written.texts))
    assert (batch.inputs["attention_mask"].diff() <= 0).all()  # padded on the right


def test_a_text_that_ends_at_once_makes_one_row(whole: Student, completions: NextTokens):
    student = Student(copy.deepcopy(whole.model), whole.tokenizer)
    own = writer(OnPolicy(max_new_tokens=5, top_k=1), completions, student)
    student.model.register_forward_hook(_always(EOS))
    written = own.write(student.model, range(4), step=0)
    assert written.rows_of(range(4)) == 4
    assert own.figures(range(1))["on_policy/ended"] == 1
    assert own.figures(range(1)).keys() == {"on_policy/steps"}


def _always(token: int) -> Callable:
    """A hook under which a model says one token and no other."""

    def hook(module: torch.nn.Module, inputs: object, output: object) -> None:
        output.logits = torch.full_like(output.logits, -30.0)
        output.logits[..., token] = 30.0

    return hook


def test_a_collapse_is_seen_in_the_figures(whole: Student, completions: NextTokens):
    healthy = writer(OnPolicy(max_new_tokens=30), completions, whole)
    healthy.write(whole.model, range(8), step=0)
    figures = healthy.figures(range(8))
    assert figures["on_policy/repeating"] == 0
    assert figures["on_policy/distinct"] > 0.8
    student = Student(copy.deepcopy(whole.model), whole.tokenizer)
    collapsed = writer(OnPolicy(max_new_tokens=30), completions, student)
    student.model.register_forward_hook(_always(77))
    collapsed.write(student.model, range(8), step=0)
    figures = collapsed.figures(range(8))
    assert figures["on_policy/length"] == 30
    assert figures["on_policy/ended"] == 0
    assert figures["on_policy/distinct"] == pytest.approx(1 / 30)
    assert figures["on_policy/repeating"] == 1
    assert figures["on_policy/written_tokens_per_second"] > 0


def test_plain_text_is_continued_from_its_beginning(whole: Student):
    data = NextTokens([list(range(10, 60)), list(range(70, 75))], None, whole.tokenizer)
    written = writer(OnPolicy(max_new_tokens=4, prompt_tokens=8), data, whole).write(whole.model, [0, 1], 0)
    assert written.texts[0][:8] == list(range(10, 18))
    assert written.texts[1][:5] == list(range(70, 75))
    assert [at - 7 for at in written.predicted(0)] == list(range(1, len(written.texts[0]) - 7))
    assert len(written.texts[0]) <= 12


def test_writing_leaves_no_trace(whole: Student, completions: NextTokens):
    student = Student(copy.deepcopy(whole.model), whole.tokenizer)
    student.model.train()
    student.model.generation_config.repetition_penalty = 3.0  # a habit that would change what is written
    student.model.config.attention_dropout = 0.5
    before, state, habits = weights(student), torch.get_rng_state(), student.model.generation_config
    own = writer(OnPolicy(max_new_tokens=4), completions, student)
    written = own.write(student.model, range(8), step=2)
    plain = writer(OnPolicy(max_new_tokens=4), completions, whole).write(whole.model, range(8), step=2)
    assert written.texts == plain.texts
    assert torch.equal(state, torch.get_rng_state())
    assert student.model.training
    assert student.model.generation_config is habits
    assert_bitwise_equal(before, weights(student))
    assert all(parameter.grad is None for parameter in student.model.parameters())


def test_ids_beyond_the_tokenizers_are_never_drawn():
    """An output layer is often padded to a round number of tokens, and nobody trained what is beyond."""
    scores = torch.full((500, 12), 0.0)
    scores[:, 10:] = 50.0
    choose = Choose(OnPolicy(temperature=1.0), torch.rand(500, 1).double(), prompt=3, tokens=10)
    drawn = choose(torch.zeros(500, 3, dtype=torch.long), scores).argmax(-1)
    assert set(drawn.tolist()) == set(range(10))


def test_impossible_tokens_are_not_drawn_at_the_ends_of_the_range():
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(2, 1)
    chances = torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64)
    choose = Choose(OnPolicy(temperature=1.0), chances, prompt=1, tokens=5)
    assert choose(torch.zeros(2, 1, dtype=torch.long), scores).argmax(-1).tolist() == [1, 3]


def test_steps_are_drawn_by_seed_and_number(whole: Student, completions: NextTokens):
    writers = [writer(OnPolicy(fraction=0.3), completions, whole, seed=seed) for seed in (0, 0, 1)]
    taken = [[own.taken_at(step) for step in range(500)] for own in writers]
    assert taken[0] == taken[1] != taken[2]
    assert 110 < sum(taken[0]) < 190
    for fraction, expected in ((0.0, 0), (1.0, 500)):
        own = writer(OnPolicy(fraction=fraction), completions, whole)
        assert sum(map(own.taken_at, range(500))) == expected


@pytest.mark.parametrize("loss", [ReverseKL(), MIXED + 0.1 * HiddenStates()], ids=["kl", "mixed"])
def test_a_split_batch_writes_the_same_texts_and_has_the_same_gradient(
    new_student, teacher, completions, loss
):
    def one_step(micro: int, accumulation: int) -> tuple[list[list[int]], torch.Tensor]:
        train = training(
            OnPolicy(fraction=1.0, max_new_tokens=8),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=None,
        )
        engine = Engine(new_student(), loss, completions, train, teacher=teacher)
        texts, gradients = [], []
        write = engine.own_texts.write

        def watched(*arguments: object) -> NextTokens:
            made = write(*arguments)
            texts.extend(made.texts)
            return made

        engine.own_texts.write = watched
        engine.optimizer.optimizer.register_step_pre_hook(
            lambda *_: gradients.append(torch.cat([p.grad.flatten() for _, p in engine._trained()]))
        )
        engine.step(list(range(8)))
        return texts, gradients[0]

    texts, gradient = one_step(8, 1)
    assert len(texts) == 8
    assert len({len(text) for text in texts}) > 2  # a mean of means would not be the mean
    assert gradient.norm() > 1e-3
    for micro, accumulation in ((4, 2), (1, 8), (5, 2)):
        same, split = one_step(micro, accumulation)
        assert same == texts
        assert (split - gradient).abs().max() <= 1e-6 * max(1.0, float(gradient.abs().max()))


def test_pieces_of_another_size_write_the_same(whole: Student, completions: NextTokens):
    texts = [
        writer(OnPolicy(max_new_tokens=8), completions, whole, batch_size=size)
        .write(whole.model, range(32), 0)
        .texts
        for size in (32, 5, 1)
    ]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("loss", [MIXED, TAID(start=0.2, rate=0.1) + 0.5 * Labels()], ids=["mixed", "taid"])
def test_an_interrupted_run_ends_with_bitwise_the_same_weights(
    new_student, teacher, completions, tmp_path, stop_at, loss
):
    train = training(OnPolicy(max_new_tokens=6), save_steps=2, logging_steps=8)
    lines: list[dict[str, float]] = []

    def engine(folder: str) -> Engine:
        return Engine(
            new_student(),
            loss,
            completions,
            train,
            teacher=teacher,
            seed=4,
            checkpoints=tmp_path / folder,
            log=lines.append,
        )

    straight = engine("straight")
    assert (
        2 <= sum(map(straight.own_texts.taken_at, range(4, 8))) <= 3
    )  # both kinds of steps behind the break
    expected = weights(straight.run())
    broken = engine("broken")
    stop_at(broken, 5)
    continued = engine("broken")
    assert continued.resume() == 4
    assert_bitwise_equal(expected, weights(continued.run()))
    assert continued.loss == straight.loss
    # Its one line is about all steps, those before the break too.
    whole, again = ({k: v for k, v in line.items() if "per_second" not in k} for line in lines)
    assert whole == again


def test_a_fraction_of_zero_is_bitwise_training_on_the_data(new_student, teacher, completions):
    plain, never = (
        weights(Engine(new_student(), MIXED, completions, training(policy), teacher=teacher).run())
        for policy in (None, OnPolicy(fraction=0.0))
    )
    assert_bitwise_equal(plain, never)


def test_labels_do_not_count_on_the_students_texts(new_student, teacher, completions):
    lines: list[dict[str, float]] = []
    always = training(OnPolicy(fraction=1.0, max_new_tokens=6), max_steps=3, logging_steps=1)
    alone, beside = (
        weights(Engine(new_student(), loss, completions, always, teacher=teacher, log=lines.append).run())
        for loss in (0.5 * ReverseKL(), MIXED)
    )
    assert_bitwise_equal(alone, beside)
    assert all("loss/labels" not in line for line in lines)
    for line in lines:
        assert line["loss"] == pytest.approx(0.5 * line["loss/reverse_kl"])
        assert line["on_policy/steps"] == 1
        assert 1 <= line["on_policy/length"] <= 6
    json.dumps(lines)


def test_each_figure_is_a_mean_over_the_rows_where_its_term_counted(new_student, teacher, completions):
    """Over an interval of both kinds of steps, each term is the mean of what it was at its own steps."""
    single, together = [], []
    for lines, every in ((single, 1), (together, 4)):
        train = training(OnPolicy(max_new_tokens=6), max_steps=4, logging_steps=every, learning_rate=1e-9)
        engine = Engine(new_student(), MIXED, completions, train, teacher=teacher, seed=4, log=lines.append)
        rows: list[int] = []
        remember = engine.figures.add

        def counting(made, terms, rows=rows, remember=remember):
            rows.append(len(made))
            return remember(made, terms)

        engine.figures.add = counting
        engine.run()
    assert together[0]["on_policy/steps"] == np.mean([line["on_policy/steps"] for line in single]) == 0.25
    for term in ("loss/labels", "loss/reverse_kl"):
        counted = [(line[term], n) for line, n in zip(single, rows, strict=True) if term in line]
        assert len(counted) == (3 if term == "loss/labels" else 4)
        mean = sum(value * n for value, n in counted) / sum(n for _, n in counted)
        assert together[0][term] == pytest.approx(mean, rel=1e-5)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(whole, teacher, completions):
    lines: list[dict[str, float]] = []
    student = Student(copy.deepcopy(whole.model), whole.tokenizer)
    train = training(OnPolicy(fraction=1.0), max_steps=1, logging_steps=1)
    Engine(student, ForwardKL() + ReverseKL(), completions, train, teacher=teacher, log=lines.append).run()
    assert lines[0]["loss"] == pytest.approx(0, abs=1e-7)
    assert lines[0]["gradient_norm"] < 1e-5


class Counting(Teacher):
    """Sure that a token is followed by the next higher one, and the last by the end."""

    FIRST, LAST = 10, 20

    def __call__(self, batch: Batch, wanted: object = None) -> Prediction:
        following = batch.inputs["input_ids"][batch.rows_BT] + 1
        following[following > self.LAST] = EOS
        return Prediction(8.0 * torch.nn.functional.one_hot(following, len(self.tokenizer)).float())


def test_a_student_learns_a_sharp_teachers_rule_from_its_own_texts(tiny_llama, whole):
    draw = random.Random(0)
    prompts = [[draw.randint(Counting.FIRST, Counting.LAST) for _ in range(3)] for _ in range(64)]
    # The answers are wrong, and must not matter.
    data = NextTokens(
        [[*prompt, 300, 300] for prompt in prompts], [[False] * 3 + [True] * 2] * 64, whole.tokenizer
    )
    settings = OnPolicy(fraction=1.0, max_new_tokens=12, temperature=1.0)
    train = training(settings, max_steps=200, learning_rate=5e-3, per_device_train_batch_size=16)
    student = Student.from_teacher(str(tiny_llama), layers=2, kind="causal_lm", labels=())
    with torch.no_grad():
        student.model.lm_head.weight.mul_(10)
    judge = Counting(copy.deepcopy(whole.model), whole.tokenizer)
    lines: list[dict[str, float]] = []
    Engine(student, ReverseKL() + Labels(), data, train, teacher=judge, log=lines.append).run()
    assert lines[-1]["loss"] < 0.1 * lines[0]["loss"]
    likeliest = replace(settings, top_k=1)
    texts = writer(likeliest, data, student).write(student.model, range(64), step=0).texts
    expected = [[*prompt, *range(prompt[-1] + 1, Counting.LAST + 1), EOS] for prompt in prompts]
    assert sum(text == right for text, right in zip(texts, expected, strict=True)) >= 58
    assert lines[-1]["on_policy/ended"] > 0.9


def test_bf16_texts_are_written_in_bf16(new_student, teacher, completions):
    lines: list[dict[str, float]] = []
    train = training(OnPolicy(fraction=1.0, max_new_tokens=4), max_steps=2, logging_steps=1, precision="bf16")
    student = new_student()
    kinds = set()
    student.model.lm_head.register_forward_hook(lambda module, inputs, output: kinds.add(output.dtype))
    Engine(student, ReverseKL(), completions, train, teacher=teacher, log=lines.append).run()
    assert kinds == {torch.bfloat16}
    assert all(np.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in lines)


def test_a_student_that_says_nan_is_named(new_student, teacher, completions):
    student = new_student()
    with torch.no_grad():
        student.model.lm_head.weight[5, 0] = float("nan")
    train = training(OnPolicy(fraction=1.0, max_new_tokens=4))
    with pytest.raises(
        NumericsError,
        match=r"step 1: the student's own text behind the prompt of training example \d+: student logits",
    ):
        Engine(student, ReverseKL(), completions, train, teacher=teacher).run()


def test_what_cannot_be_continued_is_refused(new_student, teacher, completions, features):
    def refused(message: str, loss=MIXED, data=completions, judge=teacher, **settings: int) -> None:
        with pytest.raises(RecipeError, match=message) as error:
            Engine(new_student(), loss, data, training(OnPolicy(**settings)), teacher=judge)
        assert len(error.value.problems) == 1

    refused("only for a decoder, which continues texts, found Features", data=features)
    refused("the teacher must run.* found RememberedTeacher", judge=RememberedTeacher(torch.zeros(32, 400)))
    refused("no term of the loss compares with a teacher", loss=Labels())
    refused("prompts of up to 9 tokens, found 250; the student reads 256 tokens", max_new_tokens=250)


SCRIPT = """
    import sys
    from distill.engine import Engine
    from distill.losses import Labels, ReverseKL
    from distill.models import NextTokens, Student, Teacher
    from distill.models.loading import load_model, load_tokenizer
    from distill.models.source import find_model
    from distill.recipe import OnPolicy, TrainRecipe
    from safetensors.torch import save_file

    folder, out, micro = sys.argv[1], sys.argv[2], int(sys.argv[3])
    source = find_model(folder)
    teacher = Teacher(load_model(source, kind="causal_lm", labels=(), seed=0), load_tokenizer(source))
    student = Student.from_teacher(folder, layers=2, kind="causal_lm", labels=())
    texts = [[10 + i, 20 + i % 3, *range(30, 32 + i % 4)] for i in range(11)]
    data = NextTokens(texts, [[False] * 3 + [True] * (len(ids) - 3) for ids in texts], teacher.tokenizer)
    # The second and the fourth step train on the 3 examples that are left: none of them is the second device's.
    train = TrainRecipe(max_steps=4, learning_rate=1e-3, per_device_train_batch_size=micro, precision="fp32",
                        on_policy=OnPolicy(fraction=0.5, max_new_tokens=7))
    engine = Engine(student, ReverseKL() + 0.5 * Labels(), data, train, teacher=teacher, seed=9)
    assert [engine.own_texts.taken_at(step) for step in range(4)] == [True, True, False, True]
    engine.run()
    assert engine.accelerator.num_processes == 8 // micro
    save_file({name: tensor.contiguous() for name, tensor in student.model.state_dict().items()},
              f"{out}/{engine.accelerator.process_index}.safetensors")
"""


@pytest.mark.slow
def test_two_processes_train_the_same_student_as_one(tmp_path, tiny_llama, train_in_processes):
    (alone,) = train_in_processes(SCRIPT, tiny_llama, tmp_path, 1, micro=8)
    first, second = train_in_processes(SCRIPT, tiny_llama, tmp_path, 2, micro=4)
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
