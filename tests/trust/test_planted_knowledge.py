"""Where the teacher is known to know more than the labels, the verdict says so; where it adds nothing, it says that.

The task: a text of eight words is an entailment if those that speak for it weigh more than those against. A student
gets 96 examples of which four labels in ten are wrong; its teacher has learnt the rule from 4,000 right ones.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.engine import Engine
from distill.losses import ForwardKL, Labels, Loss, Total
from distill.models import Student
from distill.recipe import DataRecipe, FromTeacher, Recipe, StudentRecipe, TeacherRecipe, TrainRecipe
from distill.report import Report
from distill.run_folder import RunFolder
from distill.runs import run
from distill.tasks import TASKS, read_predictions

pytestmark = pytest.mark.trust

CLASSES = ("entailment", "not_entailment")
SEEDS = range(10)
LETTERS = "abcdefgh"
WORDS = [first + second for first in LETTERS for second in LETTERS][:48]
WEIGHTS = {word: random.Random(f"weight of {word}").gauss(0, 1) for word in WORDS}
CONFIG = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 32,
}


def rows(count: int, seed: str, noise: float) -> list[dict[str, object]]:
    """Official RTE rows: the words on either side, and the rule's label, wrong as often as `noise` says."""
    draw = random.Random(seed)
    made = []
    for idx in range(count):
        words = [draw.choice(WORDS) for _ in range(8)]
        right = sum(WEIGHTS[word] for word in words) <= 0
        label = CLASSES[right != (draw.random() < noise)]
        made.append(
            {"premise": " ".join(words[:4]), "hypothesis": " ".join(words[4:]), "label": label, "idx": idx}
        )
    return made


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that has learnt the rule from clean labels."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from distill.engine.reading import reading_of

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    task = TASKS["rte"]
    student = Student.from_config(CONFIG, tokenizer, kind="classification", labels=task.labels, seed=0)
    reading = reading_of("encoder", task, max_length=16, batch_size=256)
    clean = reading.examples(task.examples(rows(4000, "teacher", noise=0.0)), student)
    train = TrainRecipe(max_steps=300, learning_rate=3e-3, per_device_train_batch_size=64, weight_decay=0.0)
    Engine(student, Labels(), clean, train).run()
    unseen = task.examples(rows(1000, "unseen", noise=0.0))
    score = task.score(reading.answer(unseen, student).answers)["accuracy"]
    assert score >= 0.95
    folder = tmp_path_factory.mktemp("teacher") / "rule"
    student.save(folder)
    return folder


@pytest.fixture(scope="module")
def run_of(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """A function that runs the whole of distill on one draw of data; the baseline is trained once a draw."""
    root = tmp_path_factory.mktemp("planted")

    def made(seed: int, loss: Loss | Total, name: str, noise: float = 0.4, **changes: Any) -> Report:
        data = root / f"data{seed}-{noise}" / "RTE"
        if not data.is_dir():
            data.mkdir(parents=True)
            for split, count, wrong in (("train", 96, noise), ("val", 600, 0.0)):
                lines = [json.dumps(row) + "\n" for row in rows(count, f"{split} {seed}", wrong)]
                (data / f"{split}.jsonl").write_text("".join(lines))
        recipe = Recipe(
            name="planted",
            data=DataRecipe(source="folder", path=str(data.parent), tasks=("rte",), max_length=16),
            teacher=TeacherRecipe(model=str(teacher_folder)),
            student=StudentRecipe(config=CONFIG),
            loss=loss,  # type: ignore[arg-type]
            train=TrainRecipe(num_train_epochs=20, learning_rate=3e-3, per_device_train_batch_size=16),
            seeds=(seed,),
            cache=str(root / "cache"),
            preflight=False,
        )
        return run(replace(recipe, **changes), root / f"{name}{seed}")

    return made


def test_a_teacher_that_knows_more_helps(run_of):
    loss = ForwardKL(temperature=2.0, scale="temperature_squared")
    reports = [run_of(seed, loss, "taught") for seed in SEEDS]
    assert sum(report.verdict.startswith("The teacher helped: +") for report in reports) >= 9
    assert all(report.score("teacher") > report.score("student") for report in reports)


def test_a_teacher_that_does_not_count_helps_nobody(run_of):
    reports = [run_of(seed, Labels() + 0.0 * ForwardKL(), "alone") for seed in SEEDS]
    for seed, report in zip(SEEDS, reports, strict=True):
        predictions = RunFolder(report.folder).predictions
        alone = read_predictions(predictions(f"baseline-rte-seed{seed}", "rte"))
        assert read_predictions(predictions(f"student-rte-seed{seed}", "rte")) == alone
    assert sum(report.verdict.startswith("No gain that can be told from chance") for report in reports) >= 9


def test_a_student_that_is_its_teacher_has_gained_nothing(run_of, teacher_folder):
    """Pure KL on a copy of the teacher; the baseline is the same copy, tuned a little on the clean rule's labels."""
    copied = StudentRecipe(from_teacher=FromTeacher(weights="fine_tuned"))
    train = TrainRecipe(num_train_epochs=5, learning_rate=1e-4, per_device_train_batch_size=16)
    report = run_of(0, ForwardKL(), "copy", noise=0.0, student=copied, train=train)
    logged = [json.loads(line) for line in (report.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in logged if line["fit"] == "student-rte-seed0"]
    assert max(losses) <= 1e-6
    assert report.data["compression"]["parameters"] == 1
    assert report.score("student") == report.score("teacher")
    assert report.verdict.startswith("No gain that can be told from chance")
