import pytest

from distill.errors import DataError
from distill.tasks import TASKS

from .official_rows import AXB, AXG, BOOLQ, CB, COPA, MULTIRC, RECORD, WIC, WSC


def test_boolq_pairs_the_passage_with_the_question_and_never_cuts_the_question():
    (example,) = TASKS["boolq"].examples([BOOLQ])
    assert example.texts == (("Rain -- It is wet.", "is it wet"),)
    assert (example.id, example.group, example.label) == ("0", "0", 1)
    assert TASKS["boolq"].truncate == "only_first"


def test_cb_labels_are_in_the_order_entailment_contradiction_neutral():
    labels = [
        TASKS["cb"].examples([CB | {"label": label}])[0].label
        for label in ("entailment", "contradiction", "neutral")
    ]
    assert labels == [0, 1, 2]


@pytest.mark.parametrize(
    ("asked", "words"), [("cause", "What was the cause of this?"), ("effect", "What happened as a result?")]
)
def test_copa_asks_its_question_and_pairs_it_with_each_choice(asked, words):
    (example,) = TASKS["copa"].examples([COPA | {"question": asked}])
    assert example.texts == ((f"It rained. {words}", "Wet."), (f"It rained. {words}", "Dry."))
    assert TASKS["copa"].kind == "multiple_choice"


def test_wic_marks_the_word_in_both_sentences_and_names_it():
    (example,) = TASKS["wic"].examples([WIC])
    assert example.texts == (("bank: * Banks * lend.", "By the * bank *, we sat."),)
    assert example.label == 0


def test_wic_marks_an_irregular_form_where_the_offsets_say():
    row = WIC | {"word": "go", "sentence2": "I went on holiday and got ill.", "start2": 2, "end2": 6}
    assert TASKS["wic"].examples([row])[0].texts[0][1] == "I * went * on holiday and got ill."


def test_wic_marks_a_regular_form_of_the_word_where_the_offsets_point_at_another_word():
    row = WIC | {"word": "call", "sentence2": "The engineer called round.", "start2": 20, "end2": 25}
    assert TASKS["wic"].examples([row])[0].texts[0][1] == "The engineer * called * round."


def test_wsc_marks_spans_without_their_punctuation_and_keeps_the_texts_own_spaces():
    (example,) = TASKS["wsc"].examples([WSC])
    assert example.texts == (('Mark told "* Pete *" that # he #\nwas late.', "# he # refers to * Pete *"),)


def test_wsc_searches_for_the_nearest_occurrence_when_the_index_points_elsewhere():
    text = "He saw the man before he left."
    row = WSC | {
        "text": text,
        "target": {"span1_index": 2, "span1_text": "the man", "span2_index": 4, "span2_text": "he"},
    }
    assert TASKS["wsc"].examples([row])[0].texts[0][0] == "He saw * the man * before # he # left."


def test_wsc_marks_the_words_at_the_index_when_the_text_is_nowhere():
    target = {"span1_index": 0, "span1_text": "Kamenev and Zinoviev", "span2_index": 4, "span2_text": "their"}
    row = WSC | {"text": "Lev Kamenev, and Zinoviev, in their hall.", "target": target | {"span2_index": 5}}
    assert TASKS["wsc"].examples([row])[0].texts[0][0] == "* Lev Kamenev, and * Zinoviev, in # their # hall."


def test_multirc_joins_question_and_answer_strips_tags_and_keeps_other_angle_brackets():
    one, two = TASKS["multirc"].examples([MULTIRC])
    assert one.texts == (("Sent 1: It rained. Sent 2: 5 < 6.", "What fell? Rain"),)
    assert (one.id, two.id) == ("2-9-30", "2-9-31")
    assert one.group == two.group == "2-9"
    assert (one.label, two.label) == (1, 0)


def test_record_fills_every_placeholder_with_each_entity_once_in_the_order_of_the_passage():
    examples = TASKS["record"].examples([RECORD])
    assert [example.answer for example in examples] == ["Ann", "Bob", "Rome"]
    assert [example.label for example in examples] == [0, 0, 1]
    assert [example.id for example in examples] == ["5-8-0", "5-8-1", "5-8-2"]
    assert {example.group for example in examples} == {"5-8"}
    assert {example.golds for example in examples} == {("Rome",)}
    assert examples[2].texts == (("Ann met Bob in Rome. Bob left Rome.", "The Rome is old, says Rome."),)


def test_record_candidates_are_right_when_they_equal_a_gold_answer_after_normalisation():
    row = RECORD | {"qas": [RECORD["qas"][0] | {"answers": [{"start": 0, "end": 0, "text": "the  ROME!"}]}]}
    assert [example.label for example in TASKS["record"].examples([row])] == [0, 0, 1]


def test_a_record_query_without_answers_is_unlabelled():
    row = RECORD | {"qas": [{"query": "@placeholder?", "idx": 1}]}
    assert {(example.label, example.golds) for example in TASKS["record"].examples([row])} == {(None, ())}


def test_record_training_keeps_every_right_candidate_and_the_asked_number_of_wrong_ones():
    task = TASKS["record"]
    text = " ".join(f"Name{number}" for number in range(20))
    places = [(text.index(f"Name{number}"), len(f"Name{number}")) for number in range(20)]
    entities = [{"start": start, "end": start + length - 1} for start, length in places]
    answers = [{"start": 0, "end": 4, "text": "Name0"}, {"start": 0, "end": 0, "text": "Name7"}]
    rows = [
        {
            "idx": number,
            "passage": {"text": text, "entities": entities},
            "qas": [{"query": "@placeholder?", "idx": number, "answers": answers}],
        }
        for number in range(30)
    ]
    examples = task.examples(rows)
    kept = task.training_examples(examples, negatives=3, seed=1)
    assert [example.label for example in kept].count(1) == 60
    assert [example.label for example in kept].count(0) == 90
    assert kept == [example for example in examples if example in set(kept)]
    assert kept == task.training_examples(examples, negatives=3, seed=1)
    assert kept != task.training_examples(examples, negatives=3, seed=2)
    # A query's draw is its own: training on fewer queries keeps the same candidates.
    assert task.training_examples(examples[:200], negatives=3, seed=1) == kept[: 10 * 5]
    # Queries do not all lose the same places.
    assert (
        len({tuple(example.answer for example in kept if example.group == f"{n}-{n}") for n in range(30)})
        > 20
    )
    assert task.training_examples(examples, negatives=99, seed=1) == examples
    with pytest.raises(ValueError, match="negatives must be at least 1, got 0"):
        task.training_examples(examples, negatives=0, seed=1)


def test_other_tasks_train_on_every_example():
    examples = TASKS["multirc"].examples([MULTIRC])
    assert TASKS["multirc"].training_examples(examples, negatives=1, seed=0) == examples


def test_axb_reads_its_string_numbers_and_axg_pairs_neighbours():
    assert TASKS["axb"].examples([AXB])[0].id == "4"
    assert [example.group for example in TASKS["axg"].examples(AXG)] == ["0", "0"]


@pytest.mark.parametrize("name", ["boolq", "cb", "copa", "wic", "wsc", "axb"])
@pytest.mark.parametrize("absent", [True, False])
def test_rows_without_a_label_are_read_as_unlabelled(name, absent):
    row = {"boolq": BOOLQ, "cb": CB, "copa": COPA, "wic": WIC, "wsc": WSC, "axb": AXB}[name] | {"label": None}
    if absent:
        del row["label"]
    assert TASKS[name].examples([row])[0].label is None


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("boolq", [BOOLQ, {"idx": 1}], r"BoolQ row 2: field 'passage': expected a string, found nothing \(the field is missing\)"),
        ("boolq", [BOOLQ | {"label": "true"}], r"BoolQ row 1: field 'label': expected one of False \(bool\), True \(bool\), found 'true' \(str\)"),
        ("boolq", [BOOLQ | {"label": 1}], r"found 1 \(int\)"),
        ("boolq", [BOOLQ, BOOLQ], r"BoolQ row 2: the id 0 \(from idx\) occurs twice"),
        ("cb", [CB | {"label": "maybe"}], r"CB row 1: field 'label': expected one of 'entailment' .* found 'maybe' \(str\)"),
        ("cb", [CB | {"idx": None}], r"CB row 1: field 'idx': expected a whole number, found None"),
        ("cb", [CB, "text"], r"CB row 2: expected a JSON object with named fields, found 'text' \(str\)"),
        ("copa", [COPA | {"question": "why"}], r"COPA row 1: field 'question': expected 'cause' or 'effect', found 'why'"),
        ("copa", [COPA | {"label": True}], r"COPA row 1: field 'label': .* found True \(bool\)"),
        ("copa", [COPA | {"label": 2}], r"found 2 \(int\)"),
        ("wic", [WIC | {"end2": 99}], r"WiC row 1: field 'end2': expected the end of a span that starts at 7 of 20 characters, found 99"),
        ("wic", [WIC | {"end1": 0}], r"WiC row 1: field 'end1'"),
        ("wsc", [WSC | {"target": None}], r"WSC row 1: field 'target': expected an object, found None"),
        ("wsc", [WSC | {"target": WSC["target"] | {"span2_index": 40}}], r"WSC row 1, target: field 'span2_index': expected the number of one of the text's 7 words, found 40"),
        ("wsc", [WSC | {"target": WSC["target"] | {"span1_text": " "}}], r"WSC row 1, target: field 'span1_text'"),
        ("multirc", [MULTIRC | {"passage": {"text": "", "questions": {}}}], r"MultiRC row 1, passage: field 'questions': expected a list of objects"),
        ("multirc", [{"idx": 0, "passage": {"text": "T", "questions": [{"question": "Q", "idx": 0, "answers": [{"text": "A", "idx": 0, "label": True}]}]}}],
         r"MultiRC row 1, passage, questions\[0\], answers\[0\]: field 'label': .* found True \(bool\)"),
        ("record", [RECORD | {"qas": [{"query": "no blank", "idx": 1, "answers": []}]}], r"ReCoRD row 1, qas\[0\]: field 'query': expected a text that contains @placeholder, found 'no blank'"),
        ("record", [RECORD | {"passage": {"text": "ab", "entities": [{"start": 0, "end": 2}]}}], r"ReCoRD row 1, passage, entities\[0\]: field 'end': expected an inclusive end"),
        ("record", [RECORD | {"passage": {"text": "ab", "entities": []}}], r"ReCoRD row 1, passage: field 'entities': expected at least one entity"),
        ("axg", [AXG[0], AXG[1] | {"hypothesis": "Other."}], r"AX-g: rows with idx 0 and 1 are not a minimal pair"),
        ("axg", AXG[:1], r"AX-g: expected minimal pairs in consecutive rows, found 1 rows"),
    ],
)  # fmt: skip
def test_a_malformed_row_is_reported_with_task_row_field_and_what_was_found(name, rows, message):
    with pytest.raises(DataError, match=message) as caught:
        TASKS[name].examples(rows)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
