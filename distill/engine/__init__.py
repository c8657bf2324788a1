"""The training engine: step, checkpoint, predict."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.engine.engine import Engine
    from distill.engine.inference import predict

_HOMES = {"Engine": "engine", "predict": "inference"}

__all__ = ["Engine", "predict"]


def __getattr__(name: str) -> object:
    # Counting steps (distill check) must not load torch.
    if name in _HOMES:
        return getattr(importlib.import_module(f"distill.engine.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
