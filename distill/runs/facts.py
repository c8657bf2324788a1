"""What a run finds out besides its predictions: the data's digests and majorities, sizes and latencies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.engine.reading import reading_for
from distill.evaluation import latency, shareable
from distill.models import Teacher
from distill.models.adapter import weights_file
from distill.models.loading import load_model, load_tokenizer
from distill.models.source import ModelSource, find_trained, find_trusted
from distill.recipe import Recipe, TaskName
from distill.report import differences
from distill.run_folder import RunFolder
from distill.tasks import DIAGNOSTICS, TASKS, Example, TaskData, overlap

if TYPE_CHECKING:
    import torch

EXCERPT = 160  # characters of each of an example's texts


def data_facts(recipe: Recipe, data: dict[str, TaskData]) -> dict[str, Any]:
    """Per task: how many examples, the majority row, what is incomplete or occurs in training too, and the digest."""

    def training(name: str) -> list[Example]:
        return data["rte" if name in DIAGNOSTICS else name].train

    return {
        "source": recipe.data.source,
        "tasks": {
            name: {
                "train": len(task.train),
                "validation": len(task.validation),
                "units": len({example.group for example in task.validation}),
                "majority": task.task.majority(task.train, task.validation),
                "partial": task.partial,
                "portion": task.portion,
                "notes": list(task.notes),
                "overlap": asdict(overlap(training(name), task.validation)),
                "sha256": task.sha256,
            }
            for name, task in data.items()
        },
    }


def excerpts(recipe: Recipe, folder: RunFolder, data: dict[str, TaskData]) -> dict[str, dict[str, str]]:
    """By task the beginning of the texts of the examples on which teacher and student differ most, by their ids."""
    found: dict[str, dict[str, str]] = {}
    for task in recipe.data.tasks:
        wanted = {each["id"] for each in differences(folder, recipe, task)["examples"]}
        texts: dict[str, str] = {}
        for example in data[task].validation:
            name = example.group if task == "record" else example.id
            if name in wanted and name not in texts:  # of a query its first candidate's
                texts[name] = _excerpt(example)
        found[task] = texts
    return found


def _excerpt(example: Example) -> str:
    parts = dict.fromkeys(part for pair in example.texts for part in pair if part)
    plain = (" ".join(part.split()) for part in parts)
    return " / ".join(part if len(part) <= EXCERPT else part[:EXCERPT].rstrip() + "…" for part in plain)


def teacher_files(
    recipe: Recipe, folder: RunFolder, task: TaskName, number: int, trusted: Mapping[str, str]
) -> ModelSource:
    """The files of a teacher that knows a task: those of the run, or those that the recipe names."""
    part = recipe.teacher.parts[number]
    if part.train is None:
        return find_trusted(part.for_task(task), part.revision, trusted)
    return find_trained(folder.model("teacher", task, number if recipe.teacher.members else None), trusted)


def measurements(
    recipe: Recipe,
    folder: RunFolder,
    data: dict[str, TaskData],
    device: torch.device,
    trusted: Mapping[str, str],
) -> dict[str, Any]:
    """Latency of teacher and student on the first task, and what the task students have in common.

    The baseline is the student's architecture, so it has the student's latency.
    """
    from safetensors.torch import load_file

    first = recipe.data.tasks[0]
    task = TASKS[first]
    reading = reading_for(recipe, task)
    parts = recipe.teacher.parts
    sources = {
        f"teacher{number}": teacher_files(recipe, folder, first, number, trusted)
        for number in range(len(parts))
    }
    sources["student"] = find_trained(folder.model("student", first), trusted)

    def taking_turns(*roles: str) -> dict[str, dict[str, float]]:
        models, features = {}, {}
        for role in roles:
            source = sources[role]
            model = load_model(source, kind=reading.head, labels=task.labels, seed=0, allow_new_head=False)
            tokenizer = load_tokenizer(source)
            model.to(str(device))  # type: ignore[arg-type]  # transformers' wrapper hides torch's signature
            reader = Teacher(model, tokenizer)
            models[role] = reader.model
            features[role] = reading.examples(data[first].validation[:256], reader)
        return latency(models, features, device)

    weights: dict[str, dict[str, torch.Tensor]] = {
        name: load_file(weights_file(Path(find_trained(folder.model("student", name), trusted).location)))
        for name in recipe.data.tasks
    }
    times = taking_turns("student", "teacher0")
    for number in range(1, len(parts)):  # which need not fit into memory together
        times |= taking_turns(f"teacher{number}")
    # Several teachers are asked one after the other.
    teacher = {
        key: sum(times[f"teacher{number}"][key] for number in range(len(parts))) for key in times["student"]
    }
    teacher |= {key: value for key, value in times["teacher0"].items() if key.startswith("tokens")}
    return {
        "latency_ms": {"teacher": teacher, "student": times["student"]},
        "latency_task": first,
        "sharing": shareable(weights),
    }
