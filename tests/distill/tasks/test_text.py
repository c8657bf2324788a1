"""Plain text: passages, what is kept aside, and the figures of a language model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import DataError
from distill.tasks import PLAIN_TEXT, Answer, load_text
from distill.tasks.passages import passages


@given(st.text(max_size=400), st.integers(8, 50))
def test_passages_are_the_text(text: str, characters: int):
    found = list(passages(text, characters))
    assert all(len(passage) <= characters for passage in found)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(passage in text for passage in found)


def test_passages_end_with_lines_and_words():
    assert list(passages("one two three\nfour\nfive six", 10)) == [
        "one two ",
        "three\n",
        "four\nfive ",
        "six",
    ]


def test_the_last_tenth_of_each_file_is_kept_aside(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} line {i:03}\n" for i in range(100)))
    data = load_text(tmp_path, characters=24)
    assert {example.texts[0][0][0] for example in data.validation} == {"a", "b"}
    assert len(data.validation) * 8 < len(data.train) < len(data.validation) * 11
    assert "line 099" in data.validation[-1].texts[0][0]
    assert not data.notes


def test_limits_keep_the_first_passages(tmp_path: Path):
    (tmp_path / "a.txt").write_text("".join(f"line {i:03}\n" for i in range(100)))
    data = load_text(tmp_path, characters=16, train_examples=3, validation_examples=2)
    assert (len(data.train), len(data.validation)) == (3, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "expected a text file"), (b"\xff\xfe\x00", "cannot be read as UTF-8"), (b"short", "too short")],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, message: str):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_text(tmp_path, characters=64)


def test_figures_are_those_of_all_passages_together():
    answers = [
        Answer("0", "0", None, (-10.0, 4.0, 20.0, 1.0)),
        Answer("1", "1", None, (-2.0, 2.0, 4.0, 2.0)),
    ]
    assert PLAIN_TEXT.score(answers) == {"byte_probability": pytest.approx(math.exp(-12 / 24))}
    beside = PLAIN_TEXT.beside(answers)
    assert beside["perplexity"] == pytest.approx(math.exp(12 / 6))
    assert beside["bits_per_byte"] == pytest.approx(12 / 24 / math.log(2))
    assert beside["agreement"] == pytest.approx(3 / 6)
    assert "agreement" not in PLAIN_TEXT.beside([Answer("0", "0", None, (-1.0, 1.0, 1.0))])


def test_the_row_of_comparison_knows_the_bytes_of_training_alone(tmp_path: Path):
    (tmp_path / "a.txt").write_text("ab" * 500)
    data = load_text(tmp_path, characters=50)
    train = "".join(example.texts[0][0] for example in data.train)
    expected = (len(train) / 2 + 1) / (len(train) + 256)
    assert PLAIN_TEXT.majority(data.train, data.validation)["byte_probability"] == pytest.approx(expected)
