"""A classification problem small enough to train on in a test."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from distill.models import Features, Student, Teacher
from distill.models.loading import load_model, load_tokenizer
from distill.models.source import find_model

LABELS = ("no", "yes")


@pytest.fixture
def new_student(tiny_bert: Path):
    """A function that makes the same two-layer student each time it is called."""

    def make(seed: int = 0) -> Student:
        return Student.from_teacher(str(tiny_bert), layers=2, kind="classification", labels=LABELS, seed=seed)

    return make


@pytest.fixture
def teacher(tiny_bert: Path) -> Teacher:
    """A teacher with a random head: it has opinions, if no knowledge."""
    source = find_model(str(tiny_bert))
    model = load_model(source, kind="classification", labels=LABELS, seed=7)
    model.classifier.weight.data.mul_(50)  # opinions strong enough to be learnt from
    return Teacher(model, load_tokenizer(source))


@pytest.fixture
def features(tiny_bert: Path) -> Features:
    """64 examples of uneven length whose label is whether token 2000 is in them."""
    draw = random.Random(0)
    rows, labels = [], []
    for _ in range(64):
        ids = [101, *(draw.randrange(1996, 2004) for _ in range(draw.randrange(3, 14))), 102]
        rows.append([{"input_ids": ids, "attention_mask": [1] * len(ids)}])
        labels.append(int(2000 in ids))
    return Features(rows, labels, load_tokenizer(find_model(str(tiny_bert))))
