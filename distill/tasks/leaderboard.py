"""The files that the SuperGLUE leaderboard takes: ten of them in one zip, a line an example of the test sets.

The layout is that of jiant's strict format, which the leaderboard was filled with (nyu-mll/jiant, jiant/evaluate.py).
"""

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.disk import whole
from distill.errors import DataError

from .row import Row, parsed
from .sources import Source, read_rows
from .superglue import DIAGNOSTICS, SUPERGLUE, TASKS
from .task import Answer, Example, Task

LEADERBOARD = (*SUPERGLUE, *DIAGNOSTICS)
# What a file calls the classes of a task, where that is not the task's own name for them. COPA has numbers.
SPELLINGS: dict[str, tuple[str | int, ...]] = {
    "boolq": ("false", "true"),
    "copa": (0, 1),
    "multirc": (0, 1),
    "wic": ("false", "true"),
}
# Units of the official test files, as `Task.official_units` counts them.
OFFICIAL_TEST_UNITS = {
    "boolq": 3245,
    "cb": 250,
    "copa": 500,
    "multirc": 1820,
    "record": 10000,
    "rte": 3000,
    "wic": 1400,
    "wsc": 146,
    "axb": 1104,
    "axg": 178,
}
# More bytes than any file of a submission has. A zip may promise any number.
MOST_BYTES = 50_000_000
# One date for all files, so that the same answers make the same bytes.
DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Submission:
    """What was written, or found whole.

    Attributes:
        path: the zip.
        units: by task, how many units its file answers.
        unnamed: by task, how many written answers named no class and were submitted as the task's first one.
    """

    path: Path
    units: dict[str, int]
    unnamed: dict[str, int]


def load_test(
    name: str, *, source: Source, path: str | os.PathLike[str] | None = None, revision: str | None = None
) -> tuple[list[Example], str]:
    """The examples of a task's test split, whose labels nobody has; of a diagnostic its one file.

    Args:
        name: one of `LEADERBOARD`.
        source: "folder" (official files in `path/<title>/`) or "hub".
        path: the folder.
        revision: the hub revision.

    Returns:
        The examples, and what is wrong with their number; empty if it is the official one.

    Raises:
        DataError: the file is missing or malformed.
    """
    task = TASKS[name]
    rows, where, marked = read_rows(task, "test", source, path, revision, 0)
    try:
        examples = task.examples(rows)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    found, official = len({example.group for example in examples}), OFFICIAL_TEST_UNITS[name]
    wrong = f"{where}: holds {found:,} {task.unit[found != 1]}, the official one {official:,}"
    return examples, wrong if marked or found != official else ""


def file_name(name: str) -> str:
    """What the leaderboard calls a task's file."""
    return f"{TASKS[name].title}.jsonl"


def submission_rows(name: str, answers: Sequence[Answer]) -> tuple[list[dict[str, Any]], int]:
    """The lines of a task's file, in the order of the answers.

    Args:
        name: one of `LEADERBOARD`.
        answers: to every example of the test split; logits, or written texts.

    Returns:
        The lines, and how many written texts named no class. There is no line for "no answer": they are given as the
        first class (ReCoRD: as the text itself, a dash where it is empty).
    """
    task = TASKS[name]
    if name == "record":
        return _record_rows(task, answers), 0
    classes = [int(found) for found in task.predicted(answers)]
    labels = [_spellings(task)[max(found, 0)] for found in classes]
    unnamed = sum(found < 0 for found in classes)
    if name != "multirc":
        pairs = zip(answers, labels, strict=True)
        return [{"idx": int(answer.id), "label": label} for answer, label in pairs], unnamed
    paragraphs: dict[int, dict[int, list[dict[str, Any]]]] = {}
    for answer, label in zip(answers, labels, strict=True):
        paragraph, question, option = map(int, answer.id.split("-"))
        options = paragraphs.setdefault(paragraph, {}).setdefault(question, [])
        options.append({"idx": option, "label": label})
    return [
        {"idx": p, "passage": {"questions": [{"idx": q, "answers": found} for q, found in asked.items()]}}
        for p, asked in paragraphs.items()
    ], unnamed


def _record_rows(task: Task, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """A line a query: the candidate with the largest margin (the first on a tie), or what was written."""
    best: dict[str, tuple[float, str]] = {}
    for answer in answers:
        if answer.text is not None:
            best[answer.group] = (0.0, answer.text or "-")
            continue
        wrong, right = task.logits([answer])[0]
        if answer.group not in best or right - wrong > best[answer.group][0]:
            best[answer.group] = (right - wrong, answer.answer)
    return [{"idx": int(group.split("-")[1]), "label": said} for group, (_, said) in best.items()]


def _spellings(task: Task) -> tuple[str | int, ...]:
    return SPELLINGS.get(task.name, task.labels)


def write_submission(
    path: str | os.PathLike[str],
    answers: Mapping[str, Sequence[Answer]],
    tests: Mapping[str, Sequence[Example]],
) -> Submission:
    """Write the zip, and read it back as the leaderboard would. It appears whole and right, or not at all.

    Args:
        path: of the zip.
        answers: by task, to every example of its test split.
        tests: by task, these examples.

    Raises:
        DataError: the answers are not those of the test split.
        NumericsError: a logit is NaN or infinite.
        ResourceError: it cannot be written.
    """
    unnamed = {}
    with whole(Path(path)) as aside:
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in (name for name in LEADERBOARD if name in answers):
                rows, nameless = submission_rows(name, answers[name])
                if nameless:
                    unnamed[name] = nameless
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                entry = zipfile.ZipInfo(file_name(name), DATE)
                archive.writestr(entry, text, zipfile.ZIP_DEFLATED)
        units = check_submission(aside, tests).units
    return Submission(Path(path), units, unnamed)


def check_submission(path: str | os.PathLike[str], tests: Mapping[str, Sequence[Example]]) -> Submission:
    """Read a zip as the leaderboard would: the right files, of each the right lines, one for every test example.

    Args:
        path: of the zip, whoever made it.
        tests: by task, the examples of its test split. A zip for the leaderboard answers all of `LEADERBOARD`.

    Raises:
        DataError: the first thing that is wrong with it: file, line, what was expected and what was found.
    """
    wanted = {file_name(name): name for name in LEADERBOARD if name in tests}
    units = {}
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.namelist()
            for file in found:
                if file not in wanted or found.count(file) > 1:
                    twice = " once" if file in wanted else ""
                    raise DataError(
                        f"{path}: holds {file}{' twice' if twice else ''}; expected {', '.join(wanted)}, "
                        f"each{twice or ' at the top of the zip'}, and nothing else"
                    )
            missing = [file for file in wanted if file not in found]
            if missing:
                raise DataError(f"{path}: lacks {', '.join(missing)}")
            for file, name in wanted.items():
                if archive.getinfo(file).file_size > MOST_BYTES:
                    raise DataError(f"{path}: {file}: is larger than any submission ({MOST_BYTES:,} bytes)")
                units[name] = _check_file(f"{path}: {file}", archive.read(file), name, tests[name])
    except DataError:
        raise
    # RuntimeError and NotImplementedError: encrypted, or packed in a way that Python cannot undo.
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as a zip ({error})") from error
    return Submission(Path(path), units, {})


def _check_file(where: str, data: bytes, name: str, examples: Sequence[Example]) -> int:
    """Check the lines of one file; how many units it answers."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    # ReCoRD is answered by the query, all else by the example; MultiRC names paragraph, question and option.
    wanted = {e.group.split("-")[1] if name == "record" else e.id for e in examples}
    seen = set()
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        row = Row(f"{where}:{number}", parsed(f"{where}:{number}", line))
        for said, place in _answers(row, name):
            if said not in wanted:
                raise DataError(f"{place.where}: idx {said} is not in the test file")
            if said in seen:
                raise DataError(f"{place.where}: idx {said} is answered twice, expected once")
            seen.add(said)
            _check_label(place, name)
    missing = sorted(wanted - seen, key=lambda said: [int(part) for part in said.split("-")])
    if missing:
        raise DataError(
            f"{where}: lacks {len(missing):,} of {len(wanted):,} answers, such as that with idx {missing[0]}"
        )
    return len({example.group for example in examples})


def _answers(row: Row, name: str) -> list[tuple[str, Row]]:
    """Each answer of a line: the id of its example, and where its label stands."""
    if name != "multirc":
        _only(row, "idx", "label")
        return [(str(_whole(row)), row)]
    found = []
    _only(row, "idx", "passage")
    passage = row.row("passage")
    _only(passage, "questions")
    for question in passage.rows("questions"):
        _only(question, "idx", "answers")
        for answer in question.rows("answers"):
            _only(answer, "idx", "label")
            found.append((f"{_whole(row)}-{_whole(question)}-{_whole(answer)}", answer))
    return found


def _whole(row: Row) -> int:
    """The idx, which must be a number: `Row.integer` also takes digits in quotes."""
    if type(row.fields.get("idx")) is not int:
        row.fail("idx", "a whole number without quotes")
    return row.integer("idx")


def _only(row: Row, *fields: str) -> None:
    if set(row.fields) != set(fields):
        found = ", ".join(map(str, row.fields)) or "none"
        raise DataError(f"{row.where}: expected the fields {', '.join(fields)} alone, found {found}")


def _check_label(row: Row, name: str) -> None:
    if name == "record":
        if not row.text("label").strip():
            row.fail("label", "the name of an entity")
        return
    row.label({said: number for number, said in enumerate(_spellings(TASKS[name]))})
    if row.fields["label"] is None:
        row.fail("label", "a label")
