"""Problems small enough to train on in a test: 64 sequences, and a folder of tasks in the official layout."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from distill.losses import ForwardKL, Labels, Sinkhorn
from distill.models import Features, Student, Teacher
from distill.models.loading import load_model, load_tokenizer
from distill.models.source import find_model
from distill.recipe import DataRecipe, FromTeacher, Recipe, StudentRecipe, TeacherRecipe, TrainRecipe
from distill.report import Report
from distill.runs import run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LABELS = ("no", "yes")


@pytest.fixture(scope="session")
def tokenizer(tiny_bert: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(find_model(str(tiny_bert)))


@pytest.fixture(scope="session")
def new_student(tiny_bert: Path, tokenizer: PreTrainedTokenizerBase):
    """A function that makes the same two-layer student each time it is called."""

    @functools.cache
    def read(seed: int) -> Student:
        return Student.from_teacher(str(tiny_bert), layers=2, kind="classification", labels=LABELS, seed=seed)

    def make(seed: int = 0) -> Student:
        whole = read(seed)
        return Student(copy.deepcopy(whole.model), tokenizer, whole.provenance)

    return make


@pytest.fixture(scope="session")
def _teachers_model(tiny_bert: Path) -> PreTrainedModel:
    model = load_model(find_model(str(tiny_bert)), kind="classification", labels=LABELS, seed=7)
    model.classifier.weight.data.mul_(50)  # opinions strong enough to be learnt from
    return model


@pytest.fixture
def teacher(_teachers_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Teacher:
    """A teacher with a random head: it has opinions, if no knowledge."""
    return Teacher(copy.deepcopy(_teachers_model), tokenizer)


@pytest.fixture(scope="session")
def features(tokenizer: PreTrainedTokenizerBase) -> Features:
    """64 examples of uneven length whose label is whether token 2000 is in them."""
    draw = random.Random(0)
    rows, labels = [], []
    for _ in range(64):
        ids = [101, *(draw.randrange(1996, 2004) for _ in range(draw.randrange(3, 14))), 102]
        rows.append([{"input_ids": ids, "attention_mask": [1] * len(ids)}])
        labels.append(int(2000 in ids))
    return Features(rows, labels, tokenizer)


THINGS = ("dog", "horse", "boat", "tree", "stone", "cloud", "river", "bird")


def pairs(count: int, seed: int, labels: tuple[str, ...]) -> list[dict]:
    draw = random.Random(seed)
    rows = []
    for idx in range(count):
        label = draw.choice(labels)
        thing, other = draw.sample(THINGS, 2)
        second = f"there is a {thing} {idx}" if label == "entailment" else f"there is a {other} {idx}"
        rows.append(
            {"premise": f"I saw the {thing} by the road", "hypothesis": second, "label": label, "idx": idx}
        )
    return rows


@pytest.fixture(scope="session")
def official_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CB, COPA, RTE, AX-b and AX-g in the official layout, with few and simple examples."""
    root = tmp_path_factory.mktemp("superglue")
    nli = ("entailment", "not_entailment")
    files = {
        "RTE/train": pairs(40, 1, nli),
        "RTE/val": pairs(24, 2, nli),
        "CB/train": pairs(40, 3, ("entailment", "contradiction", "neutral")),
        "CB/val": pairs(24, 4, ("entailment", "contradiction", "neutral")),
        "COPA/train": [
            {
                "premise": "It rained.",
                "choice1": f"wet {i}",
                "choice2": f"dry {i}",
                "question": "effect",
                "label": i % 2,
                "idx": i,
            }
            for i in range(24)
        ],
        "COPA/val": [
            {
                "premise": "It rained.",
                "choice1": f"wet {i}",
                "choice2": f"dry {i}",
                "question": "cause",
                "label": i % 2,
                "idx": i,
            }
            for i in range(30, 46)
        ],
        "AX-b/AX-b": [
            {
                "sentence1": r["premise"],
                "sentence2": r["hypothesis"],
                "label": r["label"],
                "idx": str(r["idx"]),
                "logic": "",
            }
            for r in pairs(16, 5, nli)
        ],
        "AX-g/AX-g": [
            {
                "premise": f"The baker met the teacher {k} and praised {word} work.",
                "hypothesis": f"The baker did the work {k}.",
                "label": nli[k % 2],
                "idx": 2 * k + place,
                "pair_id": 500 + 2 * k + place,
            }
            for k in range(8)
            for place, word in enumerate(("his", "her"))
        ],
    }
    for name, rows in files.items():
        path = root / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="session")
def recipe(official_folder: Path, tiny_bert: Path) -> Recipe:
    """Three tasks, two seeds, a four-layer teacher of 32 dimensions into two layers."""
    train = TrainRecipe(
        num_train_epochs=2, learning_rate=2e-3, per_device_train_batch_size=8, save_steps=4, eval_steps=5
    )
    return Recipe(
        name="small",
        data=DataRecipe(
            source="folder", path=str(official_folder), tasks=("cb", "copa", "rte"), max_length=32
        ),
        teacher=TeacherRecipe(model=str(tiny_bert), train=train),
        student=StudentRecipe(from_teacher=FromTeacher(layers=2)),
        loss=0.5 * Labels() + 0.5 * ForwardKL(temperature=2.0) + 0.1 * Sinkhorn(),
        train=train,
        seeds=(0, 1),
    )


@pytest.fixture(scope="session")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """One finished run, shared by the tests that only read it."""
    return run(recipe, tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="session")
def with_onnx(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, Path]:
    """A recipe of two tasks with `onnx: true`, its finished run, and the same run before it had that key."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason='needs pip install "distill[onnx]"')
    train = dataclasses.replace(recipe.train, max_steps=6, save_steps=100, eval_steps=None)
    plain = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, tasks=("cb", "copa")),
        teacher=dataclasses.replace(recipe.teacher, train=train),
        train=train,
        preflight=False,
    )
    folder = run(plain, tmp_path_factory.mktemp("runs-with-onnx") / "run").folder
    before = shutil.copytree(folder, folder.with_name("before"), copy_function=shutil.copy2)
    wanted = dataclasses.replace(plain, onnx=True)
    run(wanted, folder)
    return wanted, folder, Path(before)
