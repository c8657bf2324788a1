"""How much smaller and faster a student is than its teacher, both measured in the same way in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.models.adapter import ADAPTER_CONFIG
from distill.models.source import find_model

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from distill.models import Batch, DataSet

LATENCY_BATCHES = (1, 32)
WARM_UP, ROUNDS = 2, 9


@dataclass(frozen=True)
class Size:
    """What a model weighs.

    Attributes:
        parameters: all of them, tied tensors counted once.
        embedding_parameters: those of the input embedding tables (words, positions, segments).
        bytes: the weight files on disk.
    """

    parameters: int
    embedding_parameters: int
    bytes: int

    def as_dict(self) -> dict[str, int]:
        """Plain values for JSON."""
        return asdict(self)


def added(sizes: Sequence[Size]) -> Size:
    """The size of several models together."""
    return Size(*(sum(values) for values in zip(*(asdict(each).values() for each in sizes), strict=True)))


def size(model: PreTrainedModel, folder: Path | str) -> Size:
    """Parameters of a model and the bytes of its safetensors files under `folder`, an adapter's base among them."""
    folders = [Path(folder)]
    if (Path(folder) / ADAPTER_CONFIG).is_file() and (base := find_model(str(folder)).base):
        folders.append(Path(base.location))
    tables = {
        id(parameter): parameter.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding)
        for parameter in module.parameters()
    }
    return Size(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        embedding_parameters=sum(tables.values()),
        bytes=sum(file.stat().st_size for each in folders for file in each.glob("*.safetensors")),
    )


def latency(
    models: Mapping[str, PreTrainedModel], features: Mapping[str, DataSet], device: torch.device
) -> dict[str, dict[str, float]]:
    """Median milliseconds of a forward pass at batch 1 and 32, the models taking turns.

    Args:
        models: by role.
        features: validation examples by role, the same examples in each model's own tokens.
        device: where the models stand.

    Returns:
        `{role: {"batch_1": ms, "batch_32": ms, "tokens": padded length at batch 32}}`.
    """
    figures: dict[str, dict[str, float]] = {role: {} for role in models}
    for count in LATENCY_BATCHES:
        batches = {}
        for role, feature in features.items():
            middle = sorted(range(len(feature)), key=lambda i, f=feature: f.lengths[i])[len(feature) // 2]  # type: ignore[misc]
            index = [middle] if count == 1 else [i % len(feature) for i in range(count)]
            batches[role] = feature.batch(index).to(device)
        times: dict[str, list[float]] = {role: [] for role in models}
        for turn in range(WARM_UP + ROUNDS):
            for role, model in models.items():
                seconds = _timed(model, batches[role], device)
                if turn >= WARM_UP:
                    times[role].append(seconds)
        for role, measured in times.items():
            figures[role][f"batch_{count}"] = round(1000 * statistics.median(measured), 3)
            figures[role][f"tokens_{count}"] = batches[role].inputs["input_ids"].shape[-1]
    return figures


def _timed(model: PreTrainedModel, batch: Batch, device: torch.device) -> float:
    with torch.inference_mode():
        started = time.perf_counter()
        model(**batch.inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started


def shareable(weights_by_task: Mapping[str, Mapping[str, Tensor]]) -> dict[str, int]:
    """How many parameters the task students have in common.

    A row of a table or matrix counts as common when it is bitwise the same in the student of every task, as the
    embeddings of words that no task's training text holds are: one copy of it would serve all tasks.

    Returns:
        `{"models": …, "parameters": of all of them together, "common": of one copy that all could share}`.
    """
    tasks = list(weights_by_task)
    first = weights_by_task[tasks[0]]
    common = 0
    for name, tensor in first.items():
        others = [weights_by_task[task].get(name) for task in tasks[1:]]
        if any(other is None or other.shape != tensor.shape for other in others):
            continue
        rows = tensor.reshape(tensor.shape[0], -1) if tensor.dim() else tensor.reshape(1, 1)
        same = torch.ones(rows.shape[0], dtype=torch.bool)
        for other in others:
            assert other is not None  # noqa: S101 - narrowed above
            same &= (rows == other.reshape(rows.shape)).all(1)
        common += int(same.sum()) * rows.shape[1]
    return {
        "models": len(tasks),
        "parameters": sum(t.numel() for weights in weights_by_task.values() for t in weights.values()),
        "common": common if len(tasks) > 1 else 0,
    }


def ratios(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> dict[str, Any]:
    """Teacher ÷ student: above 1 the student is smaller or faster."""

    def body(model: Mapping[str, Any]) -> int:
        return int(model["parameters"]) - int(model["embedding_parameters"])

    return {
        "parameters": teacher["parameters"] / student["parameters"],
        "non_embedding_parameters": body(teacher) / body(student),
        "bytes": teacher["bytes"] / student["bytes"],
        "latency": {
            key: teacher["latency_ms"][key] / student["latency_ms"][key]
            for key in (f"batch_{count}" for count in LATENCY_BATCHES)
        },
    }
