"""The leaderboard's files: what they hold, letter by letter, and which others are refused."""

import json
import random
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from distill.errors import DataError
from distill.tasks import LEADERBOARD, TASKS, Example, check_submission, load_test, write_submission
from distill.tasks.leaderboard import OFFICIAL_TEST_UNITS
from distill.tasks.task import Answer

from .official_rows import AXB, AXG, BOOLQ, CB, COPA, MULTIRC, RECORD, WIC, WSC

RTE = {"premise": "P.", "hypothesis": "H", "idx": 2}
ROWS: dict[str, list[dict[str, Any]]] = {
    "boolq": [BOOLQ, BOOLQ | {"idx": 1}],
    "cb": [CB, CB | {"idx": 4}, CB | {"idx": 5}],
    "copa": [COPA, COPA | {"idx": 1}],
    "multirc": [MULTIRC],
    "record": [RECORD],
    "rte": [RTE, RTE | {"idx": 3}],
    "wic": [WIC, WIC | {"idx": 8}],
    "wsc": [WSC, WSC | {"idx": 1}],
    "axb": [AXB],
    "axg": AXG,
}
# What the files hold where the examples are given their classes in turn, written down by hand.
FILES = {
    "BoolQ.jsonl": '{"idx": 0, "label": "false"}\n{"idx": 1, "label": "true"}\n',
    "CB.jsonl": '{"idx": 3, "label": "entailment"}\n{"idx": 4, "label": "contradiction"}\n{"idx": 5, "label": "neutral"}\n',
    "COPA.jsonl": '{"idx": 0, "label": 0}\n{"idx": 1, "label": 1}\n',
    "MultiRC.jsonl": '{"idx": 2, "passage": {"questions": [{"idx": 9, "answers": '
    '[{"idx": 30, "label": 0}, {"idx": 31, "label": 1}]}]}}\n',
    "ReCoRD.jsonl": '{"idx": 8, "label": "Bob"}\n',
    "RTE.jsonl": '{"idx": 2, "label": "entailment"}\n{"idx": 3, "label": "not_entailment"}\n',
    "WiC.jsonl": '{"idx": 7, "label": "false"}\n{"idx": 8, "label": "true"}\n',
    "WSC.jsonl": '{"idx": 0, "label": "False"}\n{"idx": 1, "label": "True"}\n',
    "AX-b.jsonl": '{"idx": 4, "label": "entailment"}\n',
    "AX-g.jsonl": '{"idx": 0, "label": "entailment"}\n{"idx": 1, "label": "not_entailment"}\n',
}


def without_labels(value: Any) -> Any:
    """A row of a test file."""
    if isinstance(value, list):
        return [without_labels(each) for each in value]
    if isinstance(value, dict):
        hidden = ("label",) if "answers" not in value or "question" in value else ("label", "answers")
        return {key: without_labels(each) for key, each in value.items() if key not in hidden}
    return value


@pytest.fixture(scope="module")
def unlabelled() -> dict[str, list[Example]]:
    """A few test examples of every task."""
    return {name: TASKS[name].examples(without_labels(ROWS[name])) for name in LEADERBOARD}


@pytest.fixture(scope="module")
def in_turn(unlabelled) -> dict[str, list[Answer]]:
    """Answers: the first class, the second, …; of ReCoRD the third candidate (Bob) has the largest margin."""
    found = {}
    for name, examples in unlabelled.items():
        classes = len(TASKS[name].labels)
        logits = [[float(c == n % classes) for c in range(classes)] for n in range(len(examples))]
        if name == "record":
            margins = {"Ann": (5.0, 5.5), "Bob": (0.0, 2.0), "Rome": (1.0, 1.0)}
            logits = [list(margins[example.answer]) for example in examples]
        found[name] = [e.answered(row) for e, row in zip(examples, logits, strict=True)]
    return found


@pytest.fixture
def zipped(tmp_path) -> Callable[[Mapping[str, str | bytes]], Path]:
    """A function that packs files."""

    def pack(files: Mapping[str, str | bytes]) -> Path:
        path = tmp_path / "made.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
        return path

    return pack


def test_the_files_are_the_leaderboards_to_the_letter(unlabelled, in_turn, tmp_path):
    assert all(example.label is None for examples in unlabelled.values() for example in examples)
    written = write_submission(tmp_path / "out.zip", in_turn, unlabelled)
    with zipfile.ZipFile(written.path) as archive:
        assert {name: archive.read(name).decode() for name in archive.namelist()} == FILES
    assert written.units == {name: 1 if name in ("multirc", "record", "axb", "axg") else len(ROWS[name]) for name in LEADERBOARD}  # fmt: skip
    assert not written.unnamed
    again = write_submission(tmp_path / "again.zip", in_turn, unlabelled)
    assert again.path.read_bytes() == written.path.read_bytes()


def test_the_hand_made_files_pass_in_any_order_and_with_any_line_end(unlabelled, zipped):
    files = dict(reversed(FILES.items())) | {"CB.jsonl": "".join(sorted(FILES["CB.jsonl"].splitlines(True)))}
    assert check_submission(zipped(files), unlabelled).units["cb"] == 3
    unended = {name: text.removesuffix("\n") for name, text in FILES.items()}
    assert check_submission(zipped(unended), unlabelled).units["cb"] == 3


WRONG = {
    "a boolean for a word": ("BoolQ.jsonl", '"false"', "false", "BoolQ.jsonl:1: field 'label': expected"),
    "a capital letter": ("BoolQ.jsonl", '"true"', '"True"', "BoolQ.jsonl:2: field 'label': expected"),
    "a small letter in WSC": ("WSC.jsonl", '"True"', '"true"', "one of 'False' (str), 'True' (str), found 'true'"),
    "a number for a name": ("CB.jsonl", '"neutral"', "2", "CB.jsonl:3: field 'label'"),
    "a name for a number": ("COPA.jsonl", '"label": 1', '"label": "choice2"', "COPA.jsonl:2: field 'label'"),
    "a boolean for a number": ("COPA.jsonl", '"label": 1', '"label": true', "found True (bool)"),
    "a class of another task": ("RTE.jsonl", '"not_entailment"', '"contradiction"', "RTE.jsonl:2"),
    "no label": ("RTE.jsonl", '"entailment"', "null", "RTE.jsonl:1: field 'label': expected a label"),
    "idx in quotes": ("AX-b.jsonl", '"idx": 4', '"idx": "4"', "AX-b.jsonl:1: field 'idx': expected a whole number"),
    "another idx": ("WiC.jsonl", '"idx": 8', '"idx": 9', "WiC.jsonl:2: idx 9 is not in the test file"),
    "an idx twice": ("WiC.jsonl", '"idx": 8', '"idx": 7', "WiC.jsonl:2: idx 7 is answered twice"),
    "a line too few": ("CB.jsonl", '{"idx": 3, "label": "entailment"}\n', "", "lacks 1 of 3 answers, such as that with idx 3"),
    "a field too many": ("AX-g.jsonl", '"idx": 0', '"score": 1, "idx": 0', "expected the fields idx, label alone"),
    "an empty line": ("RTE.jsonl", "}\n{", "}\n\n{", "RTE.jsonl:2: not valid JSON"),
    "a list": ("RTE.jsonl", '{"idx": 2, "label": "entailment"}', "[2]", "RTE.jsonl:1: expected a JSON object"),
    "a flat MultiRC": ("MultiRC.jsonl", FILES["MultiRC.jsonl"], '{"idx": 30, "label": 0}\n', "expected the fields idx, passage"),
    "MultiRC's other option": ("MultiRC.jsonl", '"idx": 31', '"idx": 32', "idx 2-9-32 is not in the test file"),
    "MultiRC's option missing": ("MultiRC.jsonl", ', {"idx": 31, "label": 1}', "", "such as that with idx 2-9-31"),
    "MultiRC in words": ("MultiRC.jsonl", '"label": 1', '"label": "true"', "answers[1]: field 'label'"),
    "MultiRC with texts": ("MultiRC.jsonl", '"questions"', '"text": "", "questions"', "expected the fields questions alone"),
    "ReCoRD's passage for its query": ("ReCoRD.jsonl", '"idx": 8', '"idx": 5', "idx 5 is not in the test file"),
    "ReCoRD without a name": ("ReCoRD.jsonl", '"Bob"', '" "', "expected the name of an entity"),
    "ReCoRD's number": ("ReCoRD.jsonl", '"Bob"', "2", "ReCoRD.jsonl:1: field 'label': expected a string"),
}  # fmt: skip


@pytest.mark.parametrize("how", WRONG)
def test_a_wrong_line_is_refused_and_named(how, unlabelled, zipped):
    file, old, new, said = WRONG[how]
    assert old in FILES[file]
    with pytest.raises(DataError) as found:
        check_submission(zipped(FILES | {file: FILES[file].replace(old, new, 1)}), unlabelled)
    assert said in str(found.value)
    assert f"made.zip: {file}" in str(found.value)


def test_a_wrong_zip_is_refused(unlabelled, zipped, tmp_path):
    def refused(path: Path, said: str) -> None:
        with pytest.raises(DataError, match=said):
            check_submission(path, unlabelled)

    refused(zipped({name: text for name, text in FILES.items() if name != "WSC.jsonl"}), "lacks WSC.jsonl")
    refused(
        zipped({f"mine/{name}": text for name, text in FILES.items()}), "holds mine/BoolQ.jsonl; .*at the top"
    )
    refused(zipped(FILES | {"readme.txt": ""}), "holds readme.txt; .*nothing else")
    refused(zipped(FILES | {"CB.jsonl": b"\xff"}), "CB.jsonl: is not UTF-8 text")
    refused(zipped(FILES | {"CB.jsonl": b" " * 50_000_001}), "CB.jsonl: is larger than any submission")
    twice = zipped(FILES)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(twice, "a") as archive:
        archive.writestr("CB.jsonl", FILES["CB.jsonl"])
    refused(twice, "holds CB.jsonl twice")
    (tmp_path / "no.zip").write_text("{}")
    refused(tmp_path / "no.zip", "cannot be read as a zip")
    refused(tmp_path / "absent.zip", "cannot be read as a zip")


def test_answers_that_are_not_the_test_sets_are_never_written(unlabelled, in_turn, tmp_path):
    with pytest.raises(DataError, match="lacks 1 of 3 answers"):
        write_submission(tmp_path / "out.zip", in_turn | {"cb": in_turn["cb"][1:]}, unlabelled)
    assert not list(tmp_path.iterdir())


def test_written_texts_that_name_no_class_are_counted(unlabelled, in_turn, tmp_path):
    said = {
        name: [TASKS[name].read_answer(example, text) for example, text in zip(unlabelled[name], texts, strict=False)]
        for name, texts in {
            "cb": ("neutral", "who knows", ""),
            "wsc": ("pete", "Mark"),
            "record": ("Rome",),
        }.items()
    }  # fmt: skip
    written = write_submission(tmp_path / "out.zip", in_turn | said, unlabelled)
    assert written.unnamed == {"cb": 2}
    with zipfile.ZipFile(written.path) as archive:
        labels = {
            name: [json.loads(line)["label"] for line in archive.read(f"{name}.jsonl").splitlines()]
            for name in ("CB", "WSC", "ReCoRD")
        }
    assert labels == {"CB": ["neutral", "entailment", "entailment"], "WSC": ["True", "False"], "ReCoRD": ["Rome"]}  # fmt: skip


def test_every_official_test_file_can_be_answered(superglue, tmp_path):
    there = {}
    for name in LEADERBOARD:
        if name == "record":
            continue  # its test file is not among the data
        there[name], wrong = load_test(name, source="folder", path=superglue)
        assert wrong == ""
        assert len({example.group for example in there[name]}) == OFFICIAL_TEST_UNITS[name]
    draw = random.Random(0)
    answers = {
        name: [e.answered([draw.random() for _ in TASKS[name].labels]) for e in examples]
        for name, examples in there.items()
    }
    written = write_submission(tmp_path / "out.zip", answers, there)
    assert written.units == {n: OFFICIAL_TEST_UNITS[n] for n in there}
    # By hand: each line of MultiRC answers the options of its paragraph in the official file, in their order.
    official = [json.loads(line) for line in (superglue / "MultiRC/test.jsonl").read_text().splitlines()]
    with zipfile.ZipFile(written.path) as archive:
        found = [json.loads(line) for line in archive.read("MultiRC.jsonl").splitlines()]
    numbers = [
        [(row["idx"], q["idx"], a["idx"]) for row in rows for q in row["passage"]["questions"] for a in q["answers"]]
        for rows in (official, found)
    ]  # fmt: skip
    assert numbers[0] == numbers[1]
    assert len(numbers[0]) == 9693


def test_a_test_file_of_another_size_is_told(tmp_path):
    (tmp_path / "CB").mkdir()
    (tmp_path / "CB/test.jsonl").write_text(json.dumps(without_labels(CB)) + "\n")
    examples, wrong = load_test("cb", source="folder", path=tmp_path)
    assert len(examples) == 1
    assert wrong == f"{tmp_path}/CB/test.jsonl: holds 1 example, the official one 250"
    with pytest.raises(DataError, match="the demo has no test split"):
        load_test("cb", source="demo")
