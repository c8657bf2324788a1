"""Which of several models no other beats in everything."""

from __future__ import annotations

from collections.abc import Sequence


def pareto(points: Sequence[Sequence[float]]) -> list[bool]:
    """For each point whether it is on the front: no other is as large in every coordinate and larger in one.

    Exact, in any number of dimensions; points that are equal stand on the front together.

    Args:
        points: more is better in every coordinate.
    """
    return [not any(_dominates(other, point) for other in points) for point in points]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
