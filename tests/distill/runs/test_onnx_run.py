"""A run whose recipe says `onnx: true`: what it adds to a finished run, what it says of it, and when it refuses."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from distill.errors import ModelError, RecipeError
from distill.manifest import verified
from distill.models.source import MODEL_KIND
from distill.recipe import Recipe, read_recipe, recipe_sha256, write_recipe
from distill.runs import measure_again, run

from ..report.test_page import Page, wrong_numbers


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """When each file was written, and what is in it."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def report(with_onnx) -> dict[str, Any]:
    return json.loads((with_onnx[1] / "report.json").read_text())


def test_added_to_a_finished_run_it_only_exports(with_onnx):
    _, folder, before = with_onnx
    old, new = state(before), state(folder)
    made = {"onnx.json", *(f"student/{task}/onnx/model.onnx" for task in ("cb", "copa"))}
    assert new.keys() - old.keys() == made
    written = {name for name in old if old[name][0] != new[name][0]}
    lists = {f"student/{task}/manifest.json" for task in ("cb", "copa")}
    said = {"report.json", "report.md", "report.html", "compression.png", "excerpts.json"}
    assert written == {*lists, *said, "data.json", "environment.json"}  # every call writes these two
    assert {name for name in written if old[name][1] != new[name][1]} == {
        *lists,
        "report.json",
        "report.md",
        "report.html",
    }


def test_run_again_nothing_is_done_again(with_onnx, tmp_path):
    recipe, folder, _ = with_onnx
    copy = Path(shutil.copytree(folder, tmp_path / "run", copy_function=shutil.copy2))
    before = state(copy)
    run(recipe, copy)
    after = state(copy)
    for name in before:
        if name.startswith("student/") or name in ("onnx.json", "measurements.json"):
            assert after[name] == before[name], name
    assert before.keys() == after.keys()


def test_it_identifies_no_other_run(with_onnx):
    recipe, folder, _ = with_onnx
    assert recipe_sha256(recipe) == recipe_sha256(dataclasses.replace(recipe, onnx=False))
    assert json.loads((folder / "report.json").read_text())["recipe_sha256"] == recipe_sha256(recipe)


def test_the_report_says_what_the_files_are(with_onnx, report):
    _, folder, _ = with_onnx
    assert list(report["onnx"]["tasks"]) == ["cb", "copa"]
    for task, file in report["onnx"]["tasks"].items():
        student = folder / "student" / task
        assert file["bytes"] == (student / "onnx" / "model.onnx").stat().st_size
        assert verified(student, MODEL_KIND)["onnx/model.onnx"] == file["sha256"]
        assert 0 < file["max_difference"] <= 1e-4
        assert file["batches"] == 8  # five drawn ones, three of the validation set
    measured = report["onnx"]["measured"]
    for name in ("torch", "onnxruntime"):
        assert measured["latency_ms"][name]["batch_1"] > 0
        assert measured["latency_ms"][name]["batch_32"] > 0
    assert (
        measured["latency_ms"]["torch"]["tokens_32"]
        == measured["latency_ms"]["onnxruntime"]["tokens_32"]
        == report["student"]["latency_ms"]["tokens_32"]
    )
    markdown = (folder / "report.md").read_text()
    cb = report["onnx"]["tasks"]["cb"]
    assert f"| CB | {cb['bytes'] / 1e6:.1f} MB | {cb['opset']} | {cb['max_difference']:.1e} |" in markdown
    times = measured["latency_ms"]["onnxruntime"]
    versions = measured["versions"]
    assert (
        f"| onnxruntime {versions['onnxruntime']} | {times['batch_1']:.2f} | {times['batch_32']:.1f} |"
        in markdown
    )


def test_the_numbers_of_the_page_are_the_reports(with_onnx):
    page = Page((with_onnx[1] / "report.html").read_text())
    shown = {marks["data-json"] for marks, _ in page.numbers if "data-json" in marks}
    assert wrong_numbers(page.numbers, with_onnx[1]) == []
    assert {
        "/onnx/tasks/copa/max_difference",
        "/onnx/tasks/cb/bytes",
        "/onnx/measured/latency_ms/torch/batch_1",
        "/onnx/measured/latency_ms/onnxruntime/batch_32",
    } <= shown


def test_measured_again_it_is_measured_again(with_onnx, tmp_path):
    _, folder, _ = with_onnx
    copy = Path(shutil.copytree(folder, tmp_path / "run"))
    before = json.loads((copy / "onnx.json").read_text())
    measure_again(copy)
    after = json.loads((copy / "onnx.json").read_text())
    assert after["tasks"] == before["tasks"]
    assert after["measured"]["latency_ms"] != before["measured"]["latency_ms"]


def test_without_its_packages_nothing_begins(recipe, monkeypatch, tmp_path):
    wanted: Recipe = dataclasses.replace(recipe, onnx=True)
    file = tmp_path / "recipe.yaml"
    file.write_text(write_recipe(wanted))
    find = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> Any:
        return None if name in ("onnxscript", "onnxruntime") else (name == "onnx" or find(name, package))

    monkeypatch.setattr(importlib.util, "find_spec", without)
    line = r'needs onnxscript and onnxruntime, not installed; type: pip install "distill\[onnx\]"'
    with pytest.raises(RecipeError, match=rf"^{re.escape(str(file))}:\d+:\d+: onnx: {line}$"):
        read_recipe(file)
    with pytest.raises(RecipeError, match=f"^onnx: {line}$"):
        run(wanted, tmp_path / "run")
    assert not (tmp_path / "run" / "fits").exists()


def test_an_adapter_that_cannot_be_merged_is_refused_before_anything_is_trained(with_onnx, tmp_path):
    pytest.importorskip("peft")
    adapter = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}
    wanted = dataclasses.replace(
        with_onnx[0],
        data=dataclasses.replace(with_onnx[0].data, tasks=("cb",)),
        student=dataclasses.replace(with_onnx[0].student, adapter=adapter),
    )
    with pytest.raises(ModelError, match=r"^onnx: PROMPT_TUNING adds virtual tokens"):
        run(wanted, tmp_path / "run")
    assert not (tmp_path / "run" / "fits").exists()


def test_a_student_that_cannot_be_exported_leaves_a_finished_run(with_onnx, monkeypatch, tmp_path):
    recipe, _, before = with_onnx
    copy = Path(shutil.copytree(before, tmp_path / "run"))
    (copy / "report.md").unlink()

    def refuse(*arguments: Any) -> None:
        raise ModelError("no")

    monkeypatch.setattr("distill.runs.onnx_files.write_onnx", refuse)
    with pytest.raises(ModelError, match=r"^no$"):
        run(recipe, copy)
    assert "ONNX" not in (copy / "report.md").read_text()
    assert not (copy / "onnx.json").exists()
