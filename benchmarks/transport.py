"""How fast, how frugal and how exact are the transport losses beside everybody else's?

    OMP_NUM_THREADS=1 python benchmarks/transport.py --out transport.json

One process, one thread, the processor's time: contestants take turns, each figure is a median over the rounds. Peak
memory beyond the inputs comes from a fresh process each. A step is the loss and its gradient for the student's
logits. Each ratio is printed beside its goal. A contestant that is not installed is left out, and that is said.
Ratios are what to read: milliseconds are this machine's, on this day.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import torch  # noqa: E402 (after the variables that its and NumPy's threads read)
from distill.losses.transport.compiled import use_compiled_transport  # noqa: E402
from measuring import Goals, in_fresh_process, peak_beyond  # noqa: E402
from torch import Tensor  # noqa: E402

from distill.environment import describe_environment  # noqa: E402
from distill.losses import Rows, Sinkhorn, SortedTransport  # noqa: E402

EPSILON, ROUNDS, TEMPERATURE = 0.1, 20, 2.0
Contestant = Callable[[Tensor, Tensor], Tensor]


# The others, each as its own documentation has it. All get the L1 distances of the two softmaxes.


def softmaxes(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides' probabilities at the paper's temperature."""
    return (student / TEMPERATURE).softmax(-1), (teacher / TEMPERATURE).softmax(-1)


def cdist(student: Tensor, teacher: Tensor) -> Tensor:
    """The distances as published code computes them."""
    return torch.cdist(*softmaxes(student, teacher), p=1)


def published(student: Tensor, teacher: Tensor) -> Tensor:
    """SinKD by its definition: rounds of row and column normalisation, <P, C>, autograd through all of it."""
    distance = cdist(student, teacher)
    plan = torch.exp(-distance / EPSILON)
    for _ in range(ROUNDS):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    return (plan * distance).sum() / len(student)


def pot_solve(student: Tensor, teacher: Tensor) -> Tensor:
    """POT's solver with its envelope gradient; the distances are given."""
    import ot

    return ot.solve(cdist(student, teacher), reg=EPSILON, max_iter=ROUNDS, tol=0, grad="envelope").value


def pot_autograd(student: Tensor, teacher: Tensor) -> Tensor:
    """POT's Sinkhorn with autograd through its rounds; the distances are given."""
    import ot

    mass = student.new_full((len(student),), 1 / len(student))
    distance = cdist(student, teacher)
    return ot.sinkhorn2(mass, mass, distance, EPSILON, numItermax=ROUNDS, stopThr=0, warn=False)


def pot_native(student: Tensor, teacher: Tensor) -> Tensor:
    """POT with its own distances, all differences at once: its default, a loop over the classes, takes a minute."""
    import ot

    mass = student.new_full((len(student),), 1 / len(student))
    distance = ot.dist(*softmaxes(student, teacher), metric="cityblock", use_tensor=True)
    return ot.sinkhorn2(mass, mass, distance, EPSILON, numItermax=ROUNDS, stopThr=0, warn=False)


def geomloss_solve(student: Tensor, teacher: Tensor) -> Tensor:
    """The solver of geomloss; the distances are given."""
    from geomloss import ot

    return ot.solve(cdist(student, teacher), reg=EPSILON, max_iter=ROUNDS).value


def samples_loss(debias: bool) -> Contestant:
    """The loss of geomloss on L1 distances."""

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        from geomloss import SamplesLoss

        solver = SamplesLoss(
            "sinkhorn",
            p=1,
            blur=EPSILON,
            debias=debias,
            backend="tensorized",
            cost=lambda x, y: torch.cdist(x, y, p=1),
        )
        return solver(*softmaxes(student, teacher))

    return loss


def ours(loss: Any, compiled: bool = False) -> Contestant:
    """One of this library's losses, as a training step calls it, compiled or not."""

    def mean(student: Tensor, teacher: Tensor) -> Tensor:
        use_compiled_transport(compiled)
        rows = Rows(student=student, teacher=teacher)
        return rows.mean(loss(rows))

    return mean


def plain_sorting(student: Tensor, teacher: Tensor) -> Tensor:
    """ULD as published: two softmaxes, two sorts, autograd."""
    p, q = student.softmax(-1), teacher.softmax(-1)
    return (p.sort(-1, descending=True).values - q.sort(-1, descending=True).values).abs().sum(-1).mean()


SINKHORN: dict[str, Contestant] = {
    "ours": ours(Sinkhorn(debias=False)),
    "ours, compiled": ours(Sinkhorn(debias=False), compiled=True),
    "ours, low memory": ours(Sinkhorn(debias=False, memory="low")),
    "ours, debiased": ours(Sinkhorn()),
    "ours, solver pot": ours(Sinkhorn(debias=False, solver="pot")),
    "ours, solver geomloss": ours(Sinkhorn(debias=False, solver="geomloss")),
    "ours, exact plan (pot)": ours(Sinkhorn(debias=False, solver="pot", epsilon=0)),
    "SinKD": published,
    "pot solve": pot_solve,
    "pot autograd": pot_autograd,
    "geomloss solve": geomloss_solve,
    "geomloss SamplesLoss": samples_loss(debias=False),
    "geomloss SamplesLoss, debiased": samples_loss(debias=True),
    "pot native": pot_native,
}
SORTED: dict[str, Contestant] = {
    "ours": ours(SortedTransport()),
    "ours, 256 kept": ours(SortedTransport(kept=256)),
    "plain": plain_sorting,
}
PEAKED = {"sinkhorn": (SINKHORN, (64, 50_000)), "sorted": (SORTED, (512, 32_000))}


def entrants(contestants: dict[str, Contestant], without: tuple[str, ...] = ()) -> dict[str, Contestant]:
    """Those who can take part; says who cannot."""
    modules = {"geomloss": "geomloss", "pot": "ot"}
    there = {}
    for name, contestant in contestants.items():
        package = next((package for package in modules if package in name), None)
        if package is not None and importlib.util.find_spec(modules[package]) is None:
            print(f"  left out, {package} is not installed: {name}")
        elif "compiled" in name and not use_compiled_transport():
            print(f"  left out, nothing to compile it with: {name}")
        elif name not in without:
            there[name] = contestant
    return there


def inputs(rows: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of a student and a teacher that agree about half."""
    generator = torch.Generator().manual_seed(seed)
    teacher, noise = 3 * torch.randn(2, rows, classes, generator=generator)
    return (0.5 * teacher + 0.5 * noise).requires_grad_(), teacher


def step(contestant: Contestant, student: Tensor, teacher: Tensor) -> Tensor:
    """One loss and its gradient."""
    (gradient,) = torch.autograd.grad(contestant(student, teacher), student)
    return gradient


def medians(
    contestants: dict[str, Contestant], student: Tensor, teacher: Tensor, rounds: int
) -> dict[str, float]:
    """Milliseconds of processor time a step, contestants taking turns."""
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        step(contestant, student, teacher)  # what is loaded and built once is not measured
    start = time.process_time()
    step(next(iter(contestants.values())), student, teacher)
    repeats = max(1, min(50, int(0.02 / max(1e-6, time.process_time() - start))))
    for _ in range(rounds):
        for name, contestant in contestants.items():
            step(contestant, student, teacher)  # not timed: finds the memory that the one before gave back
            start = time.process_time()
            for _ in range(repeats):
                step(contestant, student, teacher)
            spent[name].append((time.process_time() - start) / repeats * 1e3)
    return {name: statistics.median(times) for name, times in spent.items()}


def peak_here(case: str, name: str) -> None:
    """In a fresh process: print the peak memory of one step, in multiples of student and teacher logits together."""
    contestants, shape = PEAKED[case]
    step(contestants[name], *inputs(8, 2048))  # what is loaded and built once is not counted
    student, teacher = inputs(*shape)
    found = peak_beyond(lambda: step(contestants[name], student, teacher))
    print(found / (2 * student.numel() * student.element_size()))


def peak(case: str, name: str) -> float | None:
    """Peak memory of one step, or None where this system cannot tell."""
    return in_fresh_process(__file__, ["--peak", case, name])


def table(title: str, times: dict[str, float]) -> None:
    """Print medians and how many times ours they are."""
    print(title)
    for name, number in times.items():
        print(f"  {number:10.3f} ms  {number / times['ours']:7.2f} x ours  {name}", flush=True)


def large(goals: Goals, rounds: int, native: bool = False) -> dict[str, Any]:
    """A batch of 64 over a vocabulary of 50,000: goals 1, 2, 3 and 7."""
    contestants = entrants(SINKHORN, without=() if native else ("pot native",))
    if not native:
        print(
            "  left out, --native is not given (2 s a step, and 100 times the logits in memory): pot native"
        )
    times = medians(contestants, *inputs(64, 50_000), rounds)
    table("Sinkhorn, 64 rows of 50,000 classes", times)
    case, compiled = "64 x 50,000", "ours, compiled"
    for name, goal, compiled_goal in (
        ("SinKD", 2, 6), ("pot solve", 2, 6), ("pot autograd", 2, 6), ("geomloss solve", 2, 6),
        ("geomloss SamplesLoss", 3.5, 12), ("geomloss SamplesLoss, debiased", 7, None), ("pot native", 15, 50),
    ):  # fmt: skip
        if name in times:
            goals.at_least(f"{case}: {name} / ours", times[name] / times["ours"], goal)
            if compiled_goal is not None and compiled in times:
                ratio = times[name] / times[compiled]
                goals.at_least(f"{case}: {name} / {compiled}", ratio, compiled_goal)
    for name in ("ours, solver pot", "ours, solver geomloss"):
        if name in times:
            goals.at_most(f"{case}: {name} / ours", times[name] / times["ours"], 1.15)
    goals.at_most(f"{case}: low memory / ours", times["ours, low memory"] / times["ours"], 1.6)
    peaks = {name: peak("sinkhorn", name) for name in contestants}
    print("Peak memory beyond the logits, in units of them")
    for name, found in peaks.items():
        print(f"  {found or float('nan'):10.3f}  {name}")
    for name, goal in (("ours", 1.6), ("ours, low memory", 0.7)):
        goals.at_most(f"{case}: peak of {name} / logits", peaks[name], goal)
    return {"milliseconds": times, "peak_over_logits": peaks}


def few(goals: Goals, rounds: int) -> dict[str, Any]:
    """Classification batches: goal 4."""
    found = {}
    for rows, classes in ((16, 2), (32, 3), (64, 3), (512, 3)):
        contestants = entrants(SINKHORN, without=("ours, exact plan (pot)",))
        times = found[f"{rows}x{classes}"] = medians(contestants, *inputs(rows, classes), 3 * rounds)
        table(f"Sinkhorn, {rows} rows of {classes} classes", times)
        case = f"{rows} x {classes}"
        for mine in ("ours", "ours, compiled"):
            if mine not in times:
                continue
            if rows < 512:
                goals.at_most(f"{case}: {mine} / SinKD", times[mine] / times["SinKD"], 0.4)
            else:
                goals.at_least(f"{case}: SinKD / {mine}", times["SinKD"] / times[mine], 5)
            for name, small, big in (
                ("pot solve", 3.5, 3), ("pot autograd", 3.5, 3),
                ("geomloss solve", 3.5, 1.7), ("geomloss SamplesLoss", 3.5, 1.7),
            ):  # fmt: skip
                if name in times:
                    goal = small if rows < 512 else big
                    goals.at_least(f"{case}: {name} / {mine}", times[name] / times[mine], goal)
    return {"milliseconds": found}


def exactness(goals: Goals, rounds: int) -> dict[str, Any]:
    """Distance from float64 autograd of the published formula: goal 5."""
    from distill.losses.transport.softened import softened_distances

    errors = {}
    for rows, classes in ((16, 2), (64, 3), (64, 50_000)):
        student, teacher = inputs(rows, classes)
        exact = step(published, student.detach().double().requires_grad_(), teacher.double())
        for name in ("SinKD", "ours", "ours, low memory"):
            gradient = step(SINKHORN[name], student, teacher).double()
            error = float((gradient - exact).norm() / exact.norm())
            errors[f"{rows}x{classes} {name}"] = error
            if name == "SinKD":  # what rounding the softmaxes to float32 costs anybody
                print(f"         {error:10.3g}             {rows} x {classes}: gradient of SinKD in float32")
            else:
                goals.at_most(f"{rows} x {classes}: gradient of {name}, relative error", error, 1e-5)
    student, teacher = inputs(8, 150_000)
    found, *_ = softened_distances(student.detach(), teacher, TEMPERATURE, with_self=False, streamed=False)
    error = float((found.double() - cdist(student.detach().double(), teacher.double())).abs().amax())
    goals.at_most("8 x 150,000: distances, largest absolute error", error, 5e-6)
    return {"gradient_error": errors, "distance_error": error}


def sparse(goals: Goals, rounds: int) -> dict[str, Any]:
    """Softmaxes and distances where a teacher's row holds a few classes: goal 6."""
    from distill.losses.transport.softened import softened_distances

    student, teacher = inputs(64, 50_000)
    pull = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))

    def distances(z: Tensor, t: Tensor) -> Tensor:
        return softened_distances(z, t, TEMPERATURE, with_self=False, streamed=False)[0]

    found = {}
    for kept in (32, 128):
        top = teacher.topk(kept, -1)
        few_classes = torch.full_like(teacher, -torch.inf).scatter_(1, top.indices, top.values)
        contestants: dict[str, Contestant] = {
            "ours": lambda z, t: (distances(z, t) * pull).sum(),
            "cdist": lambda z, t: (cdist(z, t) * pull).sum(),
        }
        times = medians(contestants, student, few_classes, rounds)
        table(f"Softmaxes and distances to a teacher of {kept} classes a row", times)
        case = f"64 x 50,000, {kept} a row"
        goals.at_least(f"{case}: cdist / ours", times["cdist"] / times["ours"], 10)
        exact = cdist(student.detach().double(), few_classes.double())
        error = float((distances(student.detach(), few_classes).double() - exact).abs().amax())
        goals.at_most(f"{case}: distances, largest absolute error", error, 1e-5)
        found[str(kept)] = {"milliseconds": times, "error": error}
    return found


def sorting(goals: Goals, rounds: int) -> dict[str, Any]:
    """Sorted transport of 512 rows over 32,000 classes: goal 15."""
    student, teacher = inputs(512, 32_000)
    times = medians(SORTED, student, teacher, max(1, rounds // 2))
    table("Sorted transport, 512 rows of 32,000 classes", times)
    case = "512 x 32,000"
    goals.at_least(f"{case}: plain sorting / ours", times["plain"] / times["ours"], 2)
    goals.at_least(f"{case}: plain sorting / 256 kept", times["plain"] / times["ours, 256 kept"], 10)
    peaks = {name: peak("sorted", name) for name in SORTED}
    if peaks["ours"] is not None:  # one N x V matrix is half the logits
        goals.at_most(f"{case}: peak of ours / one N x V matrix", 2 * peaks["ours"], 2.5)
    # Peaked as a language model's tokens are: most of the mass on a few hundred of the classes.
    rows = Rows(student=2 * student.detach(), teacher=2 * teacher)
    exact = float(rows.mean(SortedTransport()(rows)))
    values, diagnostics = SortedTransport(kept=256).evaluate(rows)
    missing, bound = exact - float(rows.mean(values)), float(diagnostics["tail_bound"])
    goals.at_most("peaked rows: what 256 kept misses of the loss", missing / exact, 0.005)
    goals.at_most("peaked rows: what 256 kept misses / its tail bound", missing / bound, 1)
    return {"milliseconds": times, "peak_over_logits": peaks, "missing": missing / exact, "tail_bound": bound}


def bert(goals: Goals, rounds: int) -> dict[str, Any]:
    """The loss's part of a training step of a small BERT: goal 16."""
    from transformers import BertConfig, BertForSequenceClassification

    def model(layers: int, hidden: int) -> Any:
        return BertForSequenceClassification(
            BertConfig(
                num_hidden_layers=layers,
                hidden_size=hidden,
                num_attention_heads=hidden // 32,
                intermediate_size=4 * hidden,
                num_labels=3,
            )
        )

    teacher, student = model(6, 384).eval(), model(2, 128)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    ids = torch.randint(1000, 30_000, (32, 128), generator=torch.Generator().manual_seed(0))
    spent = []
    for _ in range(1 + max(2, rounds // 2)):
        start = time.process_time()
        with torch.no_grad():
            goal = teacher(input_ids=ids).logits
        torch.nn.functional.mse_loss(student(input_ids=ids).logits, goal).backward()
        optimizer.step()
        optimizer.zero_grad()
        spent.append((time.process_time() - start) * 1e3)
    training = statistics.median(spent[1:])
    times = medians({name: SINKHORN[name] for name in ("ours", "ours, debiased")}, *inputs(32, 3), rounds)
    for name, number in times.items():
        goals.at_most(f"BERT 6 x 384 -> 2 x 128, 32 x 128 tokens: {name} / step", number / training, 0.002)
    return {"step_milliseconds": training, "loss_milliseconds": times}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "large": large,
    "few": few,
    "exactness": exactness,
    "sparse": sparse,
    "sorting": sorting,
    "bert": bert,
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("transport.json"))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--native", action="store_true", help="POT with its own distances takes part")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "NAME"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        peak_here(*arguments.peak)
        return
    goals = Goals()
    results: dict[str, Any] = {"environment": describe_environment() | {"load": os.getloadavg()}}
    print(json.dumps(results["environment"]))
    for part in arguments.parts:
        extra = {"native": arguments.native} if part == "large" else {}
        results[part] = PARTS[part](goals, arguments.rounds, **extra)
    results["goals"] = goals.lines
    arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"{goals.summary}; written to {arguments.out}")


if __name__ == "__main__":
    main()
