"""Calibration: the figures by hand, and a model that is as sure as it should be."""

from __future__ import annotations

import math
import random

import pytest

from distill.evaluation import calibration
from distill.tasks import TASKS, Answer


def sure(number: int, confidence: float, right: bool) -> Answer:
    """An RTE answer with a given probability for what it says."""
    margin = math.log(confidence / (1 - confidence))
    said = number % 2
    logits = (margin, 0.0) if said == 0 else (3.0, 3.0 + margin)
    return Answer(str(number), str(number), said if right else 1 - said, logits)


def test_the_error_is_the_gap_of_each_bin_by_what_is_in_it():
    told = [
        (0.95, True),
        (0.91, True),
        (0.93, False),
        (0.99, True),
        (0.55, False),
        (0.57, True),
        (0.72, True),
    ]
    found = calibration("rte", [[sure(i, *each) for i, each in enumerate(told)]])
    assert found is not None
    by_hand = (abs(0.95 + 0.91 + 0.93 + 0.99 - 3) + abs(0.55 + 0.57 - 1) + abs(0.72 - 1)) / 7
    assert found["ece"] == pytest.approx(by_hand, abs=1e-12)
    assert (found["n"], found["accuracy"]) == (7, pytest.approx(5 / 7))
    assert found["confidence"] == pytest.approx(sum(c for c, _ in told) / 7)
    assert [(b["from"], b["to"], b["n"]) for b in found["bins"]] == [
        (0.5, 0.6, 2),
        (0.7, 0.8, 1),
        (0.9, 1.0, 4),
    ]
    assert found["bins"][2]["confidence"] == pytest.approx((0.95 + 0.91 + 0.93 + 0.99) / 4)
    assert found["bins"][2]["accuracy"] == 0.75


def test_a_confidence_on_the_border_belongs_to_the_bin_below():
    found = calibration("rte", [[sure(0, 0.5, True), Answer("1", "1", 0, (800.0, 0.0))]])
    assert [b["to"] for b in found["bins"]] == [0.5, 1.0]


@pytest.mark.parametrize("count", [60, 4000])
def test_of_a_model_that_is_as_sure_as_it_should_be_the_error_is_what_chance_makes_it(count):
    draw = random.Random(count)
    answers = []
    for number in range(count):
        confidence = draw.uniform(0.5, 0.999)
        answers.append(sure(number, confidence, draw.random() < confidence))
    found = calibration("rte", [answers])
    assert 0.3 < found["ece"] / found["ece_if_calibrated"] < 2.5
    assert (found["ece_if_calibrated"] > 0.05) == (count == 60)
    always = [sure(number, 0.97, number % 2 == 0) for number in range(count)]
    found = calibration("rte", [always])
    assert found["ece"] == pytest.approx(0.47)
    assert found["ece"] > 8 * found["ece_if_calibrated"]


def test_all_seeds_count_together():
    one, other = ([sure(i, c, right) for i in range(5)] for c, right in ((0.8, True), (0.6, False)))
    found = calibration("rte", [one, other])
    assert found["n"] == 10
    assert found["ece"] == pytest.approx((5 * 0.2 + 5 * 0.6) / 10)


def test_written_texts_and_plain_text_have_no_confidence():
    assert calibration("rte", [[Answer("0", "0", 0, (), text="entailment")]]) is None
    assert calibration("text", [[Answer("0", "0", None, (-9.0, 4.0, 8.0))]]) is None


def test_probabilities_of_large_logits_are_finite():
    found = TASKS["rte"].probabilities([Answer("0", "0", 0, (6e4, -6e4)), Answer("1", "1", 0, (-6e4, -6e4))])
    assert found.tolist() == [[1.0, 0.0], [0.5, 0.5]]
