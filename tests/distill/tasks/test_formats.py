"""The wording of every task for decoders and encoder–decoders, and what is made of what they say."""

import random
from collections import Counter

import pytest

from distill.errors import DataError
from distill.tasks import (
    DIAGNOSTICS,
    SUPERGLUE,
    TASKS,
    Answer,
    load_task,
    read_predictions,
    write_predictions,
)
from distill.tasks.record import normalised, overlap

from .official_rows import AXB, AXG, BOOLQ, COPA, MULTIRC, RECORD, WIC, WSC

CB = {"premise": "P.", "hypothesis": "it rains", "idx": 3, "label": "neutral"}
NLI = {"premise": "It rained.", "hypothesis": "It is wet.", "idx": 1, "label": "not_entailment"}
TERRA = {"premise": "Шёл дождь.", "hypothesis": "Было мокро.", "idx": 1, "label": "entailment"}
ROWS = {
    "boolq": [BOOLQ],
    "cb": [CB],
    "copa": [COPA],
    "multirc": [MULTIRC],
    "record": [RECORD],
    "rte": [NLI],
    "wic": [WIC],
    "wsc": [WSC],
    "axb": [AXB],
    "axg": AXG,
    "terra": [TERRA],
}
COMPLETIONS = {
    "boolq": ("Rain -- It is wet.\nQuestion: is it wet?\nAnswer:", (" no", " yes"), 1),
    "cb": (
        "P.\nQuestion: it rains. True, False, or Neither?\nAnswer:",
        (" True", " False", " Neither"),
        2,
    ),
    "copa": ("It rained therefore", (" wet.", " dry."), 0),
    "multirc": (
        "Sent 1: It rained. Sent 2: 5 < 6.\nQuestion: What fell?\nAnswer: Rain\nIs the answer correct?",
        (" no", " yes"),
        1,
    ),
    "record": (
        "Ann met Bob in Rome\n\n  - Bob left Rome..",
        ("\n  - The Ann is old, says Ann.",),
        None,
    ),
    "rte": ("It rained.\nQuestion: It is wet. True or False?\nAnswer:", (" True", " False"), 1),
    "wic": (
        "Sentence 1: Banks lend.\nSentence 2: By the bank, we sat.\n"
        "Question: Is the word 'Banks' used in the same way in the two sentences above?\nAnswer:",
        (" no", " yes"),
        0,
    ),
    "wsc": (
        'Passage: Mark told "Pete" that *he*\nwas late.\n'
        'Question: In the passage above, does the pronoun "*he*" refer to "*Pete*"?\nAnswer:',
        (" no", " yes"),
        1,
    ),
    "axb": ("A.\nQuestion: B. True or False?\nAnswer:", (" True", " False"), 1),
    "axg": ("He.\nQuestion: H. True or False?\nAnswer:", (" True", " False"), 0),
    "terra": ("Шёл дождь.\nВопрос: Было мокро. Верно?\nОтвет:", (" да", " нет"), 0),
}
TEXT_TO_TEXT = {
    "boolq": ("boolq passage: Rain -- It is wet. question: is it wet", ("True",)),
    "cb": ("cb hypothesis: it rains premise: P.", ("neutral",)),
    "copa": ("copa choice1: Wet. choice2: Dry. premise: It rained. question: effect", ("choice1",)),
    "multirc": (
        "multirc question: What fell? answer: Rain paragraph: Sent 1: It rained. Sent 2: 5 < 6.",
        ("True",),
    ),
    "record": (
        "record query: The @placeholder is old, says @placeholder. entities: Ann, Bob, Rome "
        "passage: Ann met Bob in Rome. Bob left Rome.",
        ("Rome",),
    ),
    "rte": ("rte hypothesis: It is wet. premise: It rained.", ("not_entailment",)),
    "wic": ("wic sentence1: Banks lend. sentence2: By the bank, we sat. word: bank", ("False",)),
    "wsc": ('wsc: Mark told "Pete" that *he*\nwas late.', ("Pete",)),
    "axb": ("rte hypothesis: B. premise: A.", ("not_entailment",)),
    "axg": ("rte hypothesis: H. premise: He.", ("entailment",)),
    "terra": ("terra hypothesis: Было мокро. premise: Шёл дождь.", ("entailment",)),
}


@pytest.mark.parametrize("name", [name for name in TASKS if name != "text"])
def test_prompts_and_answers_are_those_of_the_harness_in_class_order(name):
    completion = TASKS[name].completion(TASKS[name].examples(ROWS[name])[0])
    assert (completion.prompt.text, completion.answers, completion.gold) == COMPLETIONS[name]
    assert completion.prompt.text == completion.prompt.text.rstrip()


@pytest.mark.parametrize("name", [name for name in TASKS if name != "text"])
def test_sources_and_targets_are_those_of_t5(name):
    made = TASKS[name].text_to_text(TASKS[name].examples(ROWS[name])[0])
    assert (made.source.text, made.targets) == TEXT_TO_TEXT[name]


@pytest.mark.parametrize("name", [name for name in TASKS if name != "text"])
def test_what_may_be_cut_is_the_passage_and_never_the_question(name):
    example = TASKS[name].examples(ROWS[name])[0]
    passages = {"wic": "Sentence 1: Banks lend.\nSentence 2: By the bank, we sat.", "copa": "It rained"}
    passages |= {"record": COMPLETIONS["record"][0], "multirc": example.fields.get("paragraph")}
    passages |= {"boolq": example.fields.get("passage"), "wsc": example.fields.get("text")}
    expected = passages.get(name, example.fields.get("premise"))
    assert TASKS[name].completion(example).prompt.passage == expected
    if name not in ("wic", "copa", "record"):
        assert TASKS[name].text_to_text(example).source.passage == expected


def test_the_passage_of_many_questions_is_kept_once():
    examples = TASKS["multirc"].examples([MULTIRC])
    assert examples[0].fields["paragraph"] is examples[1].fields["paragraph"] is examples[0].texts[0][0]
    one, *others = TASKS["record"].examples([RECORD])
    assert all(other.fields is one.fields for other in others)


def written(name, example):
    """What a perfect encoder–decoder writes."""
    if name == "wsc":
        return example.fields["noun"] if example.label else "nobody else"
    return example.golds[-1] if name == "record" else TASKS[name].labels[example.label]


def wrong(name, example):
    if name == "wsc":
        return "nobody else" if example.label else example.fields["noun"]
    labels = TASKS[name].labels
    return "nowhere at all" if name == "record" else labels[(example.label + 1) % len(labels)]


def said(name, examples, speak):
    return [
        TASKS[name].read_answer(examples[n], speak(name, examples[n]))
        for n in TASKS[name].questions(examples)
    ]


def best_of(name, examples, right):
    """The answers of a decoder that gives the right, or else a wrong, answer the largest log-probability."""
    made = []
    for example in examples:
        completion = TASKS[name].completion(example)
        if name == "record":
            scores = [-1.0 if (completion.gold == 0) == right else -9.0]
        else:
            chosen = (completion.gold + (not right)) % len(completion.answers)
            scores = [-1.0 if number == chosen else -9.0 for number in range(len(completion.answers))]
        made.append(example.answered(TASKS[name].completion_logits(scores)))
    return made


@pytest.fixture(scope="module", params=[*SUPERGLUE])
def demo(request):
    return request.param, load_task(request.param, source="demo", validation_examples=40).validation


def test_the_right_answers_score_one_and_the_wrong_ones_zero_in_every_format(demo, tmp_path):
    name, examples = demo
    task = TASKS[name]
    for answers, share in (
        (best_of(name, examples, True), 1.0),
        (best_of(name, examples, False), 0.0),
        (said(name, examples, written), 1.0),
        (said(name, examples, wrong), 0.0),
        (said(name, examples, lambda *_: ""), 0.0),
        (said(name, examples, lambda *_: "yes, choice1 True"), 0.0),
    ):
        if name == "wsc" and answers[0].text is not None and answers[0].text.startswith("yes"):
            continue  # any other words are an answer there: they name somebody else
        scores = task.score(answers)
        assert scores == dict.fromkeys(task.metrics, pytest.approx(share)), (answers[0], scores)
        write_predictions(tmp_path / "p.jsonl", answers)
        assert read_predictions(tmp_path / "p.jsonl") == answers
        assert task.score(read_predictions(tmp_path / "p.jsonl")) == scores


@pytest.mark.parametrize("text", ["True", " true ", "TRUE", "tr ue"])
def test_case_and_white_space_of_a_class_do_not_count(text):
    example = TASKS["boolq"].examples([BOOLQ])[0]
    assert TASKS["boolq"].score([TASKS["boolq"].read_answer(example, text)]) == {"accuracy": 1.0}


def test_an_invalid_text_is_wrong_for_true_and_false_options_alike():
    task = TASKS["multirc"]
    answers = [Answer(str(n), str(n), n % 2, (), text="perhaps") for n in range(4)]
    assert task.predicted(answers).tolist() == [-1] * 4
    assert task.score(answers) == {"f1a": 0.0, "em": 0.0}
    halves = [Answer("a", "q", 1, (), text="True"), Answer("b", "q", 0, (), text="?")]
    assert task.score(halves) == {"f1a": 1.0, "em": 0.0}


def test_an_invalid_text_is_no_prediction_of_a_cb_class():
    answers = [Answer(str(n), str(n), n, (), text=text) for n, text in enumerate(("entailment", "?", "?"))]
    assert TASKS["cb"].score(answers) == pytest.approx({"accuracy": 1 / 3, "macro_f1": 1 / 3})


def test_invalid_texts_of_the_diagnostics_are_a_third_class_and_unequal_pairs():
    names = TASKS["axb"].labels
    texts = [names[n % 2] if n < 6 else "?" for n in range(10)]
    answers = [Answer(str(n), str(n // 2), n % 2, (), text=text) for n, text in enumerate(texts)]
    from sklearn.metrics import matthews_corrcoef

    found = [names.index(text) if text in names else 2 for text in texts]
    expected = matthews_corrcoef([n % 2 for n in range(10)], found)
    assert TASKS["axb"].score(answers)["matthews"] == pytest.approx(expected, abs=1e-12)
    assert TASKS["axg"].score(answers) == pytest.approx({"gender_parity": 0.0, "accuracy": 0.6})


@pytest.mark.parametrize(
    ("text", "noun", "answer"),
    [
        ("Mark", "Mark", 1),
        ("mark", "Mark", 1),
        ("the man", "The old man", 1),
        ("a very old man", "the old man", 1),
        ("his mother", "My mother", 1),
        ("Pete", "Mark", 0),
        ("Mark and Pete", "Pete and Jim", 0),
        ("Bob", "Bob's hat", 0),
        ("Bob's hat", "Bob", 0),
        ("Bob's", "Bob's hat", 1),
        ("", "Mark", -1),
        ("the", "Mark", -1),
    ],
)
def test_a_wsc_text_names_the_noun_phrase_if_one_holds_the_words_of_the_other(text, noun, answer):
    assert TASKS["wsc"].class_of(Answer("0", "0", 1, (), noun, text=text)) == answer


def test_wsc_teaches_true_rows_alone():
    example = TASKS["wsc"].examples([WSC | {"label": False}])[0]
    assert TASKS["wsc"].text_to_text(example).targets == ()
    assert TASKS["wsc"].completion(example).gold == 0


def test_record_asks_once_a_query_and_teaches_each_gold_answer_once():
    row = RECORD | {"qas": [{**RECORD["qas"][0], "answers": [{"text": t} for t in ("Rome", "Bob", "Rome")]}]}
    examples = TASKS["record"].examples([row, RECORD | {"idx": 6}])
    assert TASKS["record"].questions(examples) == [0, 3]
    assert TASKS["record"].text_to_text(examples[0]).targets == ("Bob", "Rome")
    right = {e.answer for e in examples[:3] if TASKS["record"].completion(e).gold == 0}
    assert right == {"Bob", "Rome"}


def test_record_texts_are_averaged_over_queries_as_by_hand():
    draw = random.Random(3)
    words = ("the", "old", "Rome", "new", "York", "city", "U.S.")
    answers = []
    for query in range(200):
        golds = tuple(
            sorted({" ".join(draw.choices(words, k=draw.randint(1, 3))) for _ in range(draw.randint(1, 4))})
        )
        text = " ".join(draw.choices(words, k=draw.randint(0, 3)))
        answers.append(Answer(str(query), str(query), None, (), golds=golds, text=text))

    def naive(one, other):
        one, other = normalised(one).split(), normalised(other).split()
        shared = sum((Counter(one) & Counter(other)).values())
        if not shared:
            return float(one == other)
        precision, recall = shared / len(one), shared / len(other)
        return 2 * precision * recall / (precision + recall)

    found = TASKS["record"].score(answers)
    assert found["f1"] == pytest.approx(sum(max(naive(a.text, g) for g in a.golds) for a in answers) / 200)
    exact = sum(any(normalised(a.text) == normalised(g) for g in a.golds) for a in answers)
    assert found["em"] == pytest.approx(exact / 200)
    assert found["em"] <= found["f1"]
    assert overlap("Rome", "the Rome!") == 1.0


def test_two_texts_for_one_record_query_are_refused():
    answers = [Answer(str(n), "q", None, (), golds=("a",), text="a") for n in range(2)]
    with pytest.raises(DataError, match="a written text answers its query alone, found 2"):
        TASKS["record"].score(answers)


def test_record_takes_the_candidate_with_the_largest_sum_however_long_it_is():
    examples = TASKS["record"].examples([RECORD])
    scores = {"Ann": -9.0, "Bob": -4.0, "Rome": -3.5}
    answers = [e.answered(TASKS["record"].completion_logits([scores[e.answer]])) for e in examples]
    assert TASKS["record"].score(answers) == {"f1": 1.0, "em": 1.0}


def test_predictions_without_a_text_are_stored_as_before_and_with_one_as_a_string(tmp_path):
    write_predictions(
        tmp_path / "p.jsonl", [Answer("0", "0", 1, (0.0, 1.0)), Answer("1", "1", 1, (), text="")]
    )
    first, second = (tmp_path / "p.jsonl").read_text().splitlines()
    assert '"text"' not in first
    assert '"text": ""' in second
    (tmp_path / "p.jsonl").write_text(second.replace('"text": ""', '"text": 3'))
    with pytest.raises(DataError, match="field 'text': expected a string"):
        read_predictions(tmp_path / "p.jsonl")


@pytest.mark.parametrize("name", [*SUPERGLUE, *DIAGNOSTICS])
def test_official_rows_score_one_when_right_and_zero_when_wrong_in_every_format(official, name):
    data = official(name)
    examples = data.validation
    for right, speak in ((True, written), (False, wrong)):
        for answers in (best_of(name, examples, right), said(name, examples, speak)):
            scores = data.task.score(answers)
            if name == "axb":
                assert scores == {"matthews": pytest.approx(1.0 if right else -1.0)}
            elif name == "axg":
                assert scores == {"gender_parity": 1.0, "accuracy": float(right)}
            else:
                for metric, value in scores.items():
                    # A wrong ReCoRD candidate may share words with a gold answer.
                    assert value == float(right) or (
                        name == "record" and not right and metric == "f1" and value < 0.2
                    )


@pytest.mark.parametrize("name", [*SUPERGLUE, *DIAGNOSTICS])
def test_official_rows_have_no_empty_text_and_every_answer_its_space(official, name):
    data = official(name)
    for example in [*data.train, *data.validation]:
        completion, pair = data.task.completion(example), data.task.text_to_text(example)
        assert completion.prompt.text == completion.prompt.text.rstrip() != ""
        assert all(answer[0].isspace() and answer.strip() for answer in completion.answers)
        assert len(set(completion.answers)) == len(completion.answers) or name == "copa"
        assert all(pair.targets)
        assert pair.source.text.strip()


def test_official_counts_of_rows_to_learn(official):
    wsc = official("wsc")
    assert sum(bool(wsc.task.text_to_text(e).targets) for e in wsc.train) == 259
    record = official("record")
    queries = record.task.questions(record.train)
    assert len(queries) == 64
    rows = sum(len(record.task.text_to_text(record.train[n]).targets) for n in queries)
    assert rows == sum(len(record.train[n].golds) for n in queries) >= 64


def test_official_copa_premises_lose_exactly_their_last_character(official):
    data = official("copa")
    for example in data.train:
        prompt = data.task.completion(example).prompt
        assert prompt.passage == example.fields["premise"].strip()[:-1]
