"""Sorted transport against plain loops and scipy, for vocabularies of one size and of two."""

import math
from dataclasses import replace

import pytest
import torch
from distill.losses.transport.sorted_distance import sorted_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from distill.losses import Rows, SortedTransport


def logits(seed: int, rows: int, classes: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))).to(dtype)


def by_loops(z_s: list[float], z_t: list[float], temperature: float) -> float:
    def ordered(z):
        total = sum(math.exp(x / temperature) for x in z)
        return sorted((math.exp(x / temperature) / total for x in z), reverse=True)

    p, q = ordered(z_s), ordered(z_t)
    longest = max(len(p), len(q))
    p, q = (part + [0.0] * (longest - len(part)) for part in (p, q))
    return sum(abs(a - b) for a, b in zip(p, q, strict=True))


SIZES = [(1, 1), (3, 3), (2, 7), (7, 2), (40, 40), (40, 31), (31, 40)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_it_is_the_plain_loop(sizes, temperature):
    student, teacher = logits(1, 4, sizes[0]), logits(2, 4, sizes[1])
    found, bound = sorted_distance(student, teacher, temperature)
    for value, z_s, z_t in zip(found.tolist(), student.tolist(), teacher.tolist(), strict=True):
        assert value == pytest.approx(by_loops(z_s, z_t, temperature), rel=1e-12, abs=1e-14)
    assert bool((bound == 0).all())


def test_it_is_scipys_wasserstein_distance_of_the_probabilities():
    student, teacher = logits(3, 5, 60), logits(4, 5, 60)
    found, _ = sorted_distance(student, teacher)
    for value, p, q in zip(
        found.tolist(), student.softmax(-1).numpy(), teacher.softmax(-1).numpy(), strict=True
    ):
        assert value == pytest.approx(60 * wasserstein_distance(p, q), rel=1e-10)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kept", [None, 1, 2, 3, 35, 100])
def test_its_two_derivatives_are_right(sizes, kept):
    student, teacher = logits(5, 2, sizes[0]).requires_grad_(), logits(6, 2, sizes[1])

    def values(z):
        return sorted_distance(z, teacher, 2.0, kept)[0]

    assert torch.autograd.gradcheck(values, student)
    assert torch.autograd.gradgradcheck(values, student)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 60), st.integers(1, 70))
def test_what_is_kept_is_too_small_by_no_more_than_the_bound(seed, size_s, size_t, kept):
    student, teacher = logits(seed, 3, size_s), logits(seed + 1, 3, size_t)
    exact, _ = sorted_distance(student, teacher)
    found, bound = sorted_distance(student, teacher, 1.0, kept)
    missing = exact - found
    assert bool((missing >= -1e-12).all())
    assert bool((missing <= bound + 1e-12).all())
    if kept >= max(size_s, size_t):
        assert torch.equal(found, exact)
        assert bool((bound == 0).all())


def test_the_bound_is_reached_where_the_rests_are_disjoint_in_size():
    # One class kept and agreed on; the student's rest sits on one class, the teacher's is spread.
    p = torch.tensor([[0.6, 0.4, 0.0, 0.0, 0.0]]).double()
    q = torch.tensor([[0.6, 0.1, 0.1, 0.1, 0.1]]).double()
    exact, _ = sorted_distance(p.log(), q.log())
    found, bound = sorted_distance(p.log(), q.log(), 1.0, kept=1)
    assert float(exact) == pytest.approx(0.6)
    assert float(found) == pytest.approx(0.0, abs=1e-12)
    assert float(bound) == pytest.approx(0.8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_float32_and_coarser_logits_give_what_float64_does(dtype):
    student, teacher = logits(7, 6, 5000, dtype).requires_grad_(), logits(8, 6, 4000, dtype)
    found, _ = sorted_distance(student, teacher)
    reference = student.detach().double().requires_grad_()
    exact, _ = sorted_distance(reference, teacher.double())
    torch.testing.assert_close(found.double(), exact, rtol=2e-6, atol=1e-7)
    (mine,) = torch.autograd.grad(found.sum(), student)
    (theirs,) = torch.autograd.grad(exact.sum(), reference)
    assert mine.dtype == dtype
    # Coarse logits are full of ties, between which either order is right and gives another subgradient.
    if dtype == torch.float32:
        assert float((mine.double() - theirs).norm()) <= 1e-4 * float(theirs.norm())
    else:
        assert float((mine.double() - theirs).norm()) <= 0.1 * float(theirs.norm())


def test_renaming_the_classes_of_one_side_changes_nothing():
    student, teacher = logits(9, 4, 30), logits(10, 4, 30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sorted_distance(student, teacher[:, order]), sorted_distance(student, teacher))
    rows = Rows(student=student, teacher=student[:, order])
    assert float(SortedTransport()(rows).abs().amax()) < 1e-14


def test_ties_do_not_pull_equal_rows_apart():
    rows = Rows(student=torch.zeros(2, 4, requires_grad=True), teacher=torch.zeros(2, 4))
    (gradient,) = torch.autograd.grad(rows.mean(SortedTransport()(rows)), rows.student)
    assert torch.equal(gradient, torch.zeros(2, 4))


def test_only_rows_that_count_are_sorted(monkeypatch):
    from distill.losses.transport import sorted_distance as module

    seen = []
    inner = module._distance_and_signs

    def watched(p, q, sign):
        seen.append(len(p))
        return inner(p, q, sign)

    monkeypatch.setattr(module, "_distance_and_signs", watched)
    rows = Rows(student=logits(11, 5, 6), teacher=logits(12, 5, 6), weight=torch.tensor([1.0, 0, 2, 0, 0]))
    values = SortedTransport()(rows)
    assert sum(seen) == 2
    assert values[1] == values[3] == values[4] == 0
    kept = rows.select(rows.weight > 0)
    assert torch.equal(values[rows.weight > 0], SortedTransport()(replace(kept, weight=None)))


def test_the_tail_bound_is_in_the_diagnostics_as_a_mean_over_what_counts():
    rows = Rows(
        student=logits(13, 5, 50), teacher=logits(14, 5, 50), weight=torch.tensor([1.0, 0, 2, 0, 3]).double()
    )
    values, diagnostics = SortedTransport(kept=4).evaluate(rows)
    exact = rows.mean(SortedTransport()(rows))
    missing = float(exact - rows.mean(values))
    assert 0 <= missing <= float(diagnostics["tail_bound"])
    assert SortedTransport().evaluate(rows)[1] == {}


def test_rows_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match=r"\(N, V\) and \(N, W\), got \(2, 3\) and \(3, 3\)"):
        sorted_distance(torch.zeros(2, 3), torch.zeros(3, 3))


def test_only_a_byte_a_logit_is_kept_beside_them():
    student = logits(15, 8, 1000, torch.float32).requires_grad_()
    kept = []

    def keep(tensor):
        kept.append((tensor.numel() * tensor.element_size(), tensor.data_ptr() == student.data_ptr()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sorted_distance(student, logits(16, 8, 1000, torch.float32))
    assert sum(size for size, own in kept if not own) == 8 * 1000
