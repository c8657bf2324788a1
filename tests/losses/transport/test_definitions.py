"""Each transport loss beside NumPy loops that follow its definition, on generated rows, groups and weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.losses import MultiLevelTransport, Rows, Sinkhorn, SortedTransport

generated = settings(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


def softmax(logits_V: np.ndarray, temperature: float) -> np.ndarray:
    exponential_V = np.exp((logits_V - logits_V.max()) / temperature)
    return exponential_V / exponential_V.sum()


DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "l1": lambda p, q: sum(abs(p - q)),
    "total_variation": lambda p, q: sum(abs(p - q)) / 2,
    "squared_euclidean": lambda p, q: sum((p - q) ** 2),
    "cosine": lambda p, q: 1 - sum(p * q) / math.sqrt(sum(p * p) * sum(q * q)),
}


def moved(p: list, q: list, mass: np.ndarray, distance: Callable, epsilon: float, rounds: int) -> float:
    """<P, C> after so many rounds of rows and columns, from the product of the marginals times exp(−C/ε)."""
    cost = np.array([[distance(source, target) for target in q] for source in p])
    plan = np.outer(mass, mass) * np.exp(-cost / epsilon)
    for _ in range(rounds):
        for row in range(len(p)):
            plan[row] *= mass[row] / plan[row].sum()
        for column in range(len(q)):
            plan[:, column] *= mass[column] / plan[:, column].sum()
    return float((plan * cost).sum())


def of_group(p: list, q: list, mass: np.ndarray, distance: Callable, loss: Any) -> float:
    """What moving one side of a group onto the other costs, without the self-costs if they are subtracted."""
    sizes = (distance, loss.epsilon, loss.iterations)
    cost = moved(p, q, mass, *sizes)
    return cost - (moved(p, p, mass, *sizes) + moved(q, q, mass, *sizes)) / 2 if loss.debias else cost


def sinkhorn(p: list, q: list, mass: np.ndarray, loss: Sinkhorn) -> float:
    return of_group(p, q, mass, DISTANCES[loss.cost], loss)


def sorted_transport(p: list, q: list, mass: np.ndarray, loss: SortedTransport) -> float:
    found = 0.0
    for p_V, q_V, share in zip(p, q, mass, strict=True):
        first, second = sorted(p_V, reverse=True), sorted(q_V, reverse=True)
        kept = loss.kept or len(first)
        differences = [abs(a - b) for a, b in zip(first[:kept], second[:kept], strict=True)]
        found += share * (sum(differences) + abs(sum(first[kept:]) - sum(second[kept:])))
    return found


def multi_level(p: list, q: list, mass: np.ndarray, loss: MultiLevelTransport) -> float:
    def heaviest(side: list) -> list[np.ndarray]:
        weight_V = sum(share * row for share, row in zip(mass, side, strict=True))
        return [row[np.argsort(-weight_V, kind="stable")[: loss.kept]] for row in side]

    p, q = heaviest(p), heaviest(q)
    found = 0.0
    for p_K, q_K, share in zip(p, q, mass, strict=True):
        entropy = sum(b * math.log(b / a) - b + a for a, b in zip(p_K, q_K, strict=True))
        found += share * (sum(abs(p_K - q_K)) + loss.logarithmic * entropy)
    return found + loss.sequence * of_group(p, q, mass, DISTANCES["l1"], loss)


def by_loops(loss: Any, rows: Rows) -> float:
    """The weighted mean over groups of what `compare` says of a group's distributions and its rows' shares."""
    compare: Callable = next(
        function
        for kind, function in (
            (Sinkhorn, sinkhorn),
            (SortedTransport, sorted_transport),
            (MultiLevelTransport, multi_level),
        )
        if isinstance(loss, kind)
    )
    weight_N = np.ones(len(rows)) if rows.weight is None else rows.weight.double().numpy()
    group_N = np.zeros(len(rows)) if rows.group is None else rows.group.numpy()
    total = 0.0
    for group in set(group_N.tolist()):
        members = [i for i in range(len(rows)) if group_N[i] == group and weight_N[i] > 0]
        if not members:
            continue
        p, q = (
            [softmax(side.double().numpy()[i], loss.temperature) for i in members]
            for side in (rows.student, rows.teacher)
        )
        weight = weight_N[members].sum()
        total += weight * compare(p, q, weight_N[members] / weight, loss)
    return total / weight_N.sum()


@st.composite
def cases(draw: Callable[..., Any], kind: type) -> tuple[Any, Rows]:
    """A loss in one of its configurations, and rows with or without groups, weights and rows that do not count."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    count, classes = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    temperature = draw(st.sampled_from([0.7, 1.0, 2.0]))
    loss: Any
    if kind is SortedTransport:
        loss = SortedTransport(temperature=temperature, kept=draw(st.none() | st.integers(1, 14)))
    else:
        solved = {
            "temperature": temperature,
            "epsilon": draw(st.sampled_from([0.1, 0.3])),
            "iterations": draw(st.sampled_from([1, 7])),
            "debias": draw(st.booleans()),
        }
        if kind is Sinkhorn:
            cost = draw(st.sampled_from(sorted(DISTANCES)))
            streams = cost in ("l1", "total_variation") and draw(st.booleans())
            loss = Sinkhorn(**solved, cost=cost, memory="low" if streams else "fast")
        else:
            loss = MultiLevelTransport(
                **solved,
                kept=draw(st.integers(1, 14)),
                logarithmic=draw(st.sampled_from([0.0, 0.1])),
                sequence=draw(st.sampled_from([0.1, 1.0])),
            )
    spread = draw(st.sampled_from([0.1, 1.0, 5.0]))
    student, teacher = spread * torch.randn(2, count, classes, generator=generator, dtype=torch.float64)
    rows = Rows(student=student, teacher=teacher)
    if draw(st.booleans()):
        weight = (torch.rand(count, generator=generator) + 0.1) * (
            torch.rand(count, generator=generator) < 0.7
        )
        weight[int(torch.randint(count, (1,), generator=generator))] = 1.0
        rows = replace(rows, weight=weight.double())
    if draw(st.booleans()):
        rows = replace(rows, group=torch.randint(3, (count,), generator=generator))
    return loss, rows


@pytest.mark.parametrize("kind", [Sinkhorn, SortedTransport, MultiLevelTransport])
def test_a_transport_loss_is_its_definition(kind):
    @settings(generated, max_examples=300)
    @given(cases(kind))
    def holds(case: tuple[Any, Rows]) -> None:
        loss, rows = case
        assert float(rows.mean(loss(rows))) == pytest.approx(by_loops(loss, rows), rel=1e-9, abs=1e-12)

    holds()


@pytest.mark.parametrize(
    ("loss", "mistaken"),
    [
        (Sinkhorn(), Sinkhorn(temperature=1.0)),
        (Sinkhorn(), Sinkhorn(iterations=19)),
        (Sinkhorn(), Sinkhorn(debias=False)),
        (Sinkhorn(), Sinkhorn(cost="total_variation")),
        (SortedTransport(), SortedTransport(kept=2)),
        (MultiLevelTransport(), MultiLevelTransport(kept=3)),
        (MultiLevelTransport(), MultiLevelTransport(logarithmic=0.0)),
    ],
    ids=repr,
)
def test_another_configuration_is_another_number(loss, mistaken):
    generator = torch.Generator().manual_seed(1)
    student, teacher = 2 * torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    rows = Rows(student=student, teacher=teacher)
    assert float(rows.mean(loss(rows))) == pytest.approx(by_loops(loss, rows), rel=1e-9)
    assert float(rows.mean(mistaken(rows))) != pytest.approx(by_loops(loss, rows), rel=1e-4)
