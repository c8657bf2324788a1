"""How much smaller, faster and more frugal a student is than its teacher, both measured in the same way in one process."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from distill.models.adapter import ADAPTER_CONFIG
from distill.models.source import find_model

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from distill.models import Batch, DataSet
    from distill.models.onnx_file import OnnxModel

LATENCY_BATCHES = (1, 32)
THROUGHPUT_BATCH = 32
# Passes by batch size, the first of which do not count. One example is quickly read, and most easily disturbed.
WARM_UP = {1: 2, 32: 1}
ROUNDS = {1: 25, 32: 5}


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


def measure(
    models: Mapping[str, PreTrainedModel], features: Mapping[str, DataSet], device: torch.device
) -> dict[str, dict[str, Any]]:
    """What a forward pass of each model costs, all on the same validation examples.

    Args:
        models: by role, in inference mode.
        features: validation examples by role, the same examples in each model's own tokens.
        device: where the models stand.

    Returns:
        By role `{"latency_ms": …, "throughput": …, "flops": …, "peak_memory": …}`, as `latency`, `throughput`, `flops`
        and `peak_memory` say.
    """
    times = latency(models, features, device)
    found = {}
    for role, model in models.items():
        one, many = (_batch(features[role], count, device) for count in (1, THROUGHPUT_BATCH))
        found[role] = {
            "latency_ms": times[role],
            "throughput": throughput(times[role][f"batch_{THROUGHPUT_BATCH}"], many),
            "flops": flops(model, one),
            "peak_memory": peak_memory(model, {1: one, THROUGHPUT_BATCH: many}, device),
        }
    return found


def latency(
    models: Mapping[str, PreTrainedModel | OnnxModel], features: Mapping[str, DataSet], device: torch.device
) -> dict[str, dict[str, float]]:
    """Median milliseconds of a forward pass at batch 1 and 32, the models taking turns.

    Args:
        models: by role.
        features: validation examples by role, the same examples in each model's own tokens.
        device: where the models stand.

    Returns:
        `{role: {"batch_1": ms, "batch_32": ms, "tokens_1": padded length at batch 1, "tokens_32": …}}`.
    """
    figures: dict[str, dict[str, float]] = {role: {} for role in models}
    for count in LATENCY_BATCHES:
        batches = {role: _batch(feature, count, device) for role, feature in features.items()}
        times: dict[str, list[float]] = {role: [] for role in models}
        for turn in range(WARM_UP[count] + ROUNDS[count]):
            for role, model in models.items():
                seconds = _timed(model, batches[role], device)
                if turn >= WARM_UP[count]:
                    times[role].append(seconds)
        for role, measured in times.items():
            figures[role][f"batch_{count}"] = round(1000 * statistics.median(measured), 3)
            figures[role][f"tokens_{count}"] = batches[role].inputs["input_ids"].shape[-1]
    return figures


def throughput(milliseconds: float, batch: Batch) -> dict[str, float]:
    """Examples and tokens a second, from the time that a batch takes.

    Returns:
        `{"batch": its examples, "examples_per_second": …, "tokens_per_second": …}`; padding counts as no tokens.
    """
    tokens = batch.inputs.get("attention_mask", torch.ones_like(batch.inputs["input_ids"])).sum()
    examples = len(batch.index_B)
    return {
        "batch": examples,
        "examples_per_second": round(1000 * examples / milliseconds, 3),
        "tokens_per_second": round(1000 * float(tokens) / milliseconds, 1),
    }


def flops(model: PreTrainedModel, batch: Batch) -> dict[str, float]:
    """Floating-point operations of a forward pass for each of its input tokens, a multiplication and an addition being two.

    torch's `FlopCounterMode` counts matrix products, attention's among them, and nothing else: no softmax, no
    normalisation, no look-up in a table.

    Returns:
        `{"per_token": …, "tokens": how many the pass read: attention's share grows with a text's length}`.
    """
    # The fused attention of the CPU is unknown to the counter, and what it does not know it leaves out.
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter, sdpa_kernel(SDPBackend.MATH):
        model(**batch.inputs)
    tokens = batch.inputs["input_ids"].numel()
    return {"per_token": round(counter.get_total_flops() / tokens, 1), "tokens": tokens}


def peak_memory(model: PreTrainedModel, batches: Mapping[int, Batch], device: torch.device) -> dict[str, int]:
    """Bytes that inference needs: the weights, and at its peak a forward pass at each batch size.

    On CUDA what the allocator counts. On the CPU the tensors that are alive together: the same on every machine, and
    without the interpreter, the libraries and what a kernel takes for itself while it runs.

    Returns:
        `{"weights": bytes, "batch_1": weights and pass together, "batch_32": …}`.
    """
    held = {
        id(tensor.untyped_storage()): tensor.untyped_storage().nbytes()
        for tensor in (*model.parameters(), *model.buffers())
    }
    weights = sum(held.values())
    found = {"weights": weights}
    for count, batch in batches.items():

        def once(batch: Batch = batch) -> None:
            with torch.inference_mode():
                model(**batch.inputs)

        found[f"batch_{count}"] = weights + (
            _peak_on_cuda(once, device) if device.type == "cuda" else _peak_of_tensors(once)
        )
    return found


def together(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of several models that all answer, one after the other: times, operations and weights add up."""
    first = models[0]
    latencies = {
        key: round(sum(each["latency_ms"][key] for each in models), 3)
        for key in (f"batch_{count}" for count in LATENCY_BATCHES)
    }
    examples = 1 / sum(1 / each["throughput"]["examples_per_second"] for each in models)
    share = examples / first["throughput"]["examples_per_second"]
    weights = sum(each["peak_memory"]["weights"] for each in models)
    return {
        "latency_ms": dict(first["latency_ms"]) | latencies,
        "throughput": dict(first["throughput"])
        | {
            "examples_per_second": round(examples, 3),
            "tokens_per_second": round(share * first["throughput"]["tokens_per_second"], 1),
        },
        "flops": dict(first["flops"]) | {"per_token": sum(each["flops"]["per_token"] for each in models)},
        "peak_memory": {"weights": weights}
        | {
            key: weights + max(each["peak_memory"][key] - each["peak_memory"]["weights"] for each in models)
            for key in first["peak_memory"]
            if key != "weights"
        },
    }


def _batch(feature: DataSet, count: int, device: torch.device) -> Batch:
    """The example of median length, or the first ones."""
    middle = sorted(range(len(feature)), key=lambda i: feature.lengths[i])[len(feature) // 2]
    index = [middle] if count == 1 else [i % len(feature) for i in range(count)]
    return feature.batch(index).to(device)


def _timed(model: PreTrainedModel | OnnxModel, batch: Batch, device: torch.device) -> float:
    with torch.inference_mode():
        started = time.perf_counter()
        model(**batch.inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started


def _peak_on_cuda(call: Callable[[], None], device: torch.device) -> int:
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return int(torch.cuda.max_memory_allocated(device) - before)


def _peak_of_tensors(call: Callable[[], None]) -> int:
    alive = _Alive()
    with alive:
        call()
    return alive.peak


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own is untyped
    """Adds up the memory of the tensors that operations return, for as long as it is held.

    Attributes:
        peak: most bytes at a time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._bytes = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for each in tree_leaves((args, kwargs)):
            if isinstance(each, torch.Tensor):  # what was there before: weights and inputs, and views of them
                self._known[each.untyped_storage()] = True
        returned = func(*args, **(kwargs or {}))
        for each in tree_leaves(returned):
            if isinstance(each, torch.Tensor) and each.untyped_storage() not in self._known:
                storage = each.untyped_storage()
                self._known[storage] = True
                self._bytes += storage.nbytes()
                weakref.finalize(storage, self._let_go, storage.nbytes())
        self.peak = max(self.peak, self._bytes)
        return returned

    def _let_go(self, count: int) -> None:
        self._bytes -= count


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
    """Teacher ÷ student: above 1 the student is smaller, faster or more frugal. What was not measured is left out."""

    def body(model: Mapping[str, Any]) -> int:
        return int(model["parameters"]) - int(model["embedding_parameters"])

    found: dict[str, Any] = {
        "parameters": teacher["parameters"] / student["parameters"],
        "non_embedding_parameters": body(teacher) / body(student),
        "bytes": teacher["bytes"] / student["bytes"],
        "latency": {
            key: teacher["latency_ms"][key] / student["latency_ms"][key]
            for key in (f"batch_{count}" for count in LATENCY_BATCHES)
        },
    }
    if "flops" in teacher and "flops" in student:
        found["flops_per_token"] = teacher["flops"]["per_token"] / student["flops"]["per_token"]
    if "peak_memory" in teacher and "peak_memory" in student:
        found["peak_memory"] = {
            key: teacher["peak_memory"][key] / student["peak_memory"][key]
            for key in (f"batch_{count}" for count in LATENCY_BATCHES)
        }
    return found
