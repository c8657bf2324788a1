"""A look ahead: what one real batch tells about a training before it begins.

Nothing that the training depends on is changed: random states, the model's mode, gradients and buffers are put back,
and the optimizer is not asked for anything.

N rows.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.alignment import align_classes
from distill.engine.batches import epoch_batches
from distill.engine.engine import Engine
from distill.engine.token_differences import TokenDifferences
from distill.engine.work import Work
from distill.errors import DataError, RecipeError
from distill.losses import Labels
from distill.models import Features
from distill.tasks import Answer, Example, Task, mean_score

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distill.models import DataSet

SMALL_SHARE = 0.01  # of the gradient: a term below it hardly counts
TRUNCATED_WORTH_SAYING = 0.05
SCORED_EXAMPLES = 64
REPEATED = 3  # timings of a quick forward pass, of which the median counts
# A gradient this small beside its term's weight is rounding: probabilities are differences of float32 numbers.
NOTHING = 1e-6

Found = list[tuple[str, str]]
"""What was found, and what to do about it."""


@dataclass(frozen=True)
class Supervision:
    """What a training set asks of a model.

    Attributes:
        examples: of the set.
        rows: predictions that the loss sees in an epoch: one an example, or one a counted token.
        tokens: without padding.
        truncated: examples that lost tokens.
        empty: examples without a row.
        classified: whether an example is one prediction, not its tokens.
    """

    examples: int
    rows: int
    tokens: int
    truncated: int
    empty: int
    classified: bool = False

    @property
    def share(self) -> float:
        """Rows a token."""
        return self.rows / max(self.tokens, 1)

    @property
    def line(self) -> str:
        """In words."""
        if self.classified:
            return (
                f"{self.examples:,} examples, {self.tokens:,} tokens; one prediction an example; "
                f"{self.truncated:,} truncated"
            )
        return (
            f"{self.examples:,} examples, {self.tokens:,} tokens, {self.rows:,} of them supervised "
            f"({self.share:.1%}); {self.truncated:,} truncated, {self.empty:,} without a supervised token"
        )

    def warnings(self) -> Found:
        """What was found, and what to do about it."""
        found = []
        if self.truncated > TRUNCATED_WORTH_SAYING * self.examples:
            found.append(
                (
                    f"{self.truncated:,} of {self.examples:,} training examples are truncated",
                    "raise data.max_length (of plain text: or lower data.characters)",
                )
            )
        if self.empty:
            found.append(
                (
                    f"{self.empty:,} of {self.examples:,} training examples have no supervised token",
                    "raise data.max_length, so that prompts leave room for what is to be learnt, or remove them",
                )
            )
        return found


@dataclass(frozen=True)
class Memory:
    """Bytes at the moment of a training that needs the most; evaluation is not counted.

    Attributes:
        weights: of the student and of what the loss trains beside it.
        gradients: of the weights that are trained.
        moments: AdamW's two.
        activations: of the longest batch, with whatever else a step needs for a moment.
        rest: what the process (on a GPU: the device) holds besides: the teacher, data, libraries.
    """

    weights: int
    gradients: int
    moments: int
    activations: int
    rest: int

    @property
    def peak(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.moments + self.activations + self.rest

    @property
    def line(self) -> str:
        """In words."""
        return f"{_megabytes(self.peak)} at most: " + " + ".join(
            f"{name} {_megabytes(size)}"
            for name, size in (
                ("weights", self.weights),
                ("gradients", self.gradients),
                ("AdamW", self.moments),
                ("activations", self.activations),
                ("the rest of the process", self.rest),
            )
        )


@dataclass(frozen=True)
class Duration:
    """Seconds of one training (of one seed), without evaluation.

    Attributes:
        steps: optimizer steps of the student, and as many of the baseline.
        student: seconds a step of the student.
        baseline: seconds a step of the baseline; None where none is trained.
    """

    steps: int
    student: float
    baseline: float | None

    @property
    def line(self) -> str:
        """In words."""
        lines = [
            f"{name} {self.steps:,} steps × {step:.3g} s = {_span(self.steps * step)}"
            for name, step in (("student", self.student), ("baseline", self.baseline))
            if step is not None
        ]
        return ", ".join(lines) + " a seed"


@dataclass(frozen=True)
class Gradient:
    """How much each term of the loss pulls at the student.

    Attributes:
        norms: of the gradient of each term, times its weight, by name.
        weights: of the terms.
    """

    norms: Mapping[str, float]
    weights: Mapping[str, float]

    @property
    def shares(self) -> dict[str, float]:
        """Each norm's part of their sum."""
        total = sum(self.norms.values())
        return {name: norm / total if total else 0.0 for name, norm in self.norms.items()}

    @property
    def line(self) -> str:
        """In words."""
        return ", ".join(f"{name} {share:.1%}" for name, share in self.shares.items())

    def warnings(self) -> Found:
        """What was found, and what to do about it."""
        found: Found = []
        for name, share in self.shares.items():
            if self.norms[name] <= NOTHING * self.weights[name]:
                found.append(
                    (
                        f"the gradient of {name} is zero",
                        "there is nothing to learn from it: is the student a copy of its teacher?",
                    )
                )
            elif share < SMALL_SHARE:
                others = " and ".join(
                    f"{other} {s:.1%}" for other, s in self.shares.items() if s > 1 - SMALL_SHARE
                )
                found.append(
                    (
                        f"{name} makes {share:.2g} of the gradient" + (f" ({others})" if others else ""),
                        "raise its weight or leave it out",
                    )
                )
        return found


@dataclass(frozen=True)
class Scores:
    """Scores on the same few validation examples, 0 to 100.

    Attributes:
        examples: how many.
        teacher: the teacher's.
        student: the student's before it is trained.
        majority: of knowing only how often each answer occurs.
    """

    examples: int
    teacher: float
    student: float
    majority: float

    @property
    def line(self) -> str:
        """In words."""
        return (
            f"on {self.examples} validation examples: teacher {self.teacher:.1f}, student before training "
            f"{self.student:.1f}, majority {self.majority:.1f}"
        )

    def warnings(self) -> Found:
        """What was found, and what to do about it."""
        return [
            (
                f"the teacher ({self.teacher:.1f}) is worse than {what} ({other:.1f}) on {self.examples} validation "
                "examples",
                "train it longer, or choose one that knows the task",
            )
            for what, other in (
                ("the student before training", self.student),
                ("the majority row", self.majority),
            )
            if self.teacher < other
        ]


@dataclass(frozen=True)
class Preflight:
    """What one real batch tells about the training of a student.

    Attributes:
        name: of the student, `student-rte`.
        supervision: of its training set.
        memory: what the training will need.
        duration: how long it will take.
        gradient: what each term of the loss contributes.
        tokens: how the teacher's differ; None without a teacher.
        scores: the teacher's beside the student's; None where the teacher is not trained yet.
        notes: what else a reader should know.
    """

    name: str
    supervision: Supervision
    memory: Memory
    duration: Duration
    gradient: Gradient
    tokens: TokenDifferences | None = None
    scores: Scores | None = None
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> list[str]:
        """One line each: `preflight: student-rte: what was found; what to do`."""
        parts = (self.tokens, self.supervision, self.gradient, self.scores)
        found = [line for part in parts if part is not None for line in part.warnings()]
        return [f"preflight: {self.name}: {what}; {cure}" for what, cure in found]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `--json` and the run folder."""
        return {
            "tokens": None if self.tokens is None else self.tokens.as_dict(),
            "supervision": asdict(self.supervision) | {"share": self.supervision.share},
            "memory_bytes": asdict(self.memory) | {"peak": self.memory.peak},
            "seconds": {
                "steps": self.duration.steps,
                "student_step": self.duration.student,
                "baseline_step": self.duration.baseline,
                "student": self.duration.steps * self.duration.student,
                "baseline": None
                if self.duration.baseline is None
                else self.duration.steps * self.duration.baseline,
            },
            "gradient": {
                name: {"norm": self.gradient.norms[name], "share": share}
                for name, share in self.gradient.shares.items()
            },
            "scores": None if self.scores is None else asdict(self.scores),
            "notes": list(self.notes),
            "warnings": self.warnings,
        }

    def as_text(self) -> str:
        """A few lines."""
        rows = [
            ("tokens", None if self.tokens is None else "; ".join(self.tokens.lines)),
            ("data", self.supervision.line),
            ("memory", self.memory.line),
            ("time", self.duration.line),
            ("gradient", self.gradient.line),
            ("score", None if self.scores is None else self.scores.line),
            *(("note", note) for note in self.notes),
        ]
        lines = [
            f"preflight: {self.name}",
            *(f"  {name:<10}{line}" for name, line in rows if line is not None),
        ]
        return "\n".join([*lines, *self.warnings])


def preflight(
    engine: Engine,
    name: str,
    *,
    tokens: TokenDifferences | None = None,
    baseline: bool = True,
    scores: Callable[[], Scores] | None = None,
    notes: Sequence[str] = (),
) -> Preflight:
    """Measure what a training will be like, on its longest batch and on one of usual size.

    Args:
        engine: about to run, and left as it is, but for the examples of a forward pass that memory does not hold.
        name: of the student.
        tokens: how the teacher's tokens differ.
        baseline: whether the same student will also be trained on the labels alone.
        scores: called with the student in inference mode.
        notes: what else a reader should know.

    Raises:
        DataError: there is no supervised token in the whole training set.
        RecipeError: the gradient is not finite.
        ResourceError: memory does not hold the smallest forward pass; one that can be smaller is, from now on.
    """
    supervision = supervision_of(engine.features)
    if not supervision.rows:
        raise DataError(
            f"preflight: {name}: none of {supervision.examples:,} training examples has a supervised token; raise "
            "data.max_length, so that prompts leave room for what is to be learnt"
        )

    def measured() -> tuple[Memory, float, Gradient, Duration]:
        memory, norm = _memory(engine)
        usual, padding = _usual_batch(engine)
        gradient = gradient_of(engine, usual)
        return memory, norm, gradient, _duration(engine, usual, padding, baseline=baseline)

    with _untouched(engine):
        memory, norm, gradient, duration = engine.within_memory(f"preflight: {name}", measured)
        broken = [term for term, each in gradient.norms.items() if not math.isfinite(each)]
        if broken or not math.isfinite(norm):
            raise RecipeError(
                [
                    f"preflight: {name}: the gradient of {' and '.join(broken) or 'the longest batch'} is not finite; "
                    "look for weights of student or teacher that are not, lower loss weights, or use precision: fp32"
                ]
            )
        found = None
        if scores is not None:
            engine.student.model.train(mode=False)
            found = scores()
    return Preflight(name, supervision, memory, duration, gradient, tokens, found, tuple(notes))


def supervision_of(data: DataSet) -> Supervision:
    """Count the rows and tokens of a training set."""
    rows = [data.rows_of([index]) for index in range(len(data))]
    return Supervision(
        len(data),
        sum(rows),
        sum(data.lengths),
        data.truncated,
        rows.count(0),
        classified=isinstance(data, Features),
    )


def scores_of(
    task: Task,
    train: Sequence[Example],
    examples: Sequence[Example],
    *,
    teacher: Sequence[Answer],
    student: Sequence[Answer],
) -> Scores:
    """Compare answers to some validation examples.

    Args:
        task: the examples'.
        train: what the majority row counts.
        examples: see `examples_to_score`.
        teacher: its answers.
        student: its answers.
    """
    majority = mean_score({task.name: task.majority(train, examples)})
    taught, untaught = (mean_score({task.name: task.score(answers)}) for answers in (teacher, student))
    return Scores(len(examples), taught, untaught, majority)


def examples_to_score(validation: Sequence[Example]) -> list[int]:
    """The positions of up to 64 examples from all over a split, in whole groups (at least one group)."""
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(validation):
        groups.setdefault(example.group, []).append(index)
    step = -(-len(validation) // SCORED_EXAMPLES)
    chosen: list[int] = []
    for members in list(groups.values())[::step]:
        if chosen and len(chosen) + len(members) > SCORED_EXAMPLES:
            break
        chosen += members
    return chosen


def gradient_of(engine: Engine, batch: Sequence[int]) -> Gradient:
    """The norm of each weighted term's own gradient for the student's weights, on one batch (a forward pass of it)."""
    parameters = [p for p in engine.student.model.parameters() if p.requires_grad]
    whole, (micro, *_) = engine._rows_of(list(batch)), engine.plan.micro_batches(batch, 0)
    means = _term_means(engine, micro, whole)
    norms = {}
    for place, (name, mean) in enumerate(means.items()):
        if not mean.requires_grad:  # it has met no row
            norms[name] = 0.0
            continue
        gradients = torch.autograd.grad(
            mean, parameters, retain_graph=place < len(means) - 1, allow_unused=True
        )
        norms[name] = float(torch.nn.utils.get_total_norm([g for g in gradients if g is not None]))
    weights = dict(zip(engine.loss.names, (float(term.weight) for term in engine.loss), strict=True))
    return Gradient({name: norms[name] for name in engine.loss.names}, weights)


@contextmanager
def _untouched(engine: Engine) -> Iterator[None]:
    """Put everything back that measuring changes."""
    student, device, tokens = engine.student, engine.accelerator.device, engine.tokens
    wrapped = student.model
    # Each process measures by itself.
    student.model = engine.accelerator.unwrap_model(wrapped)
    buffers = {name: buffer.clone() for name, buffer in student.model.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        _forget_gradients(engine)
        student.model.train()
        for name, buffer in student.model.named_buffers():
            before = buffers.get(name)
            if before is not None and before.shape == buffer.shape and not torch.equal(before, buffer):
                buffer.copy_(before)
        student.model, engine.tokens = wrapped, tokens


def _forget_gradients(engine: Engine) -> None:
    for _, parameter in engine._trained():
        parameter.grad = None


def _term_means(
    engine: Engine, micro: tuple[list[int], list[int], float], whole: Mapping[tuple[str, ...], int]
) -> dict[str, Tensor]:
    """Of one forward pass the mean of each term, times its weight: their sum is the loss that `Engine.step` takes."""
    means = {}
    # The data's own examples, also where a run would train on the student's texts at times.
    for part in engine._parts(Work(engine.features, [micro], engine.loss, dict(whole)), micro):
        values = part.terms.evaluate(part.rows, engine.projections)
        for name, term in zip(part.terms.names, part.terms, strict=True):
            means[name] = part.rows.mean(term.weight * values[name][0], total_weight=whole[part.terms.names])
    return means


def _loss(
    engine: Engine, micro: tuple[list[int], list[int], float], whole: Mapping[tuple[str, ...], int]
) -> Tensor:
    return torch.stack(list(_term_means(engine, micro, whole).values())).sum()


def _memory(engine: Engine) -> tuple[Memory, float]:
    """What the training will hold at most, and the norm of the gradient of its longest batch."""
    parameters = [parameter for _, parameter in engine._trained()]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    held, share = engine.plan.held, engine.plan.batch // engine.plan.devices
    accumulated = 2 if share > held else 1  # from the second on gradients stand beside activations
    lengths = engine.features.lengths
    longest = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batch = longest[: held * accumulated]
    weights, gradients = _size(parameters), _size(trained)
    peak = _Peak(engine.accelerator.device)
    whole = engine._rows_of(batch)
    for micro in replace(engine.plan, devices=1).micro_batches(batch, 0):
        torch.autograd.backward(_loss(engine, micro, whole))
    most = peak.read()
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    _forget_gradients(engine)
    memory = Memory(
        weights=weights,
        gradients=gradients,
        moments=2 * gradients,
        activations=max(most - peak.before - gradients, 0),
        rest=max(peak.before - weights, 0),
    )
    return memory, float(norm)


def _size(parameters: Sequence[nn.Parameter]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


class _Peak:
    """The most memory that was used since this was made: of a GPU what torch has there, else the process's own.

    Where a system cannot forget an earlier peak (anything but Linux), it is the most since the process began.
    """

    def __init__(self, device: torch.device):
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            # What an earlier training has freed may still be the process's, and would hide what this one needs.
            with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library, or Windows
                ctypes.CDLL(None).malloc_trim(0)  # of glibc
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark
        self.before = self.read()

    def read(self) -> int:
        """Bytes."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        with contextlib.suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
            if found:
                return 1024 * int(found[1])
        try:
            import resource
        except ImportError:  # no such thing on this platform
            return 0
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most


def _usual_batch(engine: Engine) -> tuple[list[int], float]:
    """A batch of the first epoch whose size with padding is nearest to the mean, and the mean as a multiple of it."""
    lengths = engine.features.lengths
    batches = epoch_batches(
        lengths, engine.plan.batch, seed=engine.seed, epoch=0, by_length=engine.train.group_by_length
    )
    sizes = [len(batch) * max(lengths[index] for index in batch) for batch in batches]
    mean = sum(sizes) / len(sizes)
    size, batch = min(zip(sizes, batches, strict=True), key=lambda each: abs(each[0] - mean))
    return batch, mean / max(size, 1)


def _duration(engine: Engine, batch: list[int], padding: float, *, baseline: bool) -> Duration:
    """Time one forward pass of a batch, and AdamW."""
    micros = engine.plan.micro_batches(batch, 0)
    whole = engine._rows_of(batch)
    optimizer = _optimizer_seconds(engine)

    def timed(loss: Callable[[], Tensor]) -> float:
        seconds: list[float] = []
        while not seconds or (len(seconds) < REPEATED and sum(seconds) < 1):
            seconds.append(_timed(engine.accelerator.device, lambda: torch.autograd.backward(loss())))
            _forget_gradients(engine)
        return len(micros) * padding * sorted(seconds)[len(seconds) // 2] + optimizer

    student = timed(lambda: _loss(engine, micros[0], whole))
    alone = timed(lambda: _labels_mean(engine, micros[0])) if baseline else None
    return Duration(engine.total_steps, student, alone)


def _labels_mean(engine: Engine, micro: tuple[list[int], list[int], float]) -> Tensor:
    """What the baseline does in one forward pass."""
    index, group, _ = micro
    batch = engine.features.batch(index, group, engine.epoch).to(engine.accelerator.device)
    with torch.autocast(engine.accelerator.device.type, torch.bfloat16, enabled=engine._autocast):
        said = engine.student(batch)
    rows = align_classes(
        said.logits_NC, None, label_N=batch.label_N, weight_N=batch.weight_N, group_N=batch.group_N
    )
    return rows.mean(Labels()(rows))


def _optimizer_seconds(engine: Engine) -> float:
    """Seconds of one step of AdamW, from one on a million numbers of its own."""
    device, size = engine.accelerator.device, 2**20
    weights = torch.nn.Parameter(torch.zeros(size, device=device))
    weights.grad = torch.zeros_like(weights)
    optimizer = torch.optim.AdamW([weights], fused=True)
    optimizer.step()
    trained = sum(p.numel() for _, p in engine._trained() if p.requires_grad)
    return _timed(device, optimizer.step) * trained / size


def _timed(device: torch.device, work: Callable[[], object]) -> float:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    started = now()
    work()
    return now() - started


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
