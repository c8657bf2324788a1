"""A run's students answer the test sets for the leaderboard: the command, from the run's folder to the zip."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from distill.errors import DataError, ModelError
from distill.runs import run
from distill.submission import check, submit
from distill.tasks import TASKS, leaderboard, read_predictions


@pytest.fixture(scope="module")
def of_a_run(recipe, official_folder, tmp_path_factory) -> tuple[Path, Path]:
    """A finished run of CB and RTE, and a folder whose test files are the dev files without their labels."""
    root = tmp_path_factory.mktemp("submission")
    data = Path(shutil.copytree(official_folder, root / "superglue"))
    for title in ("CB", "RTE"):
        rows = [json.loads(line) for line in (data / title / "val.jsonl").read_text().splitlines()]
        for row in rows:
            del row["label"]
        (data / title / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = dataclasses.replace(recipe.data, tasks=("cb", "rte"))
    small = dataclasses.replace(recipe, data=wanted, seeds=(3,), baseline=False, preflight=False)
    return run(small, root / "run").folder, data


@pytest.fixture
def few(monkeypatch) -> None:
    """Test files as small as these count as the official ones."""
    monkeypatch.setattr(leaderboard, "OFFICIAL_TEST_UNITS", {"cb": 24, "rte": 24, "axb": 16, "axg": 8})


@pytest.mark.usefixtures("few")
def test_the_zip_holds_what_the_runs_students_say(of_a_run, tmp_path):
    folder, data = of_a_run
    path = tmp_path / "out.zip"
    told = submit(str(folder), path, data=str(data), partial=True)
    assert told["units"] == {"cb": 24, "rte": 24, "axb": 16, "axg": 8}
    assert told["missing"][0] == f"{data} has no test file of BoolQ"
    assert len(told["missing"]) == 6
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["CB.jsonl", "RTE.jsonl", "AX-b.jsonl", "AX-g.jsonl"]
        for owner, name in (("cb", "cb"), ("rte", "rte"), ("rte", "axb"), ("rte", "axg")):
            # The run has stored what the same student said of the same texts.
            stored = read_predictions(folder / "predictions" / f"student-{owner}-seed3.{name}.jsonl")
            labels = TASKS[name].labels
            expected = [
                {"idx": int(answer.id), "label": labels[answer.logits.index(max(answer.logits))]}
                for answer in stored
            ]
            lines = archive.read(f"{TASKS[name].title}.jsonl").splitlines()
            assert [json.loads(line) for line in lines] == expected
    assert check(path, data=str(data), partial=True)["units"] == told["units"]
    # The teacher, by name.
    other = submit(str(folder / "teacher" / "{task}"), tmp_path / "teacher.zip", data=str(data), partial=True)
    assert other["units"] == told["units"]


@pytest.mark.usefixtures("few")
def test_what_is_missing_is_named_and_nothing_is_written(of_a_run, tmp_path):
    folder, data = of_a_run
    path = tmp_path / "out.zip"
    with pytest.raises(DataError, match=r"takes all of 10 files; .* has no test file of BoolQ; .*--partial"):
        submit(str(folder), path, data=str(data))
    (tmp_path / "models" / "cb").mkdir(parents=True)
    shutil.copytree(folder / "student" / "rte", tmp_path / "models" / "rte")
    told = submit(str(tmp_path / "models" / "{task}"), path, data=str(data), partial=True, max_length=32)
    assert f"{tmp_path}/models/cb holds no model for CB" in told["missing"]
    assert list(told["units"]) == ["rte", "axb", "axg"]
    with pytest.raises(DataError, match=r"out.zip: lacks CB.jsonl"):
        check(path, data=str(data), partial=True)
    path.unlink()
    with pytest.raises(DataError, match="cannot be checked as a whole"):
        check(path, data=str(data))
    with pytest.raises(ModelError, match="is no run's folder"):
        submit(str(tmp_path), path, data=str(data), partial=True)
    with pytest.raises(DataError, match="has no test sets"):
        submit(str(folder), path, data="demo")
    assert not path.exists()


def test_test_files_of_other_sizes_are_not_answered(of_a_run, tmp_path):
    folder, data = of_a_run
    with pytest.raises(
        DataError,
        match=r"there is nothing to answer; .*CB/test.jsonl: holds 24 examples, the official one 250",
    ):
        submit(str(folder), tmp_path / "out.zip", data=str(data), partial=True)


@pytest.mark.usefixtures("few")
def test_the_command_writes_the_zip_and_checks_one(of_a_run, tmp_path, monkeypatch, capsys):
    import sys

    from distill.cli import main

    folder, data = of_a_run

    def distill(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["distill", "evaluate", *arguments, "--data", str(data)])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    path = str(tmp_path / "out.zip")
    code, out, _ = distill(str(folder), "--submission", path, "--partial")
    assert code == 0
    assert [line.split() for line in out.splitlines()[:4]] == [
        ["CB.jsonl", "24", "examples"],
        ["RTE.jsonl", "24", "examples"],
        ["AX-b.jsonl", "16", "examples"],
        ["AX-g.jsonl", "8", "pairs"],
    ]
    assert out.endswith(f"{path}: not a whole submission\n")
    code, out, _ = distill("--submission", path, "--partial", "--json")
    assert json.loads(out)["units"] == {"cb": 24, "rte": 24, "axb": 16, "axg": 8}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("CB.jsonl", '{"idx": 0, "label": "maybe"}\n')
    code, _, err = distill("--submission", path, "--partial")
    assert code == 2
    assert "lacks RTE.jsonl, AX-b.jsonl, AX-g.jsonl" in err
