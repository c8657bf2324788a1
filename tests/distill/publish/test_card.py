"""The model card says what the report says, validates as the hub's own, and its code runs."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import re
from pathlib import Path

import pytest

from distill.models import Teacher
from distill.models.loading import load_tokenizer
from distill.models.source import find_model
from distill.publish.subject import Subject
from distill.publish.usage import code, example_of
from distill.recipe import TeacherRecipe, read_recipe
from distill.run_folder import RunFolder
from distill.tasks import TASKS


@pytest.fixture(scope="module")
def rendered(finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each task, as it is published."""
    from distill.publish import publish_run

    root = tmp_path_factory.mktemp("rendered")
    for task in ("cb", "copa"):
        publish_run(
            finished,
            f"ada/small-{task}",
            task=task,
            license="apache-2.0",
            license_of={"tiny-bert": "mit"},
            dry_run=True,
            out=root / task,
        )
    return root


def tables(card: str) -> dict[str, list[str]]:
    """Every table row of a text by its first cell."""
    rows = [line.strip("|").split("|") for line in card.splitlines() if line.startswith("| ")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_the_metadata_is_the_hubs_own(rendered):
    from huggingface_hub import ModelCard

    card = ModelCard.load(rendered / "cb" / "README.md")
    said = card.data.to_dict()
    assert said["license"] == "apache-2.0"
    assert said["language"] == "en"
    assert said["library_name"] == "transformers"
    assert said["pipeline_tag"] == "text-classification"
    assert said["datasets"] == ["aps/super_glue"]
    assert said["metrics"] == ["accuracy", "f1"]
    assert {"distillation", "forward_kl", "sinkhorn", "superglue"} <= set(said["tags"])
    assert "base_model" not in said  # the run had it from a folder, and a folder's name is no hub id
    report = json.loads((rendered / "cb" / "report.json").read_text())
    ours = said["distillation"]
    assert ours["teachers"] == [{"model": "tiny-bert"}]
    assert ours["losses"] == [
        {k: v for k, v in term.items() if v is not None} for term in report["training"]["loss"]
    ]
    assert ours["recipe_sha256"] == report["recipe_sha256"]
    assert ours["versions"]["torch"] == report["environment"]["packages"]["torch"]
    results = {each.metric_name: each for each in card.data.eval_results}
    scores = report["student"]["tasks"]["cb"]["per_seed"]
    assert {name: each.metric_value for name, each in results.items()} == {
        "accuracy": scores["accuracy"][0],
        "macro f1": scores["macro_f1"][0],
    }
    assert {(each.dataset_type, each.dataset_config, each.dataset_split) for each in results.values()} == {
        ("aps/super_glue", "cb", "validation")
    }


@pytest.mark.parametrize("task", ["cb", "copa"])
def test_every_number_is_the_runs(rendered, finished, task):
    card = (rendered / task / "README.md").read_text()
    report = json.loads((finished / "report.json").read_text())
    rows = tables(card)
    names = {
        "student": "student",
        "baseline": "student alone: the same, trained on labels without a teacher",
        "teacher": "teacher",
    }
    fits = {
        role: json.loads((finished / "fits" / f"{role}-{task}{seed}.json").read_text())
        for role, seed in (("student", "-seed0"), ("baseline", "-seed0"), ("teacher", ""))
    }
    models = {line.split("|")[1].strip(): line for line in card.splitlines() if "MB |" in line}
    for role, name in names.items():
        cells = [cell.strip() for cell in models[name].strip("|").split("|")][1:]
        fit, whole = fits[role], fits["teacher"]
        inner = fit["parameters"] - fit["embedding_parameters"]
        assert cells == [
            f"{fit['parameters'] / 1e6:.2f} M",
            f"{whole['parameters'] / fit['parameters']:.2f}×",
            f"{inner / 1e6:.2f} M",
            f"{(whole['parameters'] - whole['embedding_parameters']) / inner:.2f}×",
            f"{fit['bytes'] / 1e6:.1f} MB",
            f"{report[role]['latency_ms']['batch_1']:.1f}",
            f"{report[role]['latency_ms']['batch_32']:.1f}",
        ]
    metrics = ["accuracy", "macro_f1"] if task == "cb" else ["accuracy"]

    def shown(values: list[float]) -> list[str]:
        return [" / ".join(f"{100 * value:.1f}" for value in values)]

    student = report["student"]["tasks"][task]
    assert rows["these weights (seed 0)"] == shown([student["per_seed"][m][0] for m in metrics])
    assert rows["student, mean of 2 seeds"] == shown([student[m] for m in metrics])
    assert rows["majority"] == shown([student["majority"][m] for m in metrics])
    assert rows[names["baseline"]] == shown([report["baseline"]["tasks"][task][m] for m in metrics])
    assert rows["teacher"] == shown([report["teacher"]["tasks"][task][m] for m in metrics])
    assert report["verdict"]["sentence"] in card
    found = report["verdict"]["tasks"][task]
    low, high = found["ci95"]
    assert (
        f"{found['gain']:+.1f} points against the same student trained without a teacher (95 % interval"
        in card
    )
    assert f"interval {low:+.1f} to {high:+.1f})" in card
    assert all(f"- {line}" in card for line in report["warnings"])
    assert report["warnings"]


def test_nothing_published_names_a_folder_of_this_machine(rendered, finished, tiny_bert, official_folder):
    for file in (rendered / "cb").iterdir():
        content = file.read_bytes()
        for private in (finished.parent, tiny_bert.parent, official_folder.parent, Path.home()):
            assert str(private).encode() + b"/" not in content, file.name
    recipe = read_recipe(rendered / "cb" / "recipe.yaml", check_surroundings=False)
    original = read_recipe(finished / "recipe.yaml", check_surroundings=False)
    assert dataclasses.replace(recipe, data=original.data, teacher=original.teacher) == dataclasses.replace(
        original, output=None, cache=None
    )
    assert recipe.data.path == official_folder.name


def snippet(card: str) -> str:
    found = re.search(r"```python\n(.*?)```", card, re.S)
    assert found
    return found[1]


def said_by(source: str, folder: Path) -> list[str]:
    """What a card's code prints, with a folder in place of the repository."""
    here = re.sub(r"^name = .*$", f"name = {str(folder)!r}", source, count=1, flags=re.M)
    assert here != source
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(here, "card", "exec"), {})  # noqa: S102 - our own card's
    return out.getvalue().splitlines()


def answer_of(subject: Subject, folder: Path):
    """What distill itself says of the card's example."""
    from distill.engine.reading import reading_for

    reading = reading_for(subject.recipe, subject.task)
    reader = Teacher.load(str(folder), kind=reading.head, labels=subject.task.labels)
    return reading.answer([example_of(subject.task.name)], reader).answers[0]


@pytest.mark.parametrize("task", ["cb", "copa"])
def test_the_code_of_the_card_answers_as_the_run_does(rendered, finished, task):
    lines = said_by(snippet((rendered / task / "README.md").read_text()), rendered / task)
    subject = Subject.of_run(RunFolder(finished), task)
    logits = answer_of(subject, rendered / task).logits
    total = sum(map(math.exp, logits))
    shares = [math.exp(logit) / total for logit in logits]
    assert [float(line.rpartition(": ")[2]) for line in lines] == pytest.approx(shares, abs=6e-4)
    if task == "cb":
        assert [line.partition(":")[0] for line in lines] == list(TASKS["cb"].labels)


@pytest.mark.parametrize("task", ["boolq", "multirc", "record", "rte", "wic", "wsc", "copa"])
def test_the_code_for_a_decoder_compares_the_answers_as_the_run_does(recipe, tiny_llama, tmp_path, task):
    decoder = dataclasses.replace(
        recipe,
        architecture="decoder",
        data=dataclasses.replace(recipe.data, tasks=(task,), max_length=2048),
        teacher=TeacherRecipe(model=str(tiny_llama), train=recipe.train),
        loss=recipe.loss[:2],
    )
    subject = Subject(RunFolder(tmp_path), decoder, {}, TASKS[task])
    tokenizer = load_tokenizer(find_model(str(tiny_llama)))
    lines = said_by(code(subject, "ada/x", tokenizer, adapter=False), tiny_llama)
    said = [float(line.rpartition("log-probability ")[2]) for line in lines]
    expected = answer_of(subject, tiny_llama).logits
    if TASKS[task].completion_logits([0.0]) == (0.0,):
        assert said == pytest.approx(expected, abs=2e-3)
    else:
        assert tuple(TASKS[task].completion_logits(said)) == pytest.approx(expected, abs=2e-3)
