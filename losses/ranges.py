"""Range checks of a loss's fields, so that a wrong number is named where it was written."""

from __future__ import annotations

import math


def number(name: str, value: object) -> float:
    """Return value as a float.

    Raises:
        TypeError: value is not a real number (a bool is not one).
        ValueError: value is NaN or infinite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def positive(name: str, value: object) -> None:
    """Raise ValueError unless value is a finite number above 0."""
    if number(name, value) <= 0:
        raise ValueError(f"{name} must be a positive finite number, got {value!r}")


def non_negative(name: str, value: object) -> None:
    """Raise ValueError unless value is a finite number of at least 0."""
    if number(name, value) < 0:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")


def fraction(name: str, value: object) -> None:
    """Raise ValueError unless 0 <= value <= 1."""
    if not 0 <= number(name, value) <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value!r}")


def count(name: str, value: object) -> None:
    """Raise unless value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")


def one_of(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise ValueError unless value is one of choices."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}")
