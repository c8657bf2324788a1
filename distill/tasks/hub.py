"""SuperGLUE from the Hugging Face hub, turned back into the rows of the official files."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from distill.errors import DataError

REPOSITORY = "aps/super_glue"
# The parquet version of the dataset, whose content is that of the official v2 files. A recipe's
# `data.revision` replaces it.
PINNED = "3de24cf8022e94f4ee4b9d55a6f539891524d646"

Fields = Mapping[str, Any]
LABELS: dict[str, tuple[bool | int | str, ...]] = {
    "boolq": (False, True),
    "cb": ("entailment", "contradiction", "neutral"),
    "copa": (0, 1),
    "multirc": (0, 1),
    "rte": ("entailment", "not_entailment"),
    "wic": (False, True),
    "wsc": (False, True),
    "axb": ("entailment", "not_entailment"),
    "axg": ("entailment", "not_entailment"),
}


def hub_rows(
    name: str, split: Literal["train", "validation", "test"], revision: str | None = None
) -> list[dict[str, Any]]:
    """The official rows of a task's split. WSC is the official one, not the edited "wsc.fixed".

    Args:
        name: the task, which is also the dataset's configuration.
        split: "validation" is the dev split; the diagnostics have one split, which the hub calls "test".
        revision: a commit, tag or branch of the dataset; `PINNED` if None.

    Raises:
        DataError: the dataset cannot be loaded.
    """
    import datasets

    if os.path.lexists(REPOSITORY):  # which datasets would read, whatever the revision
        raise DataError(
            f"{REPOSITORY}: a folder here has the name of the hub's dataset; run it from another folder"
        )
    asked = revision or PINNED
    part = "test" if name in ("axb", "axg") else split
    try:
        loaded = datasets.load_dataset(REPOSITORY, name, split=part, revision=asked)
    except Exception as error:  # whatever the hub, the network or the cache raise, told in one line
        cause = str(error).strip().split("\n")[0]
        raise DataError(
            f"{REPOSITORY}@{asked} ({name}, {part}) cannot be loaded: {type(error).__name__}: {cause}; "
            f"check the network, or use a folder of the official files"
        ) from error
    return list(official_rows(name, loaded))


def official_rows(name: str, rows: Iterable[Fields]) -> Iterator[dict[str, Any]]:
    """Turn hub rows into official ones: nested fields rebuilt, class numbers named, -1 to no label."""
    if name == "multirc":
        return multirc(rows)
    if name == "record":
        return record(rows)
    rebuild: Callable[[Fields], dict[str, Any]] = wsc if name == "wsc" else dict
    return (labelled(rebuild(row), row, name) for row in rows)


def labelled(official: dict[str, Any], row: Fields, name: str) -> dict[str, Any]:
    """Replace the class number by what the official file writes, and drop that of an unlabelled row."""
    official.pop("label", None)
    number = row.get("label")
    values = LABELS[name]
    if number is None or number == -1:
        return official
    if not isinstance(number, int) or not 0 <= number < len(values):
        raise DataError(
            f"{REPOSITORY} ({name}): expected a label from -1 to {len(values) - 1}, found {number!r}"
        )
    return official | {"label": values[number]}


def wsc(row: Fields) -> dict[str, Any]:
    """The spans of WSC stand in a nested object."""
    spans = ("span1_index", "span1_text", "span2_index", "span2_text")
    return {"idx": row["idx"], "text": row["text"], "target": {span: row[span] for span in spans}}


def multirc(rows: Iterable[Fields]) -> Iterator[dict[str, Any]]:
    """One hub row is one answer option; one official row is a paragraph with its questions and their options."""
    paragraphs: dict[int, dict[str, Any]] = {}
    questions: dict[tuple[int, int], dict[str, Any]] = {}
    for row in rows:
        place = row["idx"]
        paragraph, question = place["paragraph"], place["question"]
        if paragraph not in paragraphs:
            passage = {"text": row["paragraph"], "questions": []}
            paragraphs[paragraph] = {"idx": paragraph, "passage": passage}
        if (paragraph, question) not in questions:
            questions[paragraph, question] = {"idx": question, "question": row["question"], "answers": []}
            paragraphs[paragraph]["passage"]["questions"].append(questions[paragraph, question])
        answer = {"idx": place["answer"], "text": row["answer"]}
        questions[paragraph, question]["answers"].append(labelled(answer, row, "multirc"))
    yield from paragraphs.values()


def record(rows: Iterable[Fields]) -> Iterator[dict[str, Any]]:
    """One hub row is one query. The hub's spans end after their last character, the official ones on it.

    The hub keeps the texts of the gold answers and not their places, so those have no start and end here.
    """
    passages: dict[int, dict[str, Any]] = {}
    for row in rows:
        place = row["idx"]
        if place["passage"] not in passages:
            spans = row["entity_spans"]
            # A list of objects is read back as an object of lists by some versions of datasets.
            if isinstance(spans, Mapping):
                ends = list(zip(spans["start"], spans["end"], strict=True))
            else:
                ends = [(span["start"], span["end"]) for span in spans]
            entities = [{"start": start, "end": end - 1} for start, end in ends]
            passage = {"text": row["passage"], "entities": entities}
            passages[place["passage"]] = {"idx": place["passage"], "passage": passage, "qas": []}
        query = {"query": row["query"], "idx": place["query"]}
        answers = [{"text": text} for text in row["answers"]]
        # Unlabelled queries have an empty list on the hub and no field in the official files.
        passages[place["passage"]]["qas"].append(query | ({"answers": answers} if answers else {}))
    yield from passages.values()
