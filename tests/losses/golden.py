"""What golden.json is made of: twenty small batches, and what every loss of logits is worth on them.

The definitions are written out in plain Python, in float64 and from the papers' formulas: they share no line with the
library, so the file cannot follow a mistake there. After a definition changed on purpose:

    python tests/losses/golden.py

p is a teacher's row after the softmax, q the student's.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")
BATCHES, ROWS, CLASSES = 20, 4, 6
Row = list[float]


def batches() -> list[dict[str, Any]]:
    """Logits near and far from each other, flat and sharp, with classes that neither side can produce, and equal rows."""
    draw = random.Random(20)
    made = []
    for number in range(BATCHES):
        spread, distance = (0.3, 1.0, 3.0, 8.0)[number % 4], (0.02, 0.3, 1.0)[number % 3]
        teacher = [[round(draw.gauss(0, spread), 3) for _ in range(CLASSES)] for _ in range(ROWS)]
        student = [
            [round((1 - distance) * z + distance * draw.gauss(0, spread), 3) for z in row] for row in teacher
        ]
        if number == 4:
            student[2] = list(teacher[2])
        if number == 9:
            for row in (*student, *teacher):
                row[1] = -math.inf
        if number == 14:
            student, teacher = ([[z + 5e4 for z in row] for row in side] for side in (student, teacher))
        possible = [place for place in range(CLASSES) if student[0][place] > -math.inf]
        drawn = [draw.sample(possible, 2) for _ in range(ROWS)]
        made.append(
            {
                "student": student,
                "teacher": teacher,
                "label": [draw.choice(possible) for _ in range(ROWS)],
                "drawn": drawn,
                "drawn_probability": [[round(draw.uniform(0.1, 0.9), 3) for _ in pair] for pair in drawn],
            }
        )
    return made


def softmax(row: Row, temperature: float = 1.0) -> Row:
    exponentials = [math.exp((z - max(row)) / temperature) for z in row]
    return [each / math.fsum(exponentials) for each in exponentials]


def log_softmax(row: Row, temperature: float = 1.0) -> Row:
    """Logarithms of a softmax, which stay exact where it underflows."""
    shifted = [(z - max(row)) / temperature for z in row]
    total = math.log(math.fsum(math.exp(z) for z in shifted))
    return [z - total for z in shifted]


def kl(log_p: Row, log_q: Row) -> float:
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True) if a > -math.inf)


def mixed(share: float, log_p: Row, log_q: Row) -> Row:
    """The logarithms of share · p + (1 − share) · q."""
    sums = (share * math.exp(a) + (1 - share) * math.exp(b) for a, b in zip(log_p, log_q, strict=True))
    return [math.log(each) if each > 0 else -math.inf for each in sums]


def total_variation(p: Row, q: Row) -> float:
    return math.fsum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2


def of_row(loss: dict[str, Any], z_s: Row, z_t: Row, label: int, drawn: list[int], share: Row) -> float:
    """What a loss that looks at one row at a time is worth."""
    kind, temperature = loss["kind"], loss.get("temperature", 1.0)
    log_p, log_q = log_softmax(z_t, temperature), log_softmax(z_s, temperature)
    p, q = softmax(z_t, temperature), softmax(z_s, temperature)
    # Of classes that the teacher finds equally likely, those that the student finds likelier come first.
    likeliest = sorted(range(len(p)), key=lambda place: (-z_t[place], -z_s[place]))
    if kind == "forward_kl":
        return kl(log_p, log_q)
    if kind == "reverse_kl":
        return kl(log_q, log_p)
    if kind == "jensen_shannon":
        beta = loss.get("beta", 0.5)
        middle = mixed(beta, log_p, log_q)
        return beta * kl(log_p, middle) + (1 - beta) * kl(log_q, middle)
    if kind == "skew_kl":
        return kl(log_p, mixed(loss.get("skew", 0.1), log_p, log_q))
    if kind == "skew_reverse_kl":
        return kl(log_q, mixed(loss.get("skew", 0.1), log_q, log_p))
    if kind == "total_variation":
        return total_variation(p, q)
    if kind == "adaptive_kl":
        held = [math.fsum(p[place] for place in likeliest[: count + 1]) for count in range(len(p))]
        head = {place for place, mass in zip(likeliest, held, strict=True) if mass <= loss.get("head", 0.5)}
        head.add(likeliest[0])
        gaps = [abs(a - b) for a, b in zip(p, q, strict=True)]
        weight = math.fsum(gaps[place] for place in head) / math.fsum(gaps) if any(gaps) else 0.0
        return weight * kl(log_p, log_q) + (1 - weight) * kl(log_q, log_p)
    if kind == "taid":
        t = loss.get("t", loss.get("start", 0.4))
        middle = [(1 - t) * a + t * b if a > -math.inf else a for a, b in zip(z_s, z_t, strict=True)]
        return kl(log_softmax(middle, temperature), log_q)
    if kind == "ghost_token_kl":
        kept = likeliest[: loss["kept"]]
        rest = likeliest[loss["kept"] :]
        merged = math.fsum(p[place] for place in rest), math.fsum(q[place] for place in rest)
        value = math.fsum(p[place] * (log_p[place] - log_q[place]) for place in kept if p[place] > 0)
        return value + (merged[0] * math.log(merged[0] / merged[1]) if merged[0] > 0 else 0.0)
    if kind == "labels":
        smoothing = loss.get("smoothing", 0.0)
        possible = [each for each in log_q if each > -math.inf]
        return -(1 - smoothing) * log_q[label] - smoothing * math.fsum(possible) / len(possible)
    if kind == "mean_squared_logits":
        gaps = [a - b for a, b in zip(z_s, z_t, strict=True) if a > -math.inf or b > -math.inf]
        mean = math.fsum(gaps) / len(gaps)
        return math.fsum((gap - mean) ** 2 for gap in gaps) / len(gaps) / 2
    if kind == "sampled_targets":
        pairs = list(zip(drawn, share, strict=True))
        return 1 + math.fsum(each * (math.log(each) - log_q[place]) - each for place, each in pairs)
    if kind == "sorted_transport":
        first, second = sorted(p, reverse=True), sorted(q, reverse=True)
        kept = loss.get("kept", len(p))
        rests = math.fsum(first[kept:]), math.fsum(second[kept:])
        return 2 * total_variation(first[:kept], second[:kept]) + abs(rests[0] - rests[1])
    raise ValueError(f"{kind} has no golden definition")


DISTANCES: dict[str, Callable[[Row, Row], float]] = {
    "l1": lambda p, q: 2 * total_variation(p, q),
    "total_variation": total_variation,
    "squared_euclidean": lambda p, q: math.fsum((a - b) ** 2 for a, b in zip(p, q, strict=True)),
    "cosine": lambda p, q: (
        1
        - math.fsum(a * b for a, b in zip(p, q, strict=True))
        / math.sqrt(math.fsum(a * a for a in p) * math.fsum(b * b for b in q))
    ),
}


def moved(p: list[Row], q: list[Row], loss: dict[str, Any], cost: str, rounds: int) -> float:
    """<P, C> after so many rounds of rows, then columns, from exp(−C/ε), in logarithms; each row weighs the same."""
    epsilon, mass = loss.get("epsilon", 0.1), -math.log(len(p))
    costs = [[DISTANCES[cost](source, target) for target in q] for source in p]
    log_plan = [[-each / epsilon for each in line] for line in costs]

    def total(logarithms: Row) -> float:
        return max(logarithms) + math.log(math.fsum(math.exp(z - max(logarithms)) for z in logarithms))

    for _ in range(rounds):
        log_plan = [[z + mass - total(line) for z in line] for line in log_plan]
        columns = [mass - total(list(column)) for column in zip(*log_plan, strict=True)]
        log_plan = [[z + shift for z, shift in zip(line, columns, strict=True)] for line in log_plan]
    return math.fsum(
        math.exp(z) * each
        for line, prices in zip(log_plan, costs, strict=True)
        for z, each in zip(line, prices, strict=True)
    )


def of_batch(loss: dict[str, Any], student: list[Row], teacher: list[Row]) -> float:
    """What a loss that looks at a whole batch is worth, as the mean over its rows."""

    def cost_of_moving(p: list[Row], q: list[Row], cost: str, rounds: int) -> float:
        own = moved(p, p, loss, cost, rounds) + moved(q, q, loss, cost, rounds)
        return moved(p, q, loss, cost, rounds) - (own / 2 if loss.get("debias", True) else 0.0)

    if loss["kind"] == "sinkhorn":
        p, q = ([softmax(row, loss.get("temperature", 2.0)) for row in side] for side in (student, teacher))
        return cost_of_moving(p, q, loss.get("cost", "l1"), loss.get("iterations", 20))
    p, q = ([softmax(row, loss.get("temperature", 1.0)) for row in side] for side in (student, teacher))

    def heaviest(side: list[Row]) -> list[Row]:
        sums = [math.fsum(column) for column in zip(*side, strict=True)]
        order = sorted(range(len(sums)), key=lambda place: -sums[place])[: loss.get("kept", 50)]
        return [[row[place] for place in order] for row in side]

    p, q = heaviest(p), heaviest(q)
    values = []
    for mine, theirs in zip(p, q, strict=True):
        entropy = math.fsum(b * math.log(b / a) - b + a for a, b in zip(mine, theirs, strict=True) if b > 0)
        values.append(2 * total_variation(mine, theirs) + loss.get("logarithmic", 0.1) * entropy)
    transport = cost_of_moving(p, q, "l1", loss.get("iterations", 10))
    return math.fsum(values) / len(values) + loss.get("sequence", 0.1) * transport


LOSSES: list[dict[str, Any]] = [
    {"kind": "forward_kl"},
    {"kind": "forward_kl", "temperature": 2.5},
    {"kind": "reverse_kl"},
    {"kind": "reverse_kl", "temperature": 2.5},
    {"kind": "jensen_shannon"},
    {"kind": "jensen_shannon", "beta": 0.2, "temperature": 2.5},
    {"kind": "skew_kl"},
    {"kind": "skew_kl", "skew": 0.4, "temperature": 2.5},
    {"kind": "skew_reverse_kl"},
    {"kind": "skew_reverse_kl", "skew": 0.4, "temperature": 2.5},
    {"kind": "total_variation"},
    {"kind": "total_variation", "temperature": 2.5},
    {"kind": "adaptive_kl"},
    {"kind": "adaptive_kl", "head": 0.8, "temperature": 2.5},
    {"kind": "taid"},
    {"kind": "taid", "t": 0.7, "temperature": 2.5},
    {"kind": "ghost_token_kl", "kept": 2},
    {"kind": "ghost_token_kl", "kept": 4, "temperature": 2.5},
    {"kind": "labels"},
    {"kind": "labels", "smoothing": 0.2},
    {"kind": "mean_squared_logits"},
    {"kind": "sampled_targets"},
    {"kind": "sampled_targets", "temperature": 2.5},
    {"kind": "sorted_transport"},
    {"kind": "sorted_transport", "kept": 2, "temperature": 2.5},
    {"kind": "sinkhorn"},
    {"kind": "sinkhorn", "debias": False, "epsilon": 0.03, "iterations": 3, "temperature": 1.0},
    {"kind": "sinkhorn", "cost": "total_variation", "iterations": 5},
    {"kind": "sinkhorn", "cost": "squared_euclidean", "epsilon": 0.3},
    {"kind": "sinkhorn", "cost": "cosine", "debias": False},
    {"kind": "multi_level_transport"},
    {"kind": "multi_level_transport", "kept": 3, "logarithmic": 0.5, "sequence": 2.0, "temperature": 2.5},
]


BATCH_WISE = ("sinkhorn", "multi_level_transport")


def rounded(number: float) -> float:
    """Twelve digits: the last ones are not the same on every machine."""
    return float(f"{number:.12g}")


def golden() -> dict[str, Any]:
    """The inputs, and each loss's values: a list of its rows' for every batch, or the batch's mean."""
    inputs = batches()
    values = [
        [
            rounded(of_batch(loss, batch["student"], batch["teacher"]))
            if loss["kind"] in BATCH_WISE
            else [rounded(of_row(loss, *row)) for row in zip(*batch.values(), strict=True)]
            for batch in inputs
        ]
        for loss in LOSSES
    ]
    return {
        "inputs": inputs,
        "losses": [{"loss": loss, "values": each} for loss, each in zip(LOSSES, values, strict=True)],
    }


if __name__ == "__main__":
    text = json.dumps(golden(), separators=(",", ":"))
    # A line for each batch and each loss.
    text = text.replace('{"student"', '\n{"student"').replace('{"loss"', '\n{"loss"')
    FILE.write_text(text + "\n", encoding="utf-8")
