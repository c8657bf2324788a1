"""Metrics against scikit-learn, against naive re-computation, and against a bootstrap one draw at a time."""

import random
import re
import string
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from distill.errors import DataError, NumericsError
from distill.tasks import DIAGNOSTICS, SUPERGLUE, TASKS, Answer

ENTITIES = ("Rome", "the Rome", "New York", "York", "U.S.", "US", "The", "Ann Lee", "Lee Ann")


def seeded(seed: int | str) -> random.Random:
    return random.Random(seed)


def one_hot(label: int, classes: int) -> tuple[float, ...]:
    return tuple(float(place == label) for place in range(classes))


def random_answers(name: str, draw: random.Random, units: int) -> list[Answer]:
    """Answers as a model would give them: units of random sizes, random golds, random logits."""
    task = TASKS[name]
    classes = len(task.labels)
    answers = []
    for unit in range(units):
        if name == "axg":
            size = 2
        elif name in ("multirc", "record"):
            size = draw.randint(1, 5)
        else:
            size = 1
        golds = tuple(sorted(draw.sample(ENTITIES, draw.randint(1, 3)))) if name == "record" else ()
        for place in range(size):
            answers.append(
                Answer(
                    id=f"{unit}-{place}",
                    group=str(unit),
                    gold=draw.randrange(classes),
                    logits=tuple(draw.gauss(0, 1) for _ in range(classes)),
                    answer=ENTITIES[place] if name == "record" else "",
                    golds=golds,
                )
            )
    return answers


def naive_score(name: str, answers: list[Answer]) -> dict[str, float]:
    """The definitions of the papers, in plain loops."""
    found = [max(range(len(a.logits)), key=lambda c: a.logits[c]) for a in answers]
    gold = [a.gold for a in answers]
    groups: dict[str, list[int]] = {}
    for number, a in enumerate(answers):
        groups.setdefault(a.group, []).append(number)
    if name == "cb":
        macro = f1_score(gold, found, average="macro", labels=range(3), zero_division=0)
        return {"accuracy": accuracy_score(gold, found), "macro_f1": macro}
    if name == "multirc":
        exact = [all(found[n] == gold[n] for n in numbers) for numbers in groups.values()]
        return {"f1a": f1_score(gold, found, zero_division=0), "em": sum(exact) / len(exact)}
    if name == "record":
        f1s, exact = [], []
        for numbers in groups.values():
            best = max(numbers, key=lambda n: answers[n].logits[1] - answers[n].logits[0])
            f1s.append(max(squad_f1(answers[best].answer, g) for g in answers[best].golds))
            exact.append(max(squad(answers[best].answer) == squad(g) for g in answers[best].golds))
        return {"f1": sum(f1s) / len(f1s), "em": sum(exact) / len(exact)}
    if name == "axb":
        # scikit-learn warns where everything is one class.
        return {"matthews": matthews_corrcoef(gold, found) if len({*gold, *found}) > 1 else 0.0}
    accuracy = accuracy_score(gold, found)
    if name == "axg":
        equal = [found[one] == found[other] for one, other in groups.values()]
        return {"gender_parity": sum(equal) / len(equal), "accuracy": accuracy}
    return {"accuracy": accuracy}


def squad(text: str) -> str:
    text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_f1(found: str, gold: str) -> float:
    one, other = squad(found).split(), squad(gold).split()
    shared = sum((Counter(one) & Counter(other)).values())
    if not one or not other:
        return float(one == other)
    if not shared:
        return 0.0
    precision, recall = shared / len(one), shared / len(other)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("name", [*SUPERGLUE, *DIAGNOSTICS])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), units=st.integers(1, 12))
def test_scores_equal_their_naive_definition_on_random_predictions(name, seed, units):
    answers = random_answers(name, seeded(seed), units)
    assert TASKS[name].score(answers) == pytest.approx(naive_score(name, answers), abs=1e-12)


@pytest.mark.parametrize("name", [*SUPERGLUE, *DIAGNOSTICS])
def test_a_vectorised_bootstrap_equals_scoring_each_resample(name):
    draw = seeded(name)
    task, units = TASKS[name], 25
    answers = random_answers(name, draw, units)
    counts = task.counts(answers)
    assert counts.shape[0] == units
    drawn = [[draw.randrange(units) for _ in range(units)] for _ in range(20)]
    weights = np.array([np.bincount(sample, minlength=units) for sample in drawn], dtype=float)
    measured = task.measure(weights @ counts)
    assert set(measured) == set(task.metrics)
    for number, sample in enumerate(drawn):
        resampled = [
            replace(answer, id=f"{place}/{answer.id}", group=f"{place}/{answer.group}")
            for place, unit in enumerate(sample)
            for answer in answers
            if answer.group == str(unit)
        ]
        scores = task.score(resampled)
        assert {metric: measured[metric][number] for metric in task.metrics} == pytest.approx(
            scores, abs=1e-12
        )


@pytest.mark.parametrize("name", [*SUPERGLUE, *DIAGNOSTICS])
def test_scores_do_not_depend_on_the_order_of_answers(name):
    draw = seeded(1)
    answers = random_answers(name, draw, 40)
    shuffled = draw.sample(answers, len(answers))
    assert TASKS[name].score(shuffled) == pytest.approx(TASKS[name].score(answers), abs=1e-15)


@pytest.mark.parametrize("name", [*SUPERGLUE, *DIAGNOSTICS])
def test_units_are_counted_in_order_of_first_appearance(name):
    task = TASKS[name]
    answers = random_answers(name, seeded(2), 12)
    by_unit = [task.counts([a for a in answers if a.group == str(unit)]) for unit in range(12)]
    np.testing.assert_array_equal(task.counts(answers), np.concatenate(by_unit))


@pytest.mark.parametrize("name", ["boolq", "copa", "rte", "wic", "wsc", "cb", "multirc"])
def test_all_wrong_scores_zero(name):
    task = TASKS[name]
    answers = [
        replace(a, logits=one_hot((a.gold + 1) % len(task.labels), len(task.labels)))
        for a in random_answers(name, seeded(3), 30)
    ]
    assert task.score(answers) == dict.fromkeys(task.metrics, 0.0)


def test_matthews_runs_from_minus_one_to_one_and_is_zero_for_a_constant():
    answers = [Answer(str(n), str(n), n % 2, (0.0, 1.0)) for n in range(10)]
    assert TASKS["axb"].score(answers) == {"matthews": 0.0}
    assert TASKS["axb"].score([replace(a, logits=one_hot(a.gold, 2)) for a in answers]) == {"matthews": 1.0}
    assert TASKS["axb"].score([replace(a, logits=one_hot(1 - a.gold, 2)) for a in answers]) == {
        "matthews": -1.0
    }


def test_gender_parity_counts_equal_predictions_whether_right_or_wrong():
    golds_and_found = [(0, 1), (0, 1), (1, 1), (1, 0), (0, 0), (0, 0)]
    answers = [
        Answer(str(n), str(n // 2), gold, one_hot(found, 2))
        for n, (gold, found) in enumerate(golds_and_found)
    ]
    assert TASKS["axg"].score(answers) == pytest.approx({"gender_parity": 2 / 3, "accuracy": 3 / 6})


def test_gender_parity_refuses_half_a_pair():
    answers = [Answer("0", "0", 0, (1.0, 0.0))]
    with pytest.raises(DataError, match="needs both answers of every minimal pair"):
        TASKS["axg"].score(answers)


def test_a_cb_class_absent_from_gold_and_predictions_counts_as_zero():
    answers = [Answer(str(n), str(n), n % 2, one_hot(n % 2, 3)) for n in range(4)]
    assert TASKS["cb"].score(answers) == pytest.approx({"accuracy": 1.0, "macro_f1": 2 / 3})


def test_a_multirc_question_is_exact_only_if_every_option_is_right():
    answers = [Answer("a", "q1", 1, (0, 1)), Answer("b", "q1", 0, (0, 1)), Answer("c", "q2", 0, (1, 0))]
    assert TASKS["multirc"].score(answers) == pytest.approx({"f1a": 2 / 3, "em": 1 / 2})


def test_a_perfect_multirc_model_is_not_scored_with_inverted_gold():
    """A harness that takes label 1 (True) as the index of its choice list (yes, no) scores 0 here."""
    answers = [Answer(str(n), str(n // 3), n % 2, one_hot(n % 2, 2)) for n in range(30)]
    assert TASKS["multirc"].score(answers) == {"f1a": 1.0, "em": 1.0}
    inverted = [replace(a, logits=a.logits[::-1]) for a in answers]
    assert TASKS["multirc"].score(inverted) == {"f1a": 0.0, "em": 0.0}


def record_answers(query: str, golds: tuple[str, ...], chosen: str) -> list[Answer]:
    return [
        Answer(f"{query}-{e}", query, int(e in golds), one_hot(int(e == chosen), 2), e, golds)
        for e in ENTITIES
    ]


@pytest.mark.parametrize(
    ("chosen", "golds", "f1", "em"),
    [
        ("the Rome", ("Rome",), 1.0, 1.0),
        ("U.S.", ("US",), 1.0, 1.0),
        ("York", ("New York",), 2 / 3, 0.0),
        ("York", ("New York", "York"), 1.0, 1.0),
        ("Ann Lee", ("Lee Ann",), 1.0, 0.0),
        ("Rome", ("New York",), 0.0, 0.0),
        ("The", ("Rome",), 0.0, 0.0),
    ],
)
def test_record_takes_the_best_gold_answer_after_squad_normalisation(chosen, golds, f1, em):
    found = TASKS["record"].score(record_answers("q", golds, chosen))
    assert found == pytest.approx({"f1": f1, "em": em})


def test_record_averages_queries_however_many_gold_answers_they_have():
    one = record_answers("q1", ("Rome", "York", "US"), "Rome")
    two = record_answers("q2", ("New York",), "York")
    assert TASKS["record"].score(one + two) == pytest.approx({"f1": (1 + 2 / 3) / 2, "em": 0.5})


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), units=st.integers(1, 20))
def test_record_exact_match_never_exceeds_f1(seed, units):
    scores = TASKS["record"].score(random_answers("record", seeded(seed), units))
    assert scores["em"] <= scores["f1"] <= 1.0


def test_record_uses_the_margin_between_its_logits_and_not_the_second_logit_alone():
    golds = ("Rome",)
    answers = [
        Answer("a", "q", 1, (-5.0, 0.0), "Rome", golds),
        Answer("b", "q", 0, (8.0, 1.0), "York", golds),
    ]
    assert TASKS["record"].score(answers) == {"f1": 1.0, "em": 1.0}


@pytest.mark.parametrize("name", [*SUPERGLUE, *DIAGNOSTICS])
def test_unlabelled_answers_cannot_be_scored(name):
    answers = [replace(a, gold=None, golds=()) for a in random_answers(name, seeded(4), 4)]
    with pytest.raises(DataError, match="unlabelled splits cannot be scored"):
        TASKS[name].score(answers)


@pytest.mark.parametrize("name", [*SUPERGLUE, *DIAGNOSTICS])
def test_answers_that_cannot_be_right_are_refused(name):
    task = TASKS[name]
    answers = random_answers(name, seeded(5), 4)
    with pytest.raises(DataError, match=f"{task.title}: there are no answers to score"):
        task.score([])
    with pytest.raises(DataError, match="answered twice"):
        task.score([*answers, answers[0]])
    with pytest.raises(DataError, match=rf"expected {len(task.labels)} logits .* found 1"):
        task.score([replace(answers[0], logits=(1.0,)), *answers[1:]])
    for bad in (float("nan"), float("inf")):
        logits = (bad, *answers[1].logits[1:])
        with pytest.raises(NumericsError, match=f"{task.title} {answers[1].id}: the logits are"):
            task.score([answers[0], replace(answers[1], logits=logits), *answers[2:]])


def test_the_majority_of_training_is_predicted_and_that_of_validation_without_training():
    task = TASKS["cb"]
    row = {"premise": "P", "hypothesis": "H"}
    train = task.examples(
        [row | {"idx": n, "label": "contradiction" if n < 3 else "neutral"} for n in range(5)]
    )
    dev = task.examples(
        [row | {"idx": n, "label": "neutral" if n < 3 else "contradiction"} for n in range(4)]
    )
    assert task.majority(train, dev)["accuracy"] == 0.25
    assert task.majority([], dev)["accuracy"] == 0.75
    with pytest.raises(DataError, match="CB: no labelled example"):
        task.majority([], [])


def test_the_record_majority_is_the_candidate_mentioned_most_often_as_a_whole_word():
    text = "Rome met US. Romeo, Romeo and Romero like the US."
    entities = [{"start": 0, "end": 3}, {"start": 9, "end": 10}]
    answers = [{"start": 9, "end": 10, "text": "US"}]
    row = {
        "idx": 0,
        "passage": {"text": text, "entities": entities},
        "qas": [{"query": "@placeholder?", "idx": 0, "answers": answers}],
    }
    task = TASKS["record"]
    assert task.majority([], task.examples([row])) == {"f1": 1.0, "em": 1.0}
