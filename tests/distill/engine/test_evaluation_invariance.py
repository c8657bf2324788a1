"""What a model answers depends on the example: not on its batch, its place, or how the tokenizer was set to pad."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from distill.engine.reading import Answers, reading_of
from distill.models import Student, Teacher
from distill.tasks import PLAIN_TEXT, TASKS, Example, load_task

EXAMPLES = 33  # a batch of 32 and one left over


@pytest.fixture(scope="module")
def models(tiny_bert: Path, tiny_llama: Path):
    """A function that makes a model with strong opinions for a head."""

    def make(head: str, labels: tuple[str, ...]) -> Teacher:
        torch.manual_seed(3)
        if head == "seq2seq_lm":
            tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
            tokenizer.add_special_tokens({"pad_token": "<s>"})
            sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
            ends = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
            model = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **sizes, **ends))
            torch.nn.init.normal_(model.lm_head.weight)
            for name, weight in model.named_parameters():
                if "EncDecAttention" in name:  # or what it reads would hardly change what it writes
                    torch.nn.init.normal_(weight)
            return Teacher(model, tokenizer)
        source = tiny_llama if head == "causal_lm" else tiny_bert
        student = Student.from_teacher(
            str(source), layers=2, kind=head, labels=labels if "lm" not in head else ()
        )
        for name, module in student.model.named_modules():
            if name in ("classifier", "lm_head", "cls.predictions.transform.dense"):
                torch.nn.init.normal_(module.weight)
        if head == "classification":
            # What is the same for all texts, taken off: otherwise they would all be of one class.
            shown = examples_of("boolq")
            reading = reading_of("encoder", TASKS["boolq"], max_length=64, batch_size=8)
            encoded = reading.examples(shown, student)
            with torch.no_grad():
                student.model.classifier.bias -= student(encoded.batch(range(len(shown)))).logits_NC.mean(0)
        return Teacher(student.model, student.tokenizer)

    return make


def examples_of(name: str) -> list[Example]:
    if name == "text":
        lines = [f"A passage of {n} words{' and one more' * (n % 9)}." for n in range(EXAMPLES)]
        return PLAIN_TEXT.examples([{"text": line} for line in lines])
    return load_task(name, source="demo", validation_examples=EXAMPLES).validation


# With the most tokens of an input: some are cut.
CASES = [
    ("encoder", "boolq", 20),
    ("encoder", "copa", 20),
    ("encoder", "cb", 20),
    ("encoder", "text", 12),
    ("decoder", "copa", 36),
    ("decoder", "text", 24),
    ("encoder_decoder", "cb", 64),
]


@pytest.mark.parametrize(("architecture", "name", "length"), CASES)
def test_predictions_are_the_same(models, architecture, name, length):
    task, examples = TASKS[name], examples_of(name)

    def answers(batch: int, order: list[int], padding_side: str | None = None) -> Answers:
        reading = reading_of(architecture, task, max_length=length, batch_size=batch)
        model = models(reading.head, task.labels)
        if padding_side is not None:
            model.tokenizer.padding_side = padding_side
        return reading.answer([examples[i] for i in order], model)

    places = list(range(len(examples)))
    shuffled = random.Random(1).sample(places, len(places))
    expected = answers(1, places)
    found = {
        "batch 32": answers(32, places),
        "another batch": answers(7, places),
        "padded on the left": answers(32, places, "left"),
        "padded on the right": answers(32, places, "right"),
    }
    assert 0 < expected.truncated < len(examples)
    if name != "text":
        predicted = task.predicted(expected.answers).tolist()
        assert len({*predicted, *(answer.text for answer in expected.answers)}) > 2
    if (architecture, name) != ("encoder", "text"):  # which tokens are hidden is drawn by the passage's place
        found["shuffled"] = answers(32, shuffled)
    for what, other in found.items():
        assert other.truncated == expected.truncated, what
        assert {answer.id for answer in other.answers} == {answer.id for answer in expected.answers}
        said = {answer.id: answer for answer in other.answers}
        for answer in expected.answers:
            again = said[answer.id]
            assert (again.text, again.gold, again.group) == (answer.text, answer.gold, answer.group), what
            assert again.logits == pytest.approx(answer.logits, rel=1e-4, abs=1e-4), what
        if name != "text":
            ids = [answer.id for answer in expected.answers]
            one = task.predicted(expected.answers).tolist()
            two = task.predicted([said[i] for i in ids]).tolist()
            assert one == two, what
