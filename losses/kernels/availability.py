"""Where Triton's kernels run: the one question that everything asks which has some."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

import torch

CAPABILITY = (8, 0)
"""The least compute capability of a GPU: what Triton supports, and what the tests compile for."""
VERSION = (3, 3)
"""The least version of Triton: 3.2, which torch 2.6 brings, does not compile the row-wise losses' kernel."""

_forced: frozenset[str] | None = None


def triton_runs_on(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device: an NVIDIA GPU, not too old, with Triton, not too old, and a C compiler.

    Never waits for the device, and finds out once for each. Where Triton is installed and cannot be used, a warning
    says why. AMD's GPUs, which torch calls "cuda" too, are left to torch: no kernel has been tried on one. So is
    everything under torch.compile, which traces what torch does.
    """
    if torch.compiler.is_compiling():
        return False
    if _forced is not None:
        return device.type in _forced
    return device.type == "cuda" and torch.version.cuda is not None and _launches_on(device)


@contextmanager
def forced_on(*device_types: str) -> Iterator[None]:
    """Within, let `triton_runs_on` answer yes on devices of these types and no on all others, whatever is installed.

    For tests: "cpu" for Triton's interpreter (TRITON_INTERPRET=1 when Triton is imported), none for torch alone.

    Example:
        >>> import torch
        >>> from distill.losses.kernels.availability import forced_on, triton_runs_on
        >>> with forced_on("cpu"):
        ...     triton_runs_on(torch.device("cpu"))
        True
        >>> triton_runs_on(torch.device("cpu"))
        False
    """
    global _forced
    before, _forced = _forced, frozenset(device_types)
    try:
        yield
    finally:
        _forced = before


@cache
def _launches_on(device: torch.device) -> bool:
    if find_spec("triton") is None:
        return False
    problem = _problem_on(device)
    if problem is not None:
        warnings.warn(
            f"no Triton kernels for the losses on {device}, torch goes on computing them: {problem}",
            stacklevel=3,
        )
    return problem is None


def _problem_on(device: torch.device) -> str | None:
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        return "its compute capability is {}.{}, and they need {}.{}".format(*capability, *CAPABILITY)
    try:
        import triton
        from triton.runtime import driver

        if tuple(int(part) for part in triton.__version__.split(".")[:2]) < VERSION:
            return "Triton is version {}, and they need {}.{}".format(triton.__version__, *VERSION)
        # Built by the system's C compiler with Python's headers, either of which need not be there.
        _ = driver.active.utils
    except Exception as error:  # noqa: BLE001 (every version of Triton fails in its own way)
        return f"{type(error).__name__}: {error}"
    return None
