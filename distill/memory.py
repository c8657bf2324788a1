"""What says that there is no memory left, of whatever library and device it comes from."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from distill.errors import ResourceError

# What torch says in a plain RuntimeError: its CPU allocator, the libraries on a GPU, Apple's GPUs, C++ itself.
SAID = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
    "std::bad_alloc",
)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether less work at once might have gone well."""
    torch = sys.modules.get("torch")  # what has not been loaded has raised nothing
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in SAID)


def what_was_wanted(error: BaseException) -> str:
    """The first sentence of such an error: how much of which memory was asked for."""
    text = str(error).strip().split("\n", 1)[0]
    _, _, tail = text.rpartition("DefaultCPUAllocator: ")
    first = (tail or text).split(". ")[0].rstrip(".")
    return first or type(error).__name__


@contextlib.contextmanager
def enough_memory(where: str, cure: str) -> Iterator[None]:
    """Say in one line where memory ran out, and what to do about it.

    Raises:
        ResourceError: it did.
    """
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        raise ResourceError(f"{where}: out of memory ({what_was_wanted(error)}); {cure}") from error
