"""Runs in which the teacher has other tokens than the student."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from distill.alignment import TokenReader
from distill.engine import Engine
from distill.engine.comparison import Aligned
from distill.engine.reading import reading_of
from distill.losses import DualSpace, ForwardKL, HiddenStates, Labels, Loss, SortedTransport, Total
from distill.models import NextTokens, Student, Teacher, train_tokenizer
from distill.progress import Silent
from distill.recipe import (
    AlignmentRecipe,
    CacheRecipe,
    DataRecipe,
    FromTeacher,
    NewTokenizer,
    OnPolicy,
    Recipe,
    StudentRecipe,
    StudentVocabulary,
    TeacherRecipe,
    TrainRecipe,
)
from distill.recipe.wording import FieldMistakes
from distill.runs import run
from distill.tasks import PLAIN_TEXT, read_predictions

TRAIN = TrainRecipe(max_steps=4, learning_rate=1e-3, per_device_train_batch_size=8)
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "text.txt"
    file.write_text("Über the café the naïve cat sat, 🙂 and the dog barked at it.\n" * 60)
    return file


def recipe(teacher: Path, corpus: Path, kind: str, loss: Loss | Total, **alignment: object) -> Recipe:
    return Recipe(
        name="other-tokens",
        architecture="decoder",
        data=DataRecipe(source="text", path=str(corpus), max_length=64, characters=60),
        teacher=TeacherRecipe(model=str(teacher), train=TRAIN),
        student=StudentRecipe(config=LLAMA, tokenizer=NewTokenizer(train=330)),
        alignment=AlignmentRecipe(kind=kind, **alignment),  # type: ignore[arg-type]
        loss=0.5 * Labels() + 0.5 * loss,
        train=TRAIN,
    )


@pytest.mark.parametrize(
    ("kind", "loss", "options"),
    [
        ("match", ForwardKL(), {}),
        ("shared", ForwardKL(temperature=2.0), {}),
        ("spans", SortedTransport(), {}),
        ("chunks", 100 * ForwardKL(), {"word_boundaries": True}),
        ("cross_attention", DualSpace(), {}),
    ],
)
def test_a_decoder_learns_from_one_with_other_tokens(
    tiny_llama: Path, corpus: Path, tmp_path: Path, kind, loss, options
):
    report = run(recipe(tiny_llama, corpus, kind, loss, **options), tmp_path).data
    log = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if "student-text" in line]
    assert any(f"loss/{loss.kind if isinstance(loss, Loss) else loss.terms[0].kind}" in line for line in log)
    student = read_predictions(tmp_path / "predictions" / "student-text-seed0.text.jsonl")
    baseline = read_predictions(tmp_path / "predictions" / "baseline-text-seed0.text.jsonl")
    assert student != baseline
    assert "agreement" not in report["student"]["tasks"]["text"]["language"]


@pytest.mark.parametrize("kind", ["match", "shared", "reduce"])
def test_an_encoder_learns_hidden_tokens_from_one_with_other_tokens(
    tiny_bert: Path, corpus: Path, tmp_path: Path, kind: str
):
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    backend = BertWordPieceTokenizer()
    backend.train_from_iterator([corpus.read_text()], vocab_size=120, show_progress=False)
    folder = tmp_path / "small"
    BertTokenizerFast(tokenizer_object=backend._tokenizer).save_pretrained(folder)
    size = len(AutoTokenizer.from_pretrained(folder))
    BertModel(
        BertConfig(
            vocab_size=size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
    ).save_pretrained(folder)
    wanted = replace(
        recipe(tiny_bert, corpus, "match", ForwardKL()),
        architecture="encoder",
        alignment=AlignmentRecipe(kind=kind),  # type: ignore[arg-type]
        student=StudentRecipe(model=str(folder)),
    )
    report = run(wanted, tmp_path / "run").data
    assert report["student"]["score"]["mean"] > 0


def test_a_step_compares_what_a_loop_over_the_text_compares(tiny_llama: Path):
    """MATCH, from the strings of the tokens alone: the same token over the same letters, softmax over common tokens."""
    texts = ["The Licensor grants you a copyright license to reproduce the Work.", "Any Contribution, too!"]
    theirs = AutoTokenizer.from_pretrained(tiny_llama)
    ours = train_tokenizer(["a license to copy the work, and the works of the licensor"] * 9, 330)
    torch.manual_seed(1)
    sizes = {key: value for key, value in LLAMA.items() if key != "model_type"}
    student = Student(LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(ours))), ours)
    teacher = Teacher(AutoModelForCausalLM.from_pretrained(tiny_llama), theirs)
    for model in (student.model, teacher.model):
        torch.nn.init.normal_(model.lm_head.weight)  # opinions strong enough to tell positions apart
    examples = PLAIN_TEXT.examples([{"text": text} for text in texts])

    common = [name for name in ours.get_vocab() if name in theirs.get_vocab()]
    columns = [[vocabulary[name] for name in common] for vocabulary in (ours.get_vocab(), theirs.get_vocab())]
    expected = []
    for text in texts:
        sides = []
        for reader, kept in zip((student, teacher), columns, strict=True):
            ids = reader.tokenizer(text)["input_ids"]
            with torch.no_grad():
                logits = reader.model(torch.tensor([[reader.tokenizer.bos_token_id, *ids]])).logits[0]
            end, found = 0, {}
            for place, name in enumerate(reader.tokenizer.convert_ids_to_tokens(ids)):
                end += len(name)  # all ASCII: a letter of the name is a byte
                found[end, name] = logits[place, kept].log_softmax(-1)
            sides.append(found)
        for where in sides[0].keys() & sides[1].keys():
            q, p = sides[0][where], sides[1][where]
            expected.append(float((p.exp() * (p - q)).sum()))
    assert len(expected) > 10

    reading = reading_of("decoder", PLAIN_TEXT, max_length=128, batch_size=2)
    own, other, aligned = reading.together(examples, student, teacher, seed=0)
    comparison = Aligned(
        own,
        other,
        aligned,
        shift=1,
        readers=(TokenReader(ours), TokenReader(theirs)),
        wanted=AlignmentRecipe(kind="match"),
        temperature=1.0,
    )
    assert comparison.rows_of([0, 1], 0) == len(expected)
    lines: list[dict[str, float]] = []
    train = TrainRecipe(max_steps=1, logging_steps=1, per_device_train_batch_size=2)
    Engine(student, ForwardKL(), own, train, teacher=teacher, comparison=comparison, log=lines.append).run()
    assert lines[0]["loss/forward_kl"] == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_tasks_are_learnt_from_a_decoder_with_other_tokens(tiny_llama: Path, corpus: Path, tmp_path: Path):
    wanted = replace(
        recipe(tiny_llama, corpus, "shared", ForwardKL()),
        data=DataRecipe(tasks=("copa", "cb"), train_examples=16, validation_examples=8, max_length=200),
    )
    report = run(wanted, tmp_path).data
    assert set(report["student"]["tasks"]) == {"copa", "cb"}


def test_a_split_batch_of_aligned_rows_has_the_whole_batchs_gradient(
    tiny_llama: Path, corpus: Path, tmp_path: Path
):
    """Seen from outside: the same weights after a step on 8 passages at once, or on 2 four times."""
    base = recipe(tiny_llama, corpus, "shared", ForwardKL())
    ends = []
    for micro, accumulation in ((8, 1), (2, 4)):
        train = replace(
            TRAIN, per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation, max_steps=2
        )
        folder = tmp_path / f"{micro}"
        run(replace(base, train=train, baseline=False), folder)
        ends.append(AutoModelForCausalLM.from_pretrained(folder / "student" / "text").state_dict())
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], rtol=0, atol=2e-5)


def test_heads_padded_differently_are_compared_over_the_tokenizers_tokens():
    """A teacher that is the student in a wider, padded head has nothing to teach it."""
    tokenizer = train_tokenizer(["some text to read"], 300)
    size, told = len(tokenizer), []

    class Notes(Silent):
        def say(self, line: str) -> None:
            told.append(line)

    torch.manual_seed(0)
    narrow = LlamaForCausalLM(
        LlamaConfig(**{k: v for k, v in LLAMA.items() if k != "model_type"}, vocab_size=size)
    )
    wide = LlamaForCausalLM(
        LlamaConfig(**{k: v for k, v in LLAMA.items() if k != "model_type"}, vocab_size=size + 60)
    )
    state = wide.state_dict() | {
        name: tensor for name, tensor in narrow.state_dict().items() if tensor.shape[0] != size
    }
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([narrow.state_dict()[name], 9 * torch.ones(60, 16)])
    wide.load_state_dict(state)
    texts = NextTokens([tokenizer("some text to read")["input_ids"]] * 8, None, tokenizer)
    lines: list[dict[str, float]] = []
    train = TrainRecipe(max_steps=2, learning_rate=1e-3, logging_steps=1)
    Engine(
        Student(narrow, tokenizer),
        ForwardKL(),
        texts,
        train,
        teacher=Teacher(wide, tokenizer),
        log=lines.append,
        progress=Notes(),
    ).run()
    assert lines[0]["loss/forward_kl"] == 0
    assert lines[0]["gradient_norm"] < 1e-6
    assert sum("compared over the tokenizer's" in line for line in told) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "encoder"}, "must be match, shared or reduce for an encoder"),
        ({"architecture": "encoder", "data": DataRecipe()}, "for language models"),
        ({"loss": HiddenStates()}, "compares models token by token"),
        ({"loss": DualSpace()}, "cross_attention is for dual_space"),
        (
            {"teacher": TeacherRecipe(model="x", train=TRAIN, cache=CacheRecipe(keep="full"))},
            "leave it or alignment out",
        ),
        ({"train": replace(TRAIN, on_policy=OnPolicy(fraction=0.5))}, "leave alignment out"),
        ({"alignment": AlignmentRecipe(kind="cross_attention")}, "cross_attention is for dual_space"),
        ({"loss": ForwardKL()}, "must be sorted_transport and multi_level_transport"),
        ({"alignment": AlignmentRecipe(kind="reduce")}, "found reduce"),
        (
            {"alignment": AlignmentRecipe(kind="shared"), "loss": ForwardKL() + ForwardKL(temperature=2.0)},
            "terms of one temperature",
        ),
        ({"alignment": AlignmentRecipe(kind="match")}, "is for alignment.kind spans"),
    ],
)
def test_what_an_alignment_cannot_be_used_for_is_said(changes, message):
    with pytest.raises(FieldMistakes, match=message):
        Recipe(
            **{
                "name": "x",
                "architecture": "decoder",
                "data": DataRecipe(source="text", path="x"),
                "teacher": TeacherRecipe(model="x", train=TRAIN),
                "student": StudentRecipe(from_teacher=FromTeacher(layers=1)),
                "alignment": AlignmentRecipe(kind="spans"),
                "loss": SortedTransport(),
                **changes,
            }
        )


def test_a_language_model_with_a_new_tokenizer_needs_an_alignment():
    with pytest.raises(FieldMistakes) as caught:
        Recipe(
            name="x",
            architecture="decoder",
            data=DataRecipe(source="text", path="x"),
            teacher=TeacherRecipe(model="x", train=TRAIN),
            student=StudentRecipe(
                from_teacher=FromTeacher(layers=1, vocabulary=StudentVocabulary(train=400))
            ),
            loss=ForwardKL(),
        )
    assert "say how to compare them" in str(caught.value)


def test_options_of_other_kinds_are_refused():
    with pytest.raises(FieldMistakes, match="only for kind chunks"):
        AlignmentRecipe(kind="match", word_boundaries=True)
