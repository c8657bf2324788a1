"""A file appears whole or not at all, and what died before leaves no rubbish for ever."""

from __future__ import annotations

import json
import os

import pytest

from distill.disk import whole
from distill.errors import DistillError
from distill.run_folder import write_json
from distill.runs.metrics_log import MetricsLog


def names(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with whole(path) as aside:
            aside.write_text("half of the ne")
            aside.with_name(".tmpAb12Cd").write_text("what a library wrote aside")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_what_a_killed_writer_left_goes_with_the_next_writing(tmp_path):
    left = tmp_path / "deep" / ".writing-file"
    left.mkdir(parents=True)
    (left / ".tmpAb12Cd").write_text("half")
    with whole(tmp_path / "deep" / "file") as aside:
        aside.write_text("new")
    assert names(tmp_path) == ["deep", "deep/file"]


def test_a_file_takes_its_place_when_it_is_synced_and_whole(tmp_path, monkeypatch):
    path, seen = tmp_path / "file", []
    path.write_text("old")
    fsync = os.fsync

    def watching(descriptor: int) -> None:
        seen.append(path.read_text())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watching)
    with whole(path) as aside:
        aside.write_text("new")
    assert seen == ["old", "new"]  # the file itself before the rename, its folder behind it


def test_a_file_of_a_run_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file.json").mkdir()
    with pytest.raises(DistillError, match=r"file\.json: cannot be written \(.*\); ") as caught:
        write_json(tmp_path / "file.json", {})
    assert "\n" not in str(caught.value)


def test_a_log_goes_on_where_the_checkpoint_stands(tmp_path):
    path = tmp_path / "metrics.jsonl"
    other = MetricsLog(path, "other")
    mine = MetricsLog(path, "mine")
    for step in (1, 2, 3):
        other({"step": step})
        mine({"step": step})
    with path.open("a") as stream:
        stream.write('{"fit": "mine", "st')  # killed amid a line
    mine.start_at(2)
    mine({"step": 3, "again": True})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        *({"fit": fit, "step": step} for step in (1, 2) for fit in ("other", "mine")),
        {"fit": "other", "step": 3},
        {"fit": "mine", "step": 3, "again": True},
    ]


def test_a_damaged_line_of_a_log_stops_nothing_and_stays_to_be_seen(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        b'{"fit": "mine", "step": 1}',
        b'{"fi\xff": "mine", "step": 2}',
        b"3",
        b'{"fit": "mine", "step": 4}',
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    MetricsLog(path, "mine").start_at(3)
    assert path.read_bytes().splitlines() == lines[:3]
