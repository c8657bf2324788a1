"""Cost matrices: the fast ways against all pairs at once in float64."""

import pytest
import torch
from distill.losses.transport import softened
from distill.losses.transport.manhattan import distance_pull, manhattan, overlap, self_overlap, tiled_pull
from distill.losses.transport.problem import cosine, squared_euclidean
from distill.losses.transport.softened import softened_distances


def logits(seed: int, rows: int, classes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))).to(dtype)


def naive(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> list[torch.Tensor]:
    p, q = (student.double() / temperature).softmax(-1), (teacher.double() / temperature).softmax(-1)
    return [(a[:, None] - b[None]).abs().sum(-1) for a, b in ((p, q), (p, p), (q, q))]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 2, 2), (5, 7, 15), (9, 4, 16), (6, 40, 1300), (3, 2, 40_000)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_distances_and_their_gradients_are_those_of_all_pairs_at_once(shape, dtype, streamed):
    rows, others, classes = shape
    student = logits(1, rows, classes, dtype).requires_grad_()
    teacher = logits(2, others, classes, dtype)
    found = softened_distances(student, teacher, 2.0, with_self=True, streamed=streamed)
    reference = student.detach().double().requires_grad_()
    expected = naive(reference, teacher, 2.0)
    exact = dtype == torch.float64
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == (torch.float64 if exact else torch.float32)
        torch.testing.assert_close(mine.double(), theirs.detach(), rtol=0, atol=1e-14 if exact else 2e-6)
    weights = [
        torch.rand(part.shape, generator=torch.Generator().manual_seed(3)).double() for part in expected
    ]
    (mine,) = torch.autograd.grad(
        sum((a * b.to(a.dtype)).sum() for a, b in zip(found[:2], weights, strict=False)), student
    )
    (theirs,) = torch.autograd.grad(
        sum((a * b).sum() for a, b in zip(expected[:2], weights, strict=False)), reference
    )
    assert mine.dtype == dtype
    digits = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    assert float((mine.double() - theirs).norm()) <= digits * float(theirs.norm()) + 1e-7


def test_a_large_vocabulary_keeps_five_digits_where_cdist_keeps_three():
    student, teacher = logits(4, 3, 152_064) / 3, logits(5, 3, 152_064) / 3
    found, _, _ = softened_distances(student, teacher, 1.0, with_self=False, streamed=False)
    torch.testing.assert_close(found.double(), naive(student, teacher, 1.0)[0], rtol=0, atol=5e-6)


def sparse_teacher(rows: int, classes: int, kept: int, below: float) -> torch.Tensor:
    teacher = torch.full((rows, classes), below)
    for row, places in enumerate(
        torch.rand(rows, classes, generator=torch.Generator().manual_seed(6)).topk(kept).indices
    ):
        teacher[row, places] = torch.randn(kept, generator=torch.Generator().manual_seed(row))
    return teacher


@pytest.mark.parametrize("below", [-torch.inf, -1e4])
def test_classes_that_no_teacher_row_can_produce_are_not_looked_at_and_nothing_changes(below, monkeypatch):
    teacher = sparse_teacher(4, 3000, 20, below)
    student = logits(7, 5, 3000).requires_grad_()
    seen = []

    def watched(p, q):
        seen.append(p.shape[1])
        return overlap(p, q)

    monkeypatch.setattr(softened, "overlap", watched)
    found, own, teachers = softened_distances(student, teacher, 2.0, with_self=True, streamed=False)
    assert seen[0] <= 80
    expected = naive(student.detach(), teacher, 2.0)
    for mine, theirs in zip((found, own, teachers), expected, strict=True):
        torch.testing.assert_close(mine.double().detach(), theirs, rtol=0, atol=2e-6)
    (sparse,) = torch.autograd.grad((found * found).sum() + own.sin().sum(), student)
    monkeypatch.setattr(softened, "_SPARSE", 10**9)
    dense_found, dense_own, _ = softened_distances(student, teacher, 2.0, with_self=True, streamed=False)
    (dense,) = torch.autograd.grad((dense_found * dense_found).sum() + dense_own.sin().sum(), student)
    assert seen[-1] == 3000
    torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_sparse_teachers_gradient_is_that_of_all_pairs_at_once(dtype):
    teacher = sparse_teacher(4, 3000, 20, -torch.inf).to(dtype)
    student = logits(7, 5, 3000, dtype).requires_grad_()
    weights = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)).double()
    found, _, _ = softened_distances(student, teacher, 2.0, with_self=False, streamed=False)
    (mine,) = torch.autograd.grad((found * weights.to(found.dtype)).sum(), student)
    reference = student.detach().double().requires_grad_()
    (theirs,) = torch.autograd.grad((naive(reference, teacher, 2.0)[0] * weights).sum(), reference)
    assert mine.dtype == dtype
    digits = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    assert float((mine.double() - theirs).norm()) <= digits * float(theirs.norm())


@pytest.mark.parametrize("block", [2**18, 2**9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_that_share_few_of_their_classes_are_looked_at_one_by_one(dtype, block, monkeypatch):
    monkeypatch.setitem(softened._BLOCK, "cpu", block)  # all student rows at once, or a few at a time
    teacher = sparse_teacher(30, 6000, 20, -torch.inf)
    teacher[3, 50:90] = torch.randn(40, generator=torch.Generator().manual_seed(1))  # rows of unequal numbers
    student = logits(7, 25, 6000, dtype).requires_grad_()
    with torch.no_grad():
        student[0] = student[0].where(teacher[5] == -torch.inf, teacher[5].to(dtype))
        student[1] = teacher[5].to(dtype)  # ties, and classes that the student cannot produce
    teacher = teacher.to(dtype)
    looked_at = []
    monkeypatch.setattr(softened, "overlap", lambda p, q: looked_at.append(p.shape) or overlap(p, q))
    found, _, _ = softened_distances(student, teacher, 2.0, with_self=False, streamed=False)
    assert not looked_at
    reference = student.detach().double().requires_grad_()
    expected = naive(reference, teacher, 2.0)[0]
    exact = dtype == torch.float64
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-14 if exact else 2e-6)
    weights = torch.rand(25, 30, generator=torch.Generator().manual_seed(1)).double()
    (mine,) = torch.autograd.grad((found * weights.to(found.dtype)).sum(), student)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), reference)
    assert mine.dtype == dtype
    digits = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    assert float((mine.double() - theirs).norm()) <= digits * float(theirs.norm())


def test_a_teacher_that_uses_most_classes_is_computed_in_full(monkeypatch):
    looked_at = []
    monkeypatch.setattr(softened, "overlap", lambda p, q: looked_at.append(p.shape[1]) or overlap(p, q))
    softened_distances(logits(8, 3, 3000), logits(9, 3, 3000), 1.0, with_self=False, streamed=False)
    assert looked_at == [3000]


def test_a_nan_in_the_teacher_is_not_taken_for_an_unused_class():
    teacher = sparse_teacher(4, 3000, 20, -torch.inf)
    teacher[2, 17] = torch.nan
    found, _, _ = softened_distances(logits(7, 5, 3000), teacher, 1.0, with_self=False, streamed=False)
    assert bool(found[:, 2].isnan().all())


@pytest.mark.parametrize("shape", [(4, 3, 20), (3, 70, 1200), (5, 5, 5)])
def test_a_gpus_way_to_the_gradient_is_the_cpus(shape):
    rows, others, classes = shape
    p, q = logits(1, rows, classes).softmax(-1), logits(2, others, classes).softmax(-1)
    q[0] = p[0]  # ties
    pull = torch.randn(rows, others, generator=torch.Generator().manual_seed(0))
    expected = ((p[:, None] - q[None]).sign() * pull[:, :, None]).sum(1)
    for way in (distance_pull, tiled_pull):
        torch.testing.assert_close(way(pull, p, q), expected, rtol=1e-5, atol=1e-5)


def test_half_of_the_pairs_is_enough_for_a_clouds_overlap_with_itself():
    for rows, classes in ((1, 20), (7, 2000), (300, 600)):
        p = logits(3, rows, classes).softmax(-1)
        torch.testing.assert_close(self_overlap(p), overlap(p, p), rtol=1e-6, atol=1e-7)
        assert torch.equal(self_overlap(p), self_overlap(p).T)


def test_low_memory_keeps_nothing_but_the_students_logits_for_the_backward_pass():
    student, teacher = logits(1, 6, 5000).requires_grad_(), logits(2, 6, 5000)
    for streamed, largest in ((True, 6 * 5000), (False, 3 * 6 * 5000)):
        kept = []

        def keep(tensor, kept=kept):
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            softened_distances(student, teacher, 2.0, with_self=False, streamed=streamed)
        assert sum(kept) == largest


@pytest.mark.parametrize("cost", [squared_euclidean, cosine])
def test_nearly_equal_rows_keep_their_digits(cost):
    generator = torch.Generator().manual_seed(11)
    p = torch.rand(6, 500, generator=generator).softmax(-1)
    for step in (1e-3, 1e-5, 1e-7):
        q = p * (1 + step * torch.randn(6, 500, generator=generator))
        difference = p.double()[:, None] - q.double()[None]
        expected = (difference**2).sum(-1)
        if cost is cosine:
            unit_p, unit_q = (part.double() / part.double().norm(dim=-1, keepdim=True) for part in (p, q))
            expected = ((unit_p[:, None] - unit_q[None]) ** 2).sum(-1) / 2
        # The cosine's rows are rounded to unit length first, which moves each by 1e-7 of itself.
        slack = 0 if cost is squared_euclidean else 1e-13
        torch.testing.assert_close(cost(p, q).double(), expected, rtol=2e-3, atol=slack)
    assert float(cost(p, p).diagonal().abs().amax()) == 0


@pytest.mark.parametrize("cost", [manhattan, squared_euclidean, cosine])
def test_costs_have_two_derivatives_on_both_sides(cost):
    generator = torch.Generator().manual_seed(12)
    for classes in (3, 17):
        p, q = (
            torch.rand(n, classes, generator=generator, dtype=torch.float64).requires_grad_() for n in (2, 3)
        )
        assert torch.autograd.gradcheck(cost, (p, q))
        assert torch.autograd.gradgradcheck(cost, (p, q))
