"""The hub source, against the folder source on the same rows.

There is no network here: the tests write the parquet files of the hub's layout from official rows, and put
`datasets.load_dataset` in front of them.
"""

import json

import datasets
import pytest

from distill.errors import DataError
from distill.tasks import TASKS, load_task
from distill.tasks.hub import LABELS, PINNED, REPOSITORY, hub_rows, official_rows

CLASSES = {
    "boolq": ["False", "True"],
    "cb": ["entailment", "contradiction", "neutral"],
    "copa": ["choice1", "choice2"],
    "multirc": ["False", "True"],
    "rte": ["entailment", "not_entailment"],
    "wic": ["False", "True"],
    "wsc": ["False", "True"],
    "axb": ["entailment", "not_entailment"],
    "axg": ["entailment", "not_entailment"],
}
COLUMNS = {
    "boolq": ["question", "passage"],
    "cb": ["premise", "hypothesis"],
    "copa": ["premise", "choice1", "choice2", "question"],
    "rte": ["premise", "hypothesis"],
    "wic": ["word", "sentence1", "sentence2", "start1", "start2", "end1", "end2"],
    "axb": ["sentence1", "sentence2"],
    "axg": ["premise", "hypothesis"],
}


def hub_features(name):
    """The dataset's features as the hub declares them."""
    text, number = datasets.Value("string"), datasets.Value("int32")
    if name == "record":
        return datasets.Features(
            passage=text,
            query=text,
            entities=datasets.List(text),
            entity_spans=datasets.Sequence({"text": text, "start": number, "end": number}),
            answers=datasets.List(text),
            idx={"passage": number, "query": number},
        )
    label = datasets.ClassLabel(names=CLASSES[name])
    if name == "multirc":
        places = {"paragraph": number, "question": number, "answer": number}
        return datasets.Features(paragraph=text, question=text, answer=text, idx=places, label=label)
    if name == "wsc":
        spans = {"span1_index": number, "span2_index": number, "span1_text": text, "span2_text": text}
        return datasets.Features(text=text, **spans, idx=number, label=label)
    columns = {column: number if column[:-1] in ("start", "end") else text for column in COLUMNS[name]}
    return datasets.Features(**columns, idx=number, label=label)


def hub_layout(name, rows):
    """Official rows as the hub's builder wrote them."""
    made = []
    for row in rows:
        if name == "multirc":
            for question in row["passage"]["questions"]:
                for answer in question["answers"]:
                    made.append(
                        {
                            "paragraph": row["passage"]["text"],
                            "question": question["question"],
                            "answer": answer["text"],
                            "idx": {
                                "paragraph": row["idx"],
                                "question": question["idx"],
                                "answer": answer["idx"],
                            },
                            "label": answer.get("label", -1),
                        }
                    )
        elif name == "record":
            text = row["passage"]["text"]
            spans = sorted(row["passage"]["entities"], key=lambda span: span["start"])
            texts = [text[span["start"] : span["end"] + 1] for span in spans]
            for query in row["qas"]:
                made.append(
                    {
                        "passage": text,
                        "query": query["query"],
                        "entities": sorted(set(texts)),
                        "entity_spans": {
                            "text": texts,
                            "start": [span["start"] for span in spans],
                            "end": [span["end"] + 1 for span in spans],
                        },
                        "answers": sorted({answer["text"] for answer in query.get("answers", [])}),
                        "idx": {"passage": row["idx"], "query": query["idx"]},
                    }
                )
        else:
            flat = (
                row["target"] | {"text": row["text"]} if name == "wsc" else {c: row[c] for c in COLUMNS[name]}
            )
            found = row.get("label")
            label = (
                -1
                if found is None
                else int(found)
                if not isinstance(found, str)
                else CLASSES[name].index(found)
            )
            made.append(flat | {"idx": int(row["idx"]), "label": label})
    return made


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Serve official rows in the hub's layout; returns the list of what was asked for."""
    asked = []

    def serve(name, rows_by_split):
        features = hub_features(name)
        for split, rows in rows_by_split.items():
            table = datasets.Dataset.from_list(hub_layout(name, rows), features=features)
            table.to_parquet(tmp_path / f"{name}-{split}.parquet")

        def load(repository, configuration, *, split, revision):
            asked.append((repository, configuration, split, revision))
            file = str(tmp_path / f"{configuration}-{split}.parquet")
            return datasets.Dataset.from_parquet(file, features=features, cache_dir=str(tmp_path / "cache"))

        monkeypatch.setattr(datasets, "load_dataset", load)
        return asked

    datasets.disable_progress_bars()
    yield serve
    datasets.enable_progress_bars()


SMALL = {
    "boolq": [{"question": "q", "passage": "p", "idx": n, "label": n == 1} for n in range(3)],
    "cb": [{"premise": "p", "hypothesis": "h", "idx": n, "label": CLASSES["cb"][n]} for n in range(3)],
    "copa": [
        {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "idx": n, "label": n} for n in range(2)
    ],
    "rte": [{"premise": "p", "hypothesis": "h", "idx": n, "label": CLASSES["rte"][n]} for n in range(2)],
    "wic": [
        {"word": "a", "sentence1": "a b", "sentence2": "c a", "start1": 0, "end1": 1, "start2": 2, "end2": 3, "idx": n, "label": n == 0, "version": 1.1}
        for n in range(2)
    ],
    "wsc": [
        {"text": "Ann saw her.", "target": {"span1_index": 0, "span1_text": "Ann", "span2_index": 2, "span2_text": "her."}, "idx": n, "label": n == 1}
        for n in range(2)
    ],
    "axb": [{"idx": str(n), "sentence1": "a", "sentence2": "b", "label": CLASSES["axb"][n]} for n in range(2)],
    "axg": [{"idx": n, "premise": "a", "hypothesis": "b", "pair_id": n, "label": CLASSES["axg"][n]} for n in range(2)],
    "multirc": [
        {
            "idx": p,
            "passage": {
                "text": f"text {p}",
                "questions": [
                    # Two questions with the same words stay two, and so do two equal answers.
                    {"question": "q", "idx": q, "answers": [{"text": "a", "idx": 10 * q + a, "label": (p + a) % 2} for a in range(2)]}
                    for q in (2 * p, 2 * p + 1)
                ],
            },
        }
        for p in range(2)
    ],
    "record": [
        {
            "idx": p,
            "source": "s",
            "passage": {"text": "Ann met Bob\n@highlight\nBob left", "entities": [{"start": 8, "end": 10}, {"start": 0, "end": 2}, {"start": 23, "end": 25}]},
            "qas": [
                {"query": "@placeholder left", "idx": 2 * p + q, "answers": [{"start": 23, "end": 25, "text": "Bob"}, {"start": 8, "end": 10, "text": "Bob"}]}
                for q in range(2)
            ],
        }
        for p in range(2)
    ],
}  # fmt: skip


def write_official(folder, name, rows_by_split):
    title = TASKS[name].title
    for split, rows in rows_by_split.items():
        stem = title if split == "test" else {"train": "train", "validation": "val"}[split]
        (folder / title).mkdir(parents=True, exist_ok=True)
        (folder / title / f"{stem}.jsonl").write_text(
            "\n".join(json.dumps(row) for row in rows), encoding="utf-8"
        )


@pytest.mark.parametrize("name", SMALL)
def test_hub_and_folder_give_the_same_examples(name, hub, tmp_path):
    splits = ("test",) if name in ("axb", "axg") else ("train", "validation")
    rows = dict.fromkeys(splits, SMALL[name])
    asked = hub(name, rows)
    write_official(tmp_path / "folder", name, rows)
    found = load_task(name, source="hub")
    expected = load_task(name, source="folder", path=tmp_path / "folder")
    assert found.train == expected.train
    assert found.validation == expected.validation
    assert (found.sha256, found.portion) == (expected.sha256, expected.portion)
    assert len({example.label for example in found.validation}) == min(
        len(found.validation), len(TASKS[name].labels)
    )
    assert asked == [(REPOSITORY, name, split, PINNED) for split in splits]


OFFICIAL = {
    "boolq": ("BoolQ/train.partial.jsonl", "BoolQ/val.jsonl"),
    "cb": ("CB/train.jsonl", "CB/val.jsonl"),
    "copa": ("COPA/train.jsonl", "COPA/val.jsonl"),
    "multirc": ("MultiRC/val.jsonl", "MultiRC/val.jsonl"),
    "record": ("ReCoRD/train.partial.jsonl", "ReCoRD/val.partial.jsonl"),
    "rte": ("RTE/train.jsonl", "RTE/val.jsonl"),
    "wic": ("WiC/train.jsonl", "WiC/val.jsonl"),
    "wsc": ("WSC/train.jsonl", "WSC/val.jsonl"),
    "axb": ("AX-b/AX-b.jsonl",),
    "axg": ("AX-g/AX-g.jsonl",),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_hub_and_folder_give_the_same_examples_on_the_official_rows(name, hub, official_rows):
    splits = ("test",) if len(OFFICIAL[name]) == 1 else ("train", "validation")
    rows = {split: official_rows(file) for split, file in zip(splits, OFFICIAL[name], strict=True)}
    hub(name, rows)
    found = load_task(name, source="hub")
    assert found.validation == TASKS[name].examples(rows[splits[-1]])
    if len(splits) == 2:
        assert found.train == TASKS[name].examples(rows["train"])


@pytest.mark.parametrize("name", SMALL)
def test_minus_one_on_the_hub_is_no_label(name):
    if name == "record":
        rows = [
            row | {"qas": [{k: v for k, v in q.items() if k != "answers"} for q in row["qas"]]}
            for row in SMALL[name]
        ]
    else:
        rows = json.loads(
            json.dumps(SMALL[name]),
            object_hook=lambda fields: {k: v for k, v in fields.items() if k != "label"},
        )
    examples = TASKS[name].examples(official_rows(name, hub_layout(name, rows)))
    assert examples == TASKS[name].examples(rows)
    assert {example.label for example in examples} == {None}


def test_record_spans_may_come_as_a_list_of_objects():
    rows = hub_layout("record", SMALL["record"])
    listed = [
        row
        | {
            "entity_spans": [
                dict(zip(("start", "end"), ends, strict=True))
                for ends in zip(row["entity_spans"]["start"], row["entity_spans"]["end"], strict=True)
            ]
        }
        for row in rows
    ]
    assert list(official_rows("record", listed)) == list(official_rows("record", rows))


def test_a_recipes_revision_replaces_the_pinned_one(hub):
    asked = hub("cb", {"train": SMALL["cb"], "validation": SMALL["cb"]})
    load_task("cb", source="hub", revision="main")
    assert {revision for *_, revision in asked} == {"main"}


def test_the_pinned_revision_is_a_commit_and_every_classification_task_has_its_labels():
    assert len(PINNED) == 40
    assert set(PINNED) <= set("0123456789abcdef")
    for name, values in LABELS.items():
        assert len(values) == len(TASKS[name].labels) == len(CLASSES[name])


def test_a_hub_that_cannot_be_reached_is_one_clear_line(monkeypatch):
    def load(*arguments, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(
        DataError,
        match=r"^aps/super_glue@main \(cb, validation\) cannot be loaded: ConnectionError: no route; check",
    ):
        hub_rows("cb", "validation", "main")


def test_a_label_outside_the_classes_is_refused():
    with pytest.raises(DataError, match="expected a label from -1 to 1, found 2"):
        list(official_rows("rte", [{"premise": "p", "hypothesis": "h", "idx": 0, "label": 2}]))
