"""The demo tasks: official layouts, no shared sentence, no shortcut for a bag of words."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from distill.tasks import SUPERGLUE, TASKS, load_task
from distill.tasks.demo import rows

LAYOUTS = {
    "boolq": {"question", "passage", "label", "idx"},
    "cb": {"premise", "hypothesis", "label", "idx"},
    "copa": {"premise", "choice1", "choice2", "question", "label", "idx"},
    "multirc": {"idx", "version", "passage"},
    "record": {"idx", "source", "passage", "qas"},
    "rte": {"premise", "hypothesis", "label", "idx"},
    "wic": {"word", "sentence1", "sentence2", "start1", "end1", "start2", "end2", "idx", "label", "version"},
    "wsc": {"text", "target", "label", "idx"},
}


@pytest.fixture(scope="module")
def data():
    return {name: load_task(name, source="demo") for name in SUPERGLUE}


@pytest.mark.parametrize("task", SUPERGLUE)
def test_rows_have_exactly_the_official_fields(task):
    for split in ("train", "validation"):
        found = rows(task, split)
        assert found
        assert {frozenset(row) for row in found} == {frozenset(LAYOUTS[task])}
        assert [row["idx"] for row in found] == list(range(len(found)))


@pytest.mark.parametrize("task", SUPERGLUE)
def test_rows_depend_on_the_seed_alone(task):
    assert rows(task, "train", seed=3) == rows(task, "train", seed=3)
    assert rows(task, "train", seed=3) != rows(task, "train", seed=4)


TEXTS = (
    "passage",
    "question",
    "premise",
    "hypothesis",
    "choice1",
    "choice2",
    "sentence1",
    "sentence2",
    "text",
    "query",
)


def sentences(value: object, key: str = "") -> set[str]:
    """Every sentence in a row, wherever its layout keeps texts; COPA's cause or effect is a word, not a sentence."""
    if isinstance(value, dict):
        return set().union(*(sentences(inner, name) for name, inner in value.items()))
    if isinstance(value, list):
        return set().union(*(sentences(inner, key) for inner in value))
    if isinstance(value, str) and key in TEXTS and " " in value:
        return {part.strip(" .?") for line in value.split("\n") for part in line.split(". ")} - {"@highlight"}
    return set()


@pytest.mark.parametrize("task", SUPERGLUE)
def test_train_and_validation_share_no_sentence(data, task):
    train, validation = rows(task, "train"), rows(task, "validation")
    if task in ("multirc", "record"):  # an answer to choose is a phrase
        for row in [*train, *validation]:
            for question in row.get("qas", row["passage"].get("questions") if "qas" not in row else []):
                question["answers"] = []
    assert len(sentences(train)) > 100
    assert not sentences(train) & sentences(validation)
    assert not {e.texts for e in data[task].train} & {e.texts for e in data[task].validation}


@pytest.mark.parametrize("task", ["boolq", "cb", "copa", "rte", "wic", "wsc"])
def test_labels_are_balanced(data, task):
    for examples in (data[task].train, data[task].validation):
        counts = Counter(example.label for example in examples)
        assert len(counts) == len(TASKS[task].labels)
        assert max(counts.values()) - min(counts.values()) <= 2


def bag_of_words(task: str, train, validation, *, second_only: bool = False) -> float:
    """The score of a logistic regression on words and pairs of words, in points."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    def text(pair):
        return pair[1] if second_only else f"{pair[0]} | {pair[1]}"

    choices = TASKS[task].kind == "multiple_choice"
    labels = (
        [int(place == e.label) for e in train for place in range(len(e.texts))]
        if choices
        else [e.label for e in train]
    )
    vectors = CountVectorizer(ngram_range=(1, 2))
    model = LogisticRegression(max_iter=300).fit(
        vectors.fit_transform([text(pair) for e in train for pair in e.texts]), labels
    )
    answers = []
    for example in validation:
        decided = model.decision_function(vectors.transform([text(pair) for pair in example.texts]))
        if choices:
            logits = decided
        else:
            logits = decided[0] if len(TASKS[task].labels) > 2 else (0.0, float(decided[0]))
        answers.append(example.answered(logits))
    return 100 * float(np.mean(list(TASKS[task].score(answers).values())))


def test_a_bag_of_words_stays_near_the_majority(data):
    """The fine-tuned teacher reaches about 80 on the mean; what words alone give away must be far below."""
    scores, majorities = {}, {}
    for task, found in data.items():
        train = TASKS[task].training_examples(found.train, negatives=2, seed=0)
        scores[task] = bag_of_words(task, train, found.validation)
        majorities[task] = 100 * float(
            np.mean(list(TASKS[task].majority(found.train, found.validation).values()))
        )
    assert np.mean(list(scores.values())) <= 58, scores
    assert max(scores.values()) <= 75, scores


@pytest.mark.parametrize("task", ["boolq", "cb", "rte", "wic"])
def test_the_second_text_alone_gives_nothing_away(data, task):
    score = bag_of_words(task, data[task].train, data[task].validation, second_only=True)
    assert score <= 100 / len(TASKS[task].labels) + 12


def test_spans_point_at_what_they_name():
    for row in rows("wic", "train"):
        for number in ("1", "2"):
            marked = row[f"sentence{number}"][row[f"start{number}"] : row[f"end{number}"]]
            assert marked.lower() == row["word"]
    for row in rows("wsc", "train"):
        words, target = row["text"].split(), row["target"]
        assert words[target["span1_index"]].strip(".,") == target["span1_text"]
        assert words[target["span2_index"]].strip(".,") == target["span2_text"]
    for row in rows("record", "train"):
        text = row["passage"]["text"]
        named = {text[e["start"] : e["end"] + 1] for e in row["passage"]["entities"]}
        assert len(named) == 4
        for question in row["qas"]:
            assert question["query"].count("@placeholder") == 1
            for answer in question["answers"]:
                assert text[answer["start"] : answer["end"] + 1] == answer["text"]
                assert answer["text"] in named
                assert answer["text"] not in question["query"]


def test_every_report_calls_them_demo_tasks(data):
    for found in data.values():
        assert any("demo task, not SuperGLUE" in note for note in found.notes)
