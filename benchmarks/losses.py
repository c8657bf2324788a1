"""How fast are the row-wise losses, how much memory do they take, and how exact are they?

    python benchmarks/losses.py --rows 512 --vocabulary 32000 --out losses.json

Forward and backward to the student's logits (or hidden states and output matrix), float32, one thread, the process's
CPU time. In a round every contestant runs once, in an order that changes from round to round; medians are compared.
Peak memory is measured in a process of its own, beyond the inputs, in matrices of rows × vocabulary in float32; the
returned gradient counts for logits, and does not for hidden states. Only ratios are printed: they carry over to
other machines, seconds do not. A contestant whose package is not installed is skipped and named.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import torch
import torch.nn.functional as F
from distill.losses.kernels.dense import row_values
from distill.losses.kernels.fused_linear import Projection, fused_linear_mean
from distill.losses.sparse import SparseTeacher, most_likely
from measuring import Goals, in_fresh_process, peak_beyond

from distill.environment import describe_environment
from distill.losses import ForwardKL, GhostTokenKL, JensenShannon, Labels, ReverseKL, Rows, SampledTargets

OURS = {"forward_kl": ForwardKL(), "reverse_kl": ReverseKL(), "jensen_shannon": JensenShannon()}
OF_STORED = {"ghost_token_kl": GhostTokenKL(), "sampled_targets": SampledTargets()}
HIDDEN, TEACHER_HIDDEN = 256, 512
KEPT = 64


@dataclass(frozen=True)
class Inputs:
    """Tensors that stand before the clock starts."""

    student_NV: torch.Tensor
    teacher_NV: torch.Tensor
    student_NH: torch.Tensor
    student_VH: torch.Tensor
    teacher_NH: torch.Tensor
    teacher_VH: torch.Tensor
    stored: SparseTeacher
    label_N: torch.Tensor


def make_inputs(rows: int, vocabulary: int, *, fused: bool) -> Inputs:
    """Random inputs; of logits or of hidden states, the other kind being a single row."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    dense_rows, fused_rows = (1, rows) if fused else (rows, 1)
    student_NV, teacher_NV = 3 * random(dense_rows, vocabulary), 3 * random(dense_rows, vocabulary)
    width = vocabulary if fused else 1
    student_NH, student_VH = random(fused_rows, HIDDEN), 3 * random(width, HIDDEN) / HIDDEN**0.5
    teacher_NH = random(fused_rows, TEACHER_HIDDEN)
    teacher_VH = 3 * random(width, TEACHER_HIDDEN) / TEACHER_HIDDEN**0.5
    stored = most_likely(teacher_NH @ teacher_VH.T if fused else teacher_NV, kept=KEPT)
    label_N = torch.randint(vocabulary, (rows,), generator=generator)
    return Inputs(student_NV, teacher_NV, student_NH, student_VH, teacher_NH, teacher_VH, stored, label_N)


# Plain PyTorch, as a training script writes it.


def plain_forward_kl(student_NV: torch.Tensor, teacher_NV: torch.Tensor) -> torch.Tensor:
    """The textbook's."""
    return F.kl_div(student_NV.log_softmax(-1), teacher_NV.softmax(-1), reduction="batchmean")


def plain_reverse_kl(student_NV: torch.Tensor, teacher_NV: torch.Tensor) -> torch.Tensor:
    """The textbook's."""
    return F.kl_div(teacher_NV.log_softmax(-1), student_NV.softmax(-1), reduction="batchmean")


def plain_jensen_shannon(student_NV: torch.Tensor, teacher_NV: torch.Tensor) -> torch.Tensor:
    """Two divergences to a mixture of logarithms."""
    log_p, log_q = teacher_NV.log_softmax(-1), student_NV.log_softmax(-1)
    log_m = torch.logsumexp(torch.stack([log_p, log_q]), 0) - torch.log(torch.tensor(2.0))
    both = [F.kl_div(log_m, log, reduction="batchmean", log_target=True) for log in (log_p, log_q)]
    return sum(both) / 2


PLAIN = {
    "forward_kl": plain_forward_kl,
    "reverse_kl": plain_reverse_kl,
    "jensen_shannon": plain_jensen_shannon,
}


def plain_gather(student_NV: torch.Tensor, stored: SparseTeacher) -> torch.Tensor:
    """KL over the stored classes, the others left out."""
    log_q_NK = student_NV.log_softmax(-1).gather(-1, stored.index)
    return F.kl_div(log_q_NK, stored.probability, reduction="batchmean")


Run = Callable[[Inputs], None]


def on_logits(loss: Callable[..., torch.Tensor], takes: str = "teacher_NV", *, destroys: bool = False) -> Run:
    """Forward and backward to the student's logits, of a loss that takes them and one more of the inputs."""

    def run(inputs: Inputs) -> None:
        leaf = inputs.student_NV.detach().requires_grad_()
        if destroys:
            # What a model's output is: not a leaf, and of no other use.
            hook = leaf.view_as(leaf)
            loss(hook, getattr(inputs, takes)).backward()
        else:
            loss(leaf, getattr(inputs, takes)).backward()

    return run


def ours_on_logits(name: str, *, overwrite: bool) -> Run:
    """The library's loop over logits."""

    def loss(student_NV: torch.Tensor, teacher_NV: torch.Tensor) -> torch.Tensor:
        rows = Rows(student=student_NV, teacher=teacher_NV)
        return rows.mean(row_values(OURS[name], rows, overwrite=overwrite))

    return on_logits(loss, destroys=overwrite)


def ours_on_stored(name: str) -> Run:
    """The same loop, with what was stored of the teacher."""

    def loss(student_NV: torch.Tensor, stored: SparseTeacher) -> torch.Tensor:
        rows = Rows(student=student_NV, sparse=stored)
        return rows.mean(row_values(OF_STORED[name], rows))

    return on_logits(loss, "stored")


def compiled(name: str) -> Run:
    """torch.compile of plain PyTorch."""
    return on_logits(torch.compile(PLAIN[name], dynamic=False))


def trl_jensen_shannon() -> Run:
    """TRL's generalised Jensen-Shannon divergence."""
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    return on_logits(lambda s, t: GKDTrainer.generalized_jsd_loss(s[None], t[None], beta=0.5))


def torchtune_forward_kl() -> Run:
    """Torchtune's forward KL (a cross-entropy: the same work but for the teacher's entropy)."""
    from torchtune.modules.loss.kd_losses import ForwardKLLoss

    loss = ForwardKLLoss()
    return on_logits(lambda s, t: loss(s, t, torch.zeros(len(s), dtype=torch.long)))


def on_hidden_states(
    loss: Callable[..., torch.Tensor], takes: tuple[str, ...] = ("teacher_NH", "teacher_VH")
) -> Run:
    """Forward and backward to the student's hidden states and output matrix, of a loss that takes more of the inputs."""

    def run(inputs: Inputs) -> None:
        hidden = inputs.student_NH.detach().requires_grad_()
        matrix = inputs.student_VH.detach().requires_grad_()
        loss(hidden, matrix, *(getattr(inputs, name) for name in takes)).backward()

    return run


def products_only(inputs: Inputs) -> None:
    """The four matrix products that no implementation can do without, and nothing else."""
    logits_NV = inputs.student_NH @ inputs.student_VH.T
    torch.mm(inputs.teacher_NH, inputs.teacher_VH.T)
    torch.mm(logits_NV, inputs.student_VH)
    torch.mm(logits_NV.T, inputs.student_NH)


def plain_fused(name: str) -> Run:
    """Two linear layers and plain PyTorch."""

    def loss(hidden, matrix, teacher_hidden, teacher_matrix):
        with torch.no_grad():
            teacher_NV = teacher_hidden @ teacher_matrix.T
        return PLAIN[name](hidden @ matrix.T, teacher_NV)

    return on_hidden_states(loss)


def ours_fused(name: str) -> Run:
    """The library's loop over hidden states."""

    def loss(hidden, matrix, teacher_hidden, teacher_matrix):
        teacher = Projection(teacher_hidden, teacher_matrix)
        return fused_linear_mean(OURS[name], Projection(hidden, matrix), teacher)

    return on_hidden_states(loss)


def ours_fused_on_stored(name: str) -> Run:
    """The same loop, with what was stored of the teacher."""

    def loss(hidden, matrix, stored):
        return fused_linear_mean(OF_STORED[name], Projection(hidden, matrix), stored)

    return on_hidden_states(loss, ("stored",))


def liger_fused_jensen_shannon(*, compile_it: bool) -> Run:
    """liger-kernel's chunked loss."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    made = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, compiled=compile_it)

    def loss(hidden, matrix, teacher_hidden, teacher_matrix):
        labels = torch.zeros(len(hidden), dtype=torch.long)
        found = made(hidden, matrix, teacher_hidden, teacher_matrix, labels)
        return found[0] if isinstance(found, tuple) else found

    return on_hidden_states(loss)


FUSED = "fused_linear/"
CONTESTANTS: dict[str, dict[str, Callable[[], Run]]] = {}
for _name in OURS:
    CONTESTANTS[_name] = {
        "plain PyTorch": lambda name=_name: on_logits(PLAIN[name]),
        "torch.compile": lambda name=_name: compiled(name),
        "ours": lambda name=_name: ours_on_logits(name, overwrite=False),
        "ours, overwriting": lambda name=_name: ours_on_logits(name, overwrite=True),
    }
CONTESTANTS["jensen_shannon"]["trl"] = trl_jensen_shannon
CONTESTANTS["forward_kl"]["torchtune"] = torchtune_forward_kl
for _name in ("forward_kl", "jensen_shannon"):
    CONTESTANTS[FUSED + _name] = {
        "matrix products alone": lambda: products_only,
        "plain PyTorch": lambda name=_name: plain_fused(name),
        "ours": lambda name=_name: ours_fused(name),
    }
CONTESTANTS[FUSED + "jensen_shannon"] |= {
    "liger-kernel": lambda: liger_fused_jensen_shannon(compile_it=False),
    "liger-kernel, compiled": lambda: liger_fused_jensen_shannon(compile_it=True),
}
for _name in OF_STORED:
    CONTESTANTS[_name] = {
        "plain PyTorch, gathering": lambda: on_logits(plain_gather, "stored"),
        "ours": lambda name=_name: ours_on_stored(name),
    }
    CONTESTANTS[FUSED + _name] = {
        "plain PyTorch, the teacher run for its forward KL": lambda: plain_fused("forward_kl"),
        "plain PyTorch, cross-entropy of labels": lambda: on_hidden_states(
            lambda hidden, matrix, label: F.cross_entropy(hidden @ matrix.T, label), ("label_N",)
        ),
        "plain PyTorch, gathering": lambda: on_hidden_states(
            lambda hidden, matrix, stored: plain_gather(hidden @ matrix.T, stored), ("stored",)
        ),
        "ours": lambda name=_name: ours_fused_on_stored(name),
    }

# (loss, contestant, whose figure is divided by ours, what it must be at least); times.
AT_LEAST = [
    ("forward_kl", "plain PyTorch", 4.0),
    ("reverse_kl", "plain PyTorch", 3.5),
    ("jensen_shannon", "trl", 10.0),
    (FUSED + "jensen_shannon", "liger-kernel", 1.0),
    (FUSED + "jensen_shannon", "liger-kernel, compiled", 1.0),
    *((FUSED + name, "plain PyTorch, the teacher run for its forward KL", 2.4) for name in OF_STORED),
]
# Ours divided by the contestant's, what it must be at most; times.
AT_MOST = [
    ("forward_kl", "torch.compile", 1.15),
    (FUSED + "forward_kl", "matrix products alone", 1.15),
    (FUSED + "jensen_shannon", "matrix products alone", 1.25),
    *((FUSED + name, "plain PyTorch, cross-entropy of labels", 1.0) for name in OF_STORED),
]
# Peak memory, in matrices of rows × vocabulary.
MEMORY = [
    ("forward_kl", "ours", 1.15),
    ("reverse_kl", "ours", 1.15),
    ("jensen_shannon", "ours", 1.15),
    ("forward_kl", "ours, overwriting", 0.15),
    ("jensen_shannon", "ours, overwriting", 0.15),
    (FUSED + "forward_kl", "ours", 0.4),
    (FUSED + "jensen_shannon", "ours", 0.4),
    *((name, "ours", 1.15) for name in OF_STORED),
    *((FUSED + name, "ours", 0.4) for name in OF_STORED),
]
# Ours divided by the contestant's, what it must be at most; peak memory.
MEMORY_AT_MOST = [
    (FUSED + "jensen_shannon", "liger-kernel", 0.5),
    (FUSED + "jensen_shannon", "liger-kernel, compiled", 0.5),
]


def time_all(rows: int, vocabulary: int, rounds: int) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Median CPU seconds of each contestant of each loss, and why some are missing."""
    medians: dict[str, dict[str, float]] = {}
    skipped: dict[str, str] = {}
    for loss, contestants in CONTESTANTS.items():
        inputs = make_inputs(rows, vocabulary, fused=loss.startswith(FUSED))
        runs: dict[str, Run] = {}
        for name, make in contestants.items():
            try:
                runs[name] = make()
                runs[name](_copy(inputs))
            except Exception as error:  # noqa: BLE001 (whatever another package does, the others go on)
                runs.pop(name, None)
                skipped[f"{loss}: {name}"] = f"{type(error).__name__}: {error}".splitlines()[0]
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(rounds):
            names = list(runs)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                # An overwriting contestant destroys its logits, so every one gets a copy, made before the clock starts.
                fresh = _copy(inputs)
                start = time.process_time()
                runs[name](fresh)
                seconds[name].append(time.process_time() - start)
        medians[loss] = {name: statistics.median(found) for name, found in seconds.items()}
        print(f"timed {loss}", file=sys.stderr, flush=True)
    return medians, skipped


def _copy(inputs: Inputs) -> Inputs:
    return Inputs(inputs.student_NV.clone(), *(getattr(inputs, name) for name in list(vars(inputs))[1:]))


def memory_of(loss: str, contestant: str, rows: int, vocabulary: int) -> float | None:
    """Peak memory in matrices of rows × vocabulary, measured in a fresh process."""
    arguments = ["--rows", str(rows), "--vocabulary", str(vocabulary), "--memory-of", loss, contestant]
    return in_fresh_process(__file__, arguments)


def measure_memory(loss: str, contestant: str, rows: int, vocabulary: int) -> float:
    """Run once and return the peak beyond what was there before (and, of hidden states, beyond the gradients)."""
    fused = loss.startswith(FUSED)
    run = CONTESTANTS[loss][contestant]()
    run(make_inputs(2, 64, fused=fused))
    inputs = make_inputs(rows, vocabulary, fused=fused)
    extra = peak_beyond(lambda: run(inputs))
    if fused:
        extra -= 4 * (inputs.student_NH.numel() + inputs.student_VH.numel())
    return extra / (4 * rows * vocabulary)


def precision() -> dict[str, float]:
    """Relative distance of bfloat16 losses from float64 arithmetic on the same numbers."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(2, 16, 32_000, generator=generator)).bfloat16()
    label = torch.zeros(16, dtype=torch.long)
    coarse = Rows(student=student, teacher=teacher, label=label)
    exact = Rows(student=student.double(), teacher=teacher.double(), label=label)
    found = {}
    for name, loss in {**OURS, "labels": Labels()}.items():
        ours, right = float(coarse.mean(loss(coarse))), float(exact.mean(loss(exact)))
        found[name] = abs(ours - right) / right
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory-rows", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=Path("losses.json"))
    parser.add_argument("--memory-of", nargs=2, metavar=("LOSS", "CONTESTANT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        print(measure_memory(*arguments.memory_of, arguments.rows, arguments.vocabulary))
        return
    medians, skipped = time_all(arguments.rows, arguments.vocabulary, arguments.rounds)
    memory = {
        f"{loss}: {name}": memory_of(loss, name, arguments.memory_rows, arguments.vocabulary)
        for loss, name, _ in (*MEMORY, *MEMORY_AT_MOST)
        if name in medians[loss]
    }
    distances = precision()
    goals = compare(medians, memory, distances)
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    arguments.out.write_text(
        json.dumps(
            {
                "rows": arguments.rows,
                "memory_rows": arguments.memory_rows,
                "vocabulary": arguments.vocabulary,
                "rounds": arguments.rounds,
                "environment": describe_environment(),
                "goals": goals.lines,
                "relative_to_ours": {
                    loss: {name: found / times["ours"] for name, found in times.items()}
                    for loss, times in medians.items()
                },
                "memory": memory,
                "precision": distances,
                "skipped": skipped,
            },
            indent=1,
        )
        + "\n"
    )
    print(f"{goals.summary}; written to {arguments.out}")


def compare(
    medians: dict[str, dict[str, float]], memory: dict[str, float | None], distances: dict[str, float]
) -> Goals:
    """Each ratio beside its goal."""
    goals = Goals()
    for loss, name, goal in AT_LEAST:
        if name in medians[loss]:
            goals.at_least(f"{loss}: {name} / ours, time", medians[loss][name] / medians[loss]["ours"], goal)
    for loss, name, goal in AT_MOST:
        if name in medians[loss]:
            goals.at_most(f"{loss}: ours / {name}, time", medians[loss]["ours"] / medians[loss][name], goal)
    for loss, name, goal in MEMORY:
        goals.at_most(f"{loss}: {name}, peak memory / N×V", memory[f"{loss}: {name}"], goal)
    for loss, name, goal in MEMORY_AT_MOST:
        ours, theirs = memory[f"{loss}: ours"], memory.get(f"{loss}: {name}")
        if ours is not None and theirs is not None:
            goals.at_most(f"{loss}: ours / {name}, peak memory", ours / theirs, goal)
    for loss, distance in distances.items():
        goals.at_most(f"{loss}: bfloat16, relative error", distance, 1e-4)
    return goals


if __name__ == "__main__":
    main()
