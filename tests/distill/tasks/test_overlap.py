"""What validation has in common with training is counted, whatever its spelling."""

from __future__ import annotations

import re
import unicodedata

import pytest

from distill.tasks import Example, load_task, load_text, overlap


def example(*texts: str | None, id: str = "0", label: int = 0) -> Example:
    pairs = tuple(zip(texts[::2], texts[1::2], strict=True))
    return Example(id, pairs, label, id)  # type: ignore[arg-type]


TRAIN = [
    example("The old  café stood\nempty.", "It was full."),
    example("He left the ﬁle.", "He kept it."),
    example("Why?", "It was late in the year.", "Why?", "It was early."),
    example("A passage alone.", None),
]


@pytest.mark.parametrize(
    ("found", "examples", "passages"),
    [
        (example("The old  café stood\nempty.", "It was full."), 1, 1),
        (example("the OLD cafe\u0301 stood empty. ", "\tIT was full.", label=1), 1, 1),  # é in two characters
        (example("He left the file.", "He kept it."), 1, 1),  # the ligature in two letters
        (example("The old café stood empty.", "It was not."), 0, 1),
        (example("The old café stood empty.", None), 0, 1),
        (example("It was full.", "The old café stood empty."), 0, 1),
        (example("Why?", "It was late in the year.", "Why?", "It was early."), 1, 1),
        (example("Why?", "It was early.", "Why?", "It was late in the year."), 0, 1),
        (example("A passage alone.", None), 1, 1),
        (example("A new sentence, and a long one.", "It was full."), 0, 0),
        (example("The old cafe stood empty.", "It was full."), 0, 0),  # another word
        (example("The old café stood emp ty.", "It was full."), 0, 0),
    ],
)
def test_one_example(found, examples, passages):
    counted = overlap(TRAIN, [example("Nothing of the kind.", "Nothing."), found])
    assert (counted.examples, counted.passages) == (examples, passages)


def test_each_validation_example_counts_and_training_alone_does_not():
    assert overlap(TRAIN, []) == overlap([], TRAIN) == overlap([], [])
    twice = overlap(TRAIN[:1] * 3, TRAIN[:1] * 2 + TRAIN[1:2])
    assert (twice.examples, twice.passages) == (2, 2)


def test_text_that_cannot_be_encoded_is_counted():
    broken = example("half of \ud83d a pair", None)
    assert overlap([broken], [broken]).examples == 1


@pytest.mark.parametrize(
    ("name", "folder", "passages"),
    [
        ("cb", "superglue", 0),
        ("copa", "superglue", 0),
        ("rte", "superglue", 26),
        ("wic", "superglue", 33),
        ("wsc", "superglue", 0),
        ("terra", "russian_superglue", 198),
    ],
)
def test_the_official_files(data_root, name, folder, passages):
    """No dev example stands in training as a whole; every third passage of TERRa does. Counted once more by hand."""
    data = load_task(name, source="folder", path=data_root / folder)
    found = overlap(data.train, data.validation)
    assert (found.examples, found.passages) == (0, passages)

    def longest(each: Example) -> str:
        texts = [text for pair in each.texts for text in pair if text]
        spelled = [re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).lower()).strip() for text in texts]
        return max(spelled, key=len)

    train = [longest(each) for each in data.train]
    assert sum(longest(each) in train for each in data.validation) == passages


def test_passages_of_text(tmp_path):
    (tmp_path / "train.txt").write_text("the same line\n" * 8)
    (tmp_path / "held.txt").write_text("The same line\nanother line!\n")
    data = load_text(tmp_path / "train.txt", validation=tmp_path / "held.txt", characters=16)
    found = overlap(data.train, data.validation)
    assert (found.examples, found.passages) == (1, 1)
    assert (data.notes, data.partial) == ((), False)
