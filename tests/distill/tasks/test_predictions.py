import json
import math
import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import DataError, NumericsError
from distill.tasks import TASKS, Answer, read_predictions, write_predictions

ANSWERS = [
    Answer("3-1-5", "3-1", 1, (0.1, -1e-300)),
    Answer("r", "q", 0, (1.0, 2.0), "Zoë\u2028“X”\n", ("A", "B\r")),
    Answer("u", "u", None, (-0.0, 5e-324, 1e308)),
]


def test_answers_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "deep" / "validation.jsonl"
    write_predictions(path, ANSWERS)
    assert read_predictions(path) == ANSWERS
    assert math.copysign(1, read_predictions(path)[2].logits[0]) == -1
    assert len(path.read_bytes().split(b"\n")) == 4
    assert [child.name for child in path.parent.iterdir()] == ["validation.jsonl"]


@settings(max_examples=200, deadline=None)
@given(logits=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=4))
def test_floats_keep_every_bit(tmp_path_factory, logits):
    path = tmp_path_factory.mktemp("predictions") / "p.jsonl"
    write_predictions(path, [Answer("0", "0", 0, tuple(logits))])
    (found,) = read_predictions(path)
    assert struct.pack(f"{len(logits)}d", *found.logits) == struct.pack(f"{len(logits)}d", *logits)


def test_numpy_numbers_are_written_as_exact_floats(tmp_path):
    logits = np.array([0.1, 1 / 3], dtype=np.float32)
    write_predictions(tmp_path / "p.jsonl", [Answer("0", "0", np.int64(1), tuple(logits))])
    assert read_predictions(tmp_path / "p.jsonl")[0].logits == (float(logits[0]), float(logits[1]))


def test_scores_recomputed_from_the_file_are_the_scores_of_the_run(tmp_path):
    draw = random.Random(0)
    names = ("Ann", "Bob", "Rome", "the Rome")
    answers = [
        Answer(
            f"{q}-{c}",
            str(q),
            draw.randrange(2),
            (draw.gauss(0, 1), draw.gauss(0, 1)),
            names[c],
            ("Rome", "Ann"),
        )
        for q in range(50)
        for c in range(4)
    ]
    write_predictions(tmp_path / "p.jsonl", answers)
    for name in ("record", "multirc", "axb"):
        assert TASKS[name].score(read_predictions(tmp_path / "p.jsonl")) == TASKS[name].score(answers)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "p.jsonl"
    write_predictions(path, ANSWERS)
    before = path.read_bytes()

    def broken():
        yield ANSWERS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_predictions(path, broken())
    with pytest.raises(NumericsError, match=r"p\.jsonl: example x: the logits are \[nan, 0\.0\]"):
        write_predictions(path, [ANSWERS[0], Answer("x", "x", 0, (math.nan, 0.0))])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_can_be_read_by_others_as_the_umask_allows(tmp_path):
    write_predictions(tmp_path / "p.jsonl", ANSWERS)
    (tmp_path / "q").touch()
    assert (tmp_path / "p.jsonl").stat().st_mode == (tmp_path / "q").stat().st_mode


GOOD = json.dumps({"id": "0", "group": "0", "gold": 1, "logits": [0.0, 1.0], "answer": "", "golds": []})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD[:-5], r"p\.jsonl:2: not valid JSON"),
        ("[]", r"p\.jsonl:2: expected a JSON object"),
        (GOOD.replace('"id"', '"name"'), r"p\.jsonl:2: field 'id': expected a string, found nothing"),
        (GOOD.replace("[0.0, 1.0]", '["0"]'), r"p\.jsonl:2: field 'logits': expected a list of numbers"),
        (
            GOOD.replace('"gold": 1, ', ""),
            r"p\.jsonl:2: field 'gold': expected a whole number, found nothing",
        ),
        (GOOD.replace("[]", "[3]"), r"p\.jsonl:2: field 'golds'"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    (tmp_path / "p.jsonl").write_text(f"{GOOD}\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_predictions(tmp_path / "p.jsonl")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        read_predictions(tmp_path / "none.jsonl")
