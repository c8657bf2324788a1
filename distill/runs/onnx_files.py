"""The students of a finished run as ONNX files, and how fast onnxruntime runs one beside torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from distill.engine.reading import reading_for
from distill.environment import describe_environment
from distill.evaluation import ROUNDS, WARM_UP, latency
from distill.manifest import verified
from distill.models import Teacher
from distill.models.loading import load_model, load_tokenizer
from distill.models.onnx_file import OnnxModel, write_onnx
from distill.models.source import MODEL_KIND, find_trained
from distill.recipe import Recipe, TaskName
from distill.run_folder import ONNX_FILE, RunFolder, read_json, write_json
from distill.tasks import TASKS, TaskData

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from distill.models import DataSet
    from distill.progress import Progress

CPU = torch.device("cpu")
# Real examples that a file is compared on: the shortest, the longest, and some of all lengths together.
TOGETHER = 4


def export_students(
    recipe: Recipe,
    folder: RunFolder,
    data: Mapping[str, TaskData],
    trusted: Mapping[str, str],
    told: Progress,
) -> None:
    """Write the ONNX file of each task's student that has none, and what is known of all of them into onnx.json.

    Raises:
        ModelError: a student cannot be exported, or its file answers otherwise. The run is finished without it.
    """
    known = read_json(folder.onnx) if folder.onnx.is_file() else {"tasks": {}}
    for task in recipe.data.tasks:
        student = folder.model("student", task)
        file = verified(student, MODEL_KIND).get(ONNX_FILE)
        if file is not None and known["tasks"].get(task, {}).get("sha256") == file:
            continue
        told.begin(f"onnx-{task}", 1)
        reader, examples = _student(recipe, folder, data, task, trusted)
        made = write_onnx(reader.model, reader.tokenizer, student, _batches(examples))
        known["tasks"][task] = made.as_dict()
        known.pop("measured", None)
        write_json(folder.onnx, known)
        told.end(f"{made.bytes / 1e6:.1f} MB, within {made.max_difference:.1g} of torch's logits")
    if "measured" not in known:
        measure_onnx(recipe, folder, data, trusted, told)


def measure_onnx(
    recipe: Recipe,
    folder: RunFolder,
    data: Mapping[str, TaskData],
    trusted: Mapping[str, str],
    told: Progress,
) -> None:
    """Measure the first task's student in torch and in onnxruntime, both on the CPU and taking turns, into onnx.json."""
    first = recipe.data.tasks[0]
    told.begin("measuring ONNX", 1)
    reader, examples = _student(recipe, folder, data, first, trusted)
    threads = torch.get_num_threads()
    models: dict[str, PreTrainedModel | OnnxModel] = {
        "torch": reader.model,
        "onnxruntime": OnnxModel(folder.model("student", first) / ONNX_FILE, threads),
    }
    found = latency(models, dict.fromkeys(models, examples), CPU)
    here = describe_environment()
    measured: dict[str, Any] = {
        "task": first,
        "latency_ms": found,
        "passes": {f"batch_{count}": passes for count, passes in ROUNDS.items()},
        "warm_up": {f"batch_{count}": passes for count, passes in WARM_UP.items()},
        "processor": here["processor"],
        "threads": threads,
        "versions": onnx_versions(),
    }
    write_json(folder.onnx, read_json(folder.onnx) | {"measured": measured})
    told.end("latency beside torch's")


def onnx_versions() -> dict[str, str]:
    """What made the files, and what runs them here."""
    import importlib.metadata

    return {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")}


def _student(
    recipe: Recipe,
    folder: RunFolder,
    data: Mapping[str, TaskData],
    task: TaskName,
    trusted: Mapping[str, str],
) -> tuple[Teacher, DataSet]:
    """A task's student as it is in the run's folder, on the CPU, and validation examples in its tokens."""
    reading = reading_for(recipe, TASKS[task])
    source = find_trained(folder.model("student", task), trusted)
    model = load_model(source, kind=reading.head, labels=TASKS[task].labels, seed=0, allow_new_head=False)
    reader = Teacher(model, load_tokenizer(source))
    return reader, reading.examples(data[task].validation[:256], reader)


def _batches(examples: DataSet) -> list[dict[str, torch.Tensor]]:
    order = sorted(range(len(examples)), key=lambda index: examples.lengths[index])
    spread = [order[len(order) * part // TOGETHER] for part in range(TOGETHER)]
    return [examples.batch(chosen).inputs for chosen in ([order[0]], [order[-1]], [*spread, order[-1]])]
