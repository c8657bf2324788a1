"""Python files beside a model's weights are run when their one commit was named, and at no other time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from distill.errors import ModelError, RecipeError
from distill.models import Student, Teacher, find_model
from distill.models.loading import load_tokenizer
from distill.models.source import find_trained, trusted_repositories
from distill.recipe import read_recipe

from ..fake_hub import COMMIT, serving
from .conftest import LABELS, changed, with_code

KIND = "classification"


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch) -> None:
    """transformers copies the code it runs into a cache; not into the user's."""
    for name in ("dynamic_module_utils", "utils", "utils.hub"):
        monkeypatch.setattr(f"transformers.{name}.HF_MODULES_CACHE", str(tmp_path / "modules"), raising=False)


def test_a_model_with_code_of_its_own_is_refused_in_one_line(copied, mark):
    with_code(copied, mark)
    for load in (
        lambda: Teacher.load(str(copied), kind=KIND, labels=LABELS),
        lambda: Student.load(str(copied), kind=KIND, labels=LABELS),
        lambda: Student.from_teacher(str(copied), layers=2, kind=KIND, labels=LABELS),
    ):
        with pytest.raises(ModelError, match="needs Python code of its own, which is not run") as raised:
            load()
        assert len(str(raised.value).splitlines()) == 1
        assert "--trust-remote-code OWNER/NAME@COMMIT" in str(raised.value)


def test_a_tokenizer_with_code_of_its_own_is_refused_in_one_line(copied, mark):
    (copied / "tokenization_own.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    (copied / "tokenizer.json").unlink()
    changed(
        copied / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
    )
    changed(copied / "config.json", model_type="own")
    with pytest.raises(ModelError) as raised:
        load_tokenizer(find_model(str(copied)))
    assert len(str(raised.value).splitlines()) == 1


def test_code_beside_a_model_of_a_known_class_is_left_alone(copied, mark):
    with_code(copied, mark)
    changed(copied / "config.json", model_type="bert")
    assert (
        type(Teacher.load(str(copied), kind=KIND, labels=LABELS).model).__name__
        == "BertForSequenceClassification"
    )


def test_a_folder_that_python_trusts_is_run(copied, tuned_bert, tmp_path):
    mark = tmp_path / "run"
    with_code(copied, mark)
    teacher = Teacher.load(str(copied), kind=KIND, labels=LABELS, trust_remote_code=True)
    assert mark.exists()
    assert type(teacher.model).__name__ == "OwnForSequenceClassification"
    plain = Teacher.load(str(tuned_bert), kind=KIND, labels=LABELS)
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, teacher.model.state_dict()[name])
    source = find_model(str(copied), trust_remote_code=True)
    assert (
        type(Student.load(source, kind=KIND, labels=LABELS).model).__name__ == "OwnForSequenceClassification"
    )


def test_trusted_code_takes_no_code_of_other_repositories(copied, mark):
    with_code(copied, mark)
    config = json.loads((copied / "config.json").read_text())
    config["auto_map"]["AutoConfig"] = "somebody/else--configuration_own.OwnConfig"
    changed(copied / "config.json", **config)
    with pytest.raises(ModelError, match="takes code from 'somebody/else', and only its own may be run"):
        Teacher.load(str(copied), kind=KIND, labels=LABELS, trust_remote_code=True)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:12], COMMIT.upper()])
def test_code_of_the_hub_needs_the_commit_that_was_read(revision):
    with pytest.raises(ModelError, match="may only be run from a commit"):
        Teacher.load("org/own", kind=KIND, labels=LABELS, revision=revision, trust_remote_code=True)


@pytest.mark.parametrize(
    "named",
    [
        "org/own",
        "own@" + COMMIT,
        "org/own@main",
        "org/own@" + COMMIT[:39],
        f"../own@{COMMIT}",
        f"org/own@{COMMIT}\n",
        "",
    ],
)
def test_what_is_trusted_is_one_commit_of_one_repository(named):
    with pytest.raises(ModelError, match="must be OWNER/NAME@COMMIT with all 40 digits") as raised:
        trusted_repositories([named])
    assert len(str(raised.value).splitlines()) == 1


def test_two_commits_of_one_repository_are_not_both_trusted():
    assert trusted_repositories([f"org/own@{COMMIT}"] * 2) == {"org/own": COMMIT}
    with pytest.raises(ModelError, match="org/own is named with two commits"):
        trusted_repositories([f"org/own@{COMMIT}", "org/own@" + "0" * 40])


@pytest.mark.parametrize("where", ["", "teacher.", "student.", "data.", "train."])
@pytest.mark.parametrize("key", ["trust_remote_code", "code_revision", "trust-remote-code"])
def test_no_recipe_can_trust_code(tmp_path, where, key):
    with pytest.raises(RecipeError, match="is not a key here"):
        read_recipe("quickstart", [f"{where}{key}=true"])


def recipe_of(folder: Path, data: Path) -> Path:
    path = folder / "own.yaml"
    path.write_text(
        "name: own\n"
        f"data: {{source: folder, path: {data}, tasks: [rte], max_length: 32, diagnostics: false}}\n"
        "teacher: {model: org/own, train: {max_steps: 4}}\n"
        "student: {from_teacher: {layers: 2}}\n"
        "loss: [{kind: forward_kl}]\n"
        "train: {max_steps: 4}\n"
        "preflight: false\n"
    )
    return path


@pytest.mark.trust
def test_a_run_needs_the_flag_and_then_runs_that_commit_alone(
    copied, official_folder, tmp_path, mark, distill_process
):
    """With the flag, a whole run: the teacher is trained, written, and read again with the code it was written with."""
    run_mark = tmp_path / "run-mark"
    recipe, run = recipe_of(tmp_path, official_folder), tmp_path / "run"
    with_code(copied, run_mark)
    with serving({"org/own": copied}, token=None) as hub:

        def distill(*flags: str):
            return distill_process(
                "run", recipe, "--out", run, *flags, HF_ENDPOINT=hub.endpoint, HF_HUB_DISABLE_TELEMETRY="1"
            )

        refused = distill()
        assert refused.returncode == 2, refused.stderr
        assert "needs Python code of its own, which is not run" in refused.stderr
        assert not any(path.endswith(".py") for path in hub.asked)
        assert not run_mark.exists()

        other = distill("--trust-remote-code", "org/other@" + COMMIT)
        assert other.returncode == 2
        assert not run_mark.exists()

        # A folder of that name where the command is run is not what was trusted.
        trap = with_code(Path(shutil.copytree(copied, tmp_path / "home" / "org" / "own")), mark)
        assert trap.is_dir()
        done = distill("--trust-remote-code", f"org/own@{COMMIT}")
        assert done.returncode == 0, done.stderr
        assert run_mark.exists()
        assert any(path.endswith("modeling_own.py") for path in hub.asked)

        # Code that was slipped into the run's folder is not what was trusted either.
        written = run / "teacher" / "rte" / "modeling_own.py"
        assert written.is_file()
        (run / "fits" / "student-rte-seed0.json").unlink()
        (run / "measurements.json").unlink()
        run_mark.unlink()
        with written.open("a") as stream:
            stream.write(f"\npathlib.Path({str(mark)!r}).touch()\n")
        slipped = distill("--trust-remote-code", f"org/own@{COMMIT}")
        assert slipped.returncode == 2, slipped.stderr
        assert "modeling_own.py is not the code that is trusted" in slipped.stderr


def test_a_trained_model_without_code_is_found_as_ever(copied):
    assert find_trained(copied, {"org/own": COMMIT}) == find_model(str(copied))
