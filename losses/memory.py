"""Large matrices whose memory costs little to touch for the first time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

_LARGE = 4 << 20
_CACHE_LINE = 64


def empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised tensor on the device of `like`, in its precision unless another is given.

    A first touch is a page fault every four kilobytes, which takes longer than most of what is computed here. Where
    the memory comes from NumPy, which asks the system for pages of two megabytes (`madvise`), it takes a quarter.
    """
    dtype = like.dtype if dtype is None else dtype
    size = dtype.itemsize
    for length in shape:
        size *= length
    if like.device.type != "cpu" or size < _LARGE:
        return like.new_empty(shape, dtype=dtype)
    room = numpy.empty(size + _CACHE_LINE, numpy.uint8)
    start = -room.ctypes.data % _CACHE_LINE
    return torch.from_numpy(room[start : start + size]).view(dtype).view(shape)
