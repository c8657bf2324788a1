"""Memory that NumPy lends to torch."""

import pytest
import torch
from distill.losses.memory import empty


@pytest.mark.parametrize("shape", [(0, 5), (3,), (1024, 2048), (1025, 1031)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int8])
def test_it_is_a_tensor_like_any_other(shape, dtype):
    like = torch.zeros(2, 2, dtype=dtype)
    made = empty(shape, like)
    assert (tuple(made.shape), made.dtype, made.is_contiguous()) == (shape, dtype, True)
    assert made.data_ptr() % 64 == 0
    made.fill_(3)
    assert bool((made == 3).all())
    assert empty(shape, like, torch.float32).dtype == torch.float32


def test_it_outlives_whoever_made_it():
    part = empty((2048, 1024), torch.zeros(1))[5:7].fill_(1.5)
    others = [empty((2048, 1024), torch.zeros(1)).fill_(2.0) for _ in range(3)]
    assert float(part.sum()) == 2 * 1024 * 1.5
    assert len(others) == 3
