"""Files of an attacker, each of which leaves a mark if anything in it is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

LABELS = ("no", "yes")


class Bomb:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.makedirs, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path):
    """What comes into being if something of the attacker's is run: never."""
    mark = tmp_path / "it-was-run"
    yield mark
    assert not mark.exists(), "code of the attacker's was run"


@pytest.fixture
def pickled(mark: Path) -> bytes:
    """A pickle whose loading makes the mark."""
    return pickle.dumps(Bomb(mark))


@pytest.fixture(scope="session")
def tuned_bert(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of two labels, with its tokenizer."""
    from transformers import AutoTokenizer, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("models") / "tuned-bert"
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    BertForSequenceClassification.from_pretrained(tiny_bert, **names).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(tuned_bert: Path, tmp_path: Path) -> Path:
    """A classifier to tamper with."""
    return Path(shutil.copytree(tuned_bert, tmp_path / "model"))


def changed(path: Path, **keys: object) -> None:
    """Set keys of a JSON file."""
    said = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(said | keys))


def with_code(folder: Path, mark: Path) -> Path:
    """Make a classifier one of a class of its own, whose two files leave a mark when they are imported."""
    leave = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    (folder / "configuration_own.py").write_text(
        leave + "from transformers import BertConfig\nclass OwnConfig(BertConfig):\n    model_type = 'own'\n"
    )
    (folder / "modeling_own.py").write_text(
        leave + "from transformers import BertForSequenceClassification\n"
        "from .configuration_own import OwnConfig\n"
        "class OwnForSequenceClassification(BertForSequenceClassification):\n    config_class = OwnConfig\n"
    )
    changed(
        folder / "config.json",
        model_type="own",
        architectures=["OwnForSequenceClassification"],
        auto_map={
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModelForSequenceClassification": "modeling_own.OwnForSequenceClassification",
        },
    )
    return folder


@pytest.fixture
def distill_process(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command in a process of its own, with a home of its own."""

    def call(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS", "XDG_"))
        }
        return subprocess.run(
            [sys.executable, "-m", "distill", *map(str, arguments)],
            cwd=home,
            env={**kept, "HOME": str(home), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return call
