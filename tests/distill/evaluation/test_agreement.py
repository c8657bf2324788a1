"""Where student and teacher differ: shares by hand, and the sharpest differences first."""

from __future__ import annotations

import math

import pytest

from distill.evaluation import agreement
from distill.tasks import Answer


def said(label: int, gold: int, number: int, margin: float = 1.0) -> Answer:
    return Answer(str(number), str(number), gold, (margin, 0.0) if label == 0 else (0.0, margin))


def confidence(margin: float) -> float:
    return 1 / (1 + math.exp(-margin))


TEACHER = [said(0, 0, 0, 2), said(1, 1, 1, 1), said(0, 1, 2, 3), said(0, 1, 3, 1)]


def test_shares_and_examples_by_hand():
    first = [said(0, 0, 0, 1), said(0, 1, 1, 2), said(1, 1, 2, 1), said(0, 1, 3, 1)]
    second = [said(0, 0, 0), said(1, 1, 1), said(0, 1, 2), said(0, 1, 3)]
    found = agreement("rte", TEACHER, [first, second])
    assert found["per_seed"] == [0.5, 1.0]
    assert found["same"] == 0.75
    assert found["outcomes"] == {
        "both_right": 3 / 8,
        "teacher_alone": 1 / 8,
        "student_alone": 1 / 8,
        "both_wrong": 3 / 8,
    }
    assert (found["n"], found["differ"]) == (4, 2)
    assert [example["id"] for example in found["examples"]] == ["2", "1"]  # 3 + 1 before 1 + 2
    assert found["examples"][0] == {
        "id": "2",
        "gold": "not_entailment",
        "teacher": {"answer": "entailment", "confidence": pytest.approx(confidence(3))},
        "student": {"answer": "not_entailment", "confidence": pytest.approx(confidence(1))},
    }


def test_only_so_many_are_named_and_ties_keep_their_order():
    teacher = [said(0, 0, number) for number in range(20)]
    student = [said(1, 0, number) for number in range(20)]
    found = agreement("rte", teacher, [student], worst=5)
    assert [example["id"] for example in found["examples"]] == ["0", "1", "2", "3", "4"]
    assert found["differ"] == 20


def test_of_a_query_with_candidates_the_chosen_ones_are_compared():
    def asked(*margins: float) -> list[Answer]:
        return [
            Answer(f"q-{name}", "q", int(name == "Ann"), (0.0, margin), answer=name, golds=("Ann",))
            for name, margin in zip(("Ann", "Bob", "Eve"), margins, strict=True)
        ]

    found = agreement("record", asked(2.0, 1.0, -1.0), [asked(-2.0, -1.0, -3.0)])
    assert found["same"] == 0
    (example,) = found["examples"]
    assert example["id"] == "q"
    assert example["gold"] == "Ann"
    assert example["teacher"] == {"answer": "Ann", "confidence": pytest.approx(confidence(2))}
    assert example["student"] == {"answer": "Bob", "confidence": pytest.approx(confidence(-1))}
    assert found["outcomes"]["teacher_alone"] == 1


def test_written_answers_are_compared_without_confidence():
    teacher = [Answer("0", "0", 0, (), text="entailment"), Answer("1", "1", 0, (), text="Entailment ")]
    student = [Answer("0", "0", 0, (), text="entailment"), Answer("1", "1", 0, (), text="well")]
    found = agreement("rte", teacher, [student])
    assert found["examples"] == [
        {
            "id": "1",
            "gold": "entailment",
            "teacher": {"answer": "Entailment ", "confidence": None},
            "student": {"answer": "well", "confidence": None},
        }
    ]
    assert found["outcomes"]["teacher_alone"] == 0.5


def test_of_plain_text_the_passages_that_lose_most():
    teacher = [Answer(str(i), str(i), None, (-100.0, 30.0, 80.0)) for i in range(3)]
    student = [
        Answer(str(i), str(i), None, (-nats, 40.0, 80.0)) for i, nats in enumerate((120.0, 160.0, 90.0))
    ]
    found = agreement("text", teacher, [student], worst=2)
    assert [example["id"] for example in found["examples"]] == ["1", "0"]
    assert found["examples"][0]["student"]["bits_per_byte"] == pytest.approx(160 / 80 / math.log(2))
    assert found["examples"][0]["teacher"]["bits_per_byte"] == pytest.approx(100 / 80 / math.log(2))
    assert found["n"] == 3
