import json
import re
import subprocess
import sys

import pytest

from distill.errors import DataError
from distill.tasks import SUPERGLUE, TASKS, load_task

ROW = {"premise": "P", "hypothesis": "H"}
LABELS = ("entailment", "contradiction", "neutral")


def write(path, rows, ending="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(ending.join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")


def cb_rows(count, **fields):
    return [ROW | {"idx": n, "label": LABELS[n % 3], "premise": f"P{n}"} | fields for n in range(count)]


def folder_of(tmp_path, train=250, validation=56):
    write(tmp_path / "CB" / "train.jsonl", cb_rows(train))
    write(tmp_path / "CB" / "val.jsonl", cb_rows(validation))
    return tmp_path


def test_a_folder_with_complete_files_is_complete(tmp_path):
    data = load_task("cb", source="folder", path=folder_of(tmp_path))
    assert data.task is TASKS["cb"]
    assert (len(data.train), len(data.validation)) == (250, 56)
    assert (data.partial, data.portion, data.notes) == (False, "", ())


def test_a_file_with_another_number_of_rows_is_partial_though_its_name_says_nothing(tmp_path):
    data = load_task("cb", source="folder", path=folder_of(tmp_path, train=200, validation=57))
    assert data.partial
    assert data.portion == "200 training examples and 57 dev examples"
    assert data.notes == (
        "CB: partial training file, 200 examples (the official one has 250)",
        "CB: unofficial dev file, 57 examples (the official one has 56)",
    )


def test_a_file_named_partial_is_taken_only_when_the_full_one_is_absent(tmp_path):
    folder = folder_of(tmp_path)
    write(folder / "CB" / "train.partial.jsonl", cb_rows(10))
    assert len(load_task("cb", source="folder", path=folder).train) == 250
    (folder / "CB" / "train.jsonl").unlink()
    data = load_task("cb", source="folder", path=folder)
    assert (len(data.train), data.partial, data.portion) == (10, True, "10 training examples")


def test_fewer_examples_when_asked_are_the_first_ones_and_make_the_data_partial(tmp_path):
    folder = folder_of(tmp_path)
    whole = load_task("cb", source="folder", path=folder)
    data = load_task("cb", source="folder", path=folder, train_examples=100, validation_examples=1)
    assert (data.train, data.validation) == (whole.train[:100], whole.validation[:1])
    assert data.portion == "100 training examples and 1 dev example"
    assert data.notes == (
        "CB: the first 100 training examples of 250, as asked",
        "CB: the first 1 dev example of 56, as asked",
    )
    assert data.sha256 != whole.sha256
    more = load_task("cb", source="folder", path=folder, train_examples=1000)
    assert (more.partial, more.sha256) == (False, whole.sha256)
    with pytest.raises(ValueError, match="validation_examples must be at least 1, got 0"):
        load_task("cb", source="folder", path=folder, validation_examples=0)


def test_whole_questions_queries_and_pairs_are_kept(official, superglue):
    for name, group_size in (("multirc", None), ("record", None), ("axg", 2)):
        whole = official(name).validation
        data = load_task(name, source="folder", path=superglue, train_examples=5, validation_examples=7)
        groups = list(dict.fromkeys(example.group for example in whole))[:7]
        assert data.validation == [example for example in whole if example.group in groups]
        if group_size:
            assert len(data.validation) == 7 * group_size
    assert (
        load_task("multirc", source="folder", path=superglue, train_examples=1).portion
        == "1 training question"
    )


def test_the_digest_follows_the_content_and_nothing_else(tmp_path):
    one = load_task("cb", source="folder", path=folder_of(tmp_path / "one"))
    write(
        tmp_path / "two" / "CB" / "train.jsonl",
        [dict(reversed(row.items())) for row in cb_rows(250)],
        "\r\n\n",
    )
    write(tmp_path / "two" / "CB" / "val.jsonl", cb_rows(56))
    two = load_task("cb", source="folder", path=str(tmp_path / "two"))
    assert one.sha256 == two.sha256
    assert re.fullmatch("[0-9a-f]{64}", one.sha256)
    changed = cb_rows(56)
    changed[7]["label"] = "neutral"
    write(tmp_path / "two" / "CB" / "val.jsonl", changed)
    assert load_task("cb", source="folder", path=tmp_path / "two").sha256 != one.sha256
    swapped = [changed[1], changed[0], *changed[2:]]
    before = load_task("cb", source="folder", path=tmp_path / "two").sha256
    write(tmp_path / "two" / "CB" / "val.jsonl", swapped)
    assert load_task("cb", source="folder", path=tmp_path / "two").sha256 != before


def test_texts_with_unusual_line_separators_stay_in_one_row(tmp_path):
    rows = cb_rows(56)
    rows[0]["premise"] = "one\u2028two\u0085three\x0bfour"
    folder = folder_of(tmp_path)
    write(folder / "CB" / "val.jsonl", rows)
    assert load_task("cb", source="folder", path=folder).validation[0].texts[0][0] == rows[0]["premise"]


def test_the_diagnostics_need_no_training_file(tmp_path):
    rows = [{"idx": str(n), "sentence1": "A", "sentence2": f"B{n}", "label": "entailment"} for n in range(4)]
    write(tmp_path / "AX-b" / "AX-b.jsonl", rows)
    data = load_task("axb", source="folder", path=tmp_path)
    assert (data.train, len(data.validation), data.portion) == ([], 4, "4 dev examples")


def failing(folder, **options):
    with pytest.raises(DataError) as caught:
        load_task("cb", source="folder", path=folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(folder), "DATA")


def test_errors_name_the_file_the_line_and_what_to_do(tmp_path):
    missing = failing(tmp_path / "nowhere")
    assert missing == "DATA: no such folder; expected one that holds CB/ as the official zips unpack"
    folder = folder_of(tmp_path)
    train = folder / "CB" / "train.jsonl"
    good = train.read_text(encoding="utf-8")
    train.write_text(good + "\n\n{oops", encoding="utf-8")
    assert failing(folder).startswith("DATA/CB/train.jsonl:252: not valid JSON (Expecting property name")
    train.write_text("[1]\n" + good, encoding="utf-8")
    assert failing(folder) == "DATA/CB/train.jsonl:1: expected a JSON object, found list"
    train.write_bytes(good.encode() + b"\xff\xfe")
    assert failing(folder).startswith("DATA/CB/train.jsonl: cannot be read: 'utf-8' codec")
    write(train, [*cb_rows(3), {"idx": 3}])
    assert failing(folder).startswith(
        "DATA/CB/train.jsonl: CB row 4: field 'premise': expected a string, found nothing"
    )
    write(train, cb_rows(3, label=None))
    assert failing(folder) == "DATA/CB/train.jsonl: CB example 0 has no label; expected a labelled split"
    train.write_text("\n", encoding="utf-8")
    assert failing(folder) == "DATA/CB/train.jsonl: CB has no examples"
    train.unlink()
    assert failing(folder).startswith(
        "DATA/CB/train.jsonl: no such file; unpack https://dl.fbaipublicfiles.com/"
    )


def test_a_wrong_name_source_or_path_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown task 'cbb'; the tasks are boolq, cb, copa"):
        load_task("cbb", source="demo")
    with pytest.raises(ValueError, match="source must be 'demo', 'folder' or 'hub', got 'web'"):
        load_task("cb", source="web")
    with pytest.raises(ValueError, match="source 'folder' needs the path"):
        load_task("cb", source="folder")
    with pytest.raises(DataError, match="AX-b: the demo has no diagnostics"):
        load_task("axb", source="demo")


@pytest.mark.parametrize("name", SUPERGLUE)
def test_demo_tasks_load_and_are_never_called_superglue(name):
    data = load_task(name, source="demo", demo_seed=3)
    assert len(data.train) > len(data.validation) > 0
    assert not data.partial
    assert data.notes[-1] == f"{data.task.title}: built-in demo task, not SuperGLUE data"
    assert data.sha256 == load_task(name, source="demo", demo_seed=3).sha256
    assert data.sha256 != load_task(name, source="demo", demo_seed=4).sha256


def test_importing_the_tasks_loads_neither_torch_nor_transformers_nor_datasets():
    heavy = "{'torch', 'transformers', 'datasets', 'tokenizers'}"
    code = f"import sys, distill.tasks; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
