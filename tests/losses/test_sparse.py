"""Teachers of which a part is known: the most likely classes, exactly, or a sample, without bias."""

from dataclasses import replace

import pytest
import torch
from distill.losses.divergences import ghost_token_kl
from distill.losses.divergences.head import classes_of_head, head
from distill.losses.sparse import most_likely, sampled

from distill.losses import ForwardKL, GhostTokenKL, Rows, SampledTargets, SparseTeacher


def random_logits(rows: int = 6, classes: int = 40) -> torch.Tensor:
    return 2 * torch.randn(2, rows, classes, generator=torch.Generator().manual_seed(0)).double()


def as_dense(sparse: SparseTeacher, classes: int) -> torch.Tensor:
    return torch.zeros(len(sparse), classes, dtype=torch.float64).scatter_add(
        -1, sparse.index, sparse.probability.double()
    )


def gradient(loss, rows: Rows) -> torch.Tensor:
    leaf = rows.student.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(replace(rows, student=leaf)).sum(), leaf)
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kept", [1, 5, 39, 40])
def test_stored_classes_give_what_the_whole_teacher_gives(kept, temperature):
    student, teacher = random_logits()
    loss = GhostTokenKL(kept=kept, temperature=temperature)
    whole = Rows(student=student, teacher=teacher)
    stored = Rows(student=student, sparse=most_likely(teacher, kept=kept, temperature=temperature))
    torch.testing.assert_close(loss(stored), loss(whole), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient(loss, stored), gradient(loss, whole), rtol=1e-10, atol=1e-12)


def test_padding_counts_for_nothing_whatever_class_it_names():
    student, teacher = random_logits()
    kept = most_likely(teacher, kept=4)
    padded = SparseTeacher(
        torch.cat([kept.index, torch.tensor([[-1, 10**6, 3]]).expand(6, 3)], 1),
        torch.cat([kept.probability, torch.zeros(6, 3, dtype=torch.float64)], 1),
    )
    for loss in (GhostTokenKL(kept=4), SampledTargets()):
        plain, with_padding = (Rows(student=student, sparse=sparse) for sparse in (kept, padded))
        torch.testing.assert_close(loss(with_padding), loss(plain), rtol=1e-12, atol=0)
        torch.testing.assert_close(
            gradient(loss, with_padding), gradient(loss, plain), rtol=1e-12, atol=1e-15
        )


def plain_ghost_token(student: torch.Tensor, sparse: SparseTeacher) -> torch.Tensor:
    """The definition on logarithms, for distinct classes of positive probability."""
    log_q = student.log_softmax(-1)
    rest_p = 1 - sparse.probability.sum(-1)
    others = torch.zeros_like(student).scatter(-1, sparse.index, -torch.inf)
    log_rest_q = (log_q + others).logsumexp(-1)
    p = sparse.probability
    return (p * (p.log() - log_q.gather(-1, sparse.index))).sum(-1) + rest_p * (rest_p.log() - log_rest_q)


def derivatives(loss, student: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Value, gradient, and the derivative of the gradient along a direction."""
    leaf = student.clone().requires_grad_()
    values = loss(leaf)
    (pull,) = torch.autograd.grad(values.sum(), leaf, create_graph=True)
    direction = torch.linspace(-1, 1, student.numel(), dtype=student.dtype).view_as(student)
    (bend,) = torch.autograd.grad((pull * direction).sum(), leaf)
    return values.detach(), pull.detach(), bend


# Of the merged classes: how far below the kept ones. 40 nats: their sum has all its digits in float32. 50: its square has
# not. 100: it has lost some. 120, and 800 in float64: nothing is left of it.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0, 40, 50, 100, 120, 800])
def test_a_student_sure_of_the_kept_classes_is_pulled_back(gap, dtype):
    student, teacher = random_logits()
    kept = most_likely(teacher, kept=5)
    student = (student - gap).scatter(-1, kept.index, student.gather(-1, kept.index)).to(dtype)
    sparse = SparseTeacher(kept.index, kept.probability.to(dtype))
    ours = derivatives(lambda leaf: GhostTokenKL()(Rows(student=leaf, sparse=sparse)), student)
    exact = SparseTeacher(kept.index, sparse.probability.double())
    right = derivatives(lambda leaf: plain_ghost_token(leaf, exact), student.double())
    rtol = 1e-4 if dtype == torch.float32 else 1e-11
    for mine, theirs in zip(ours, right, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=rtol, atol=rtol / 100)


@pytest.mark.parametrize("gap", [0, 50, 800])
def test_looking_at_the_numbers_changes_nothing_but_the_time(gap, monkeypatch):
    student, teacher = random_logits()
    kept = most_likely(teacher, kept=5)
    student[::2] -= gap
    student = student.scatter(-1, kept.index, random_logits()[0].gather(-1, kept.index))

    def found() -> tuple[torch.Tensor, ...]:
        return derivatives(lambda leaf: GhostTokenKL()(Rows(student=leaf, sparse=kept)), student)

    looked = found()
    monkeypatch.setattr(ghost_token_kl, "_rows_where", lambda condition: slice(None))
    for mine, theirs in zip(looked, found(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


def test_a_teacher_of_which_nothing_was_kept_asks_for_nothing():
    student, _ = random_logits()
    nothing = SparseTeacher(torch.zeros(6, 3, dtype=torch.long), torch.zeros(6, 3))
    values, pull, bend = derivatives(lambda leaf: GhostTokenKL()(Rows(student=leaf, sparse=nothing)), student)
    for found in (values, pull, bend):
        torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kept", [1, 3, 7, 12])
def test_the_numbers_of_tied_classes_do_not_matter(kept):
    generator = torch.Generator().manual_seed(4)
    student, teacher = torch.randint(-2, 3, (2, 50, 12), generator=generator).double()
    order = torch.randperm(12, generator=generator)
    loss = GhostTokenKL(kept=kept)
    rows = Rows(student=student, teacher=teacher)
    moved = Rows(student=student[:, order], teacher=teacher[:, order])
    torch.testing.assert_close(loss(moved), loss(rows), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gradient(loss, moved), gradient(loss, rows)[:, order], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kept", [1, 3, 7, 12, 20])
def test_the_classes_of_the_head_are_those_that_the_head_is_made_of(kept):
    generator = torch.Generator().manual_seed(5)
    q, p = torch.randint(-2, 3, (2, 50, 12), generator=generator).double().softmax(-1)
    p[:, 3] = 0
    index, in_head = classes_of_head(p, q, kept)
    members = min(kept, 12)
    least = p.topk(members).values[:, -1:]
    expected = head(p, q, least, torch.full((50, 1), members)) * (p > 0)
    assert torch.equal(torch.zeros_like(p).scatter_add(-1, index, in_head) * (p > 0), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_probabilities_of_half_precision_logits_are_float32(dtype):
    logits = torch.tensor([[6e4, 5.9e4, -6e4], [0.3, 0.1, 0.2]], dtype=dtype)
    for found in (most_likely(logits, kept=2), sampled(logits, samples=2)):
        assert found.probability.dtype == torch.float32
    torch.testing.assert_close(
        most_likely(logits, kept=3).probability[1], logits.double().softmax(-1)[1, [0, 2, 1]].float()
    )


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_draws_have_the_teacher_as_their_mean(power):
    teacher = torch.tensor([[2.0, 1.0, 0.0, -3.0, -torch.inf], [0.0, 0.0, 5.0, 1.0, 1.0]]).double()
    repeats, samples = 20_000, 3
    generator = torch.Generator().manual_seed(0)
    drawn = sampled(
        teacher.repeat(repeats, 1), samples=samples, temperature=2.0, power=power, generator=generator
    )
    dense = as_dense(drawn, 5).view(repeats, 2, 5)
    p = (teacher / 2).softmax(-1)
    proposal = p**power / (p**power).sum(-1, keepdim=True)
    # Of one draw: p/proposal with probability proposal. Five standard errors of the mean of them all.
    variance = (p**2 / proposal.clamp(min=1e-300) - p**2) / samples / repeats
    assert bool(((dense.mean(0) - p).abs() <= 5 * variance.sqrt() + 1e-12).all())
    assert bool((dense[..., 4][:, 0] == 0).all())
    if power == 1:
        torch.testing.assert_close(dense.sum(-1), torch.ones(repeats, 2).double(), rtol=1e-12, atol=0)


def test_each_class_is_drawn_into_one_entry():
    drawn = sampled(torch.zeros(50, 3), samples=20, generator=torch.Generator().manual_seed(1))
    for classes, probabilities in zip(drawn.index, drawn.probability, strict=True):
        real = classes[probabilities > 0]
        assert len(real.unique()) == len(real)


def test_draws_reach_classes_that_float32_running_sums_lose():
    logits = torch.full((1, 100_001), -20.0)
    logits[0, 0] = 0.0
    tail = float(logits.double().softmax(-1)[0, 1:].sum())
    drawn = sampled(logits.expand(100, -1), samples=8000, generator=torch.Generator().manual_seed(2))
    missed = 1 - float(as_dense(drawn, 100_001)[:, 0].mean())
    assert missed == pytest.approx(tail, rel=0.2)


def test_the_sampled_gradient_is_the_kls_on_average_and_the_value_is_a_kl_to_the_draws():
    student, teacher = random_logits(rows=1, classes=6)
    torch.manual_seed(0)
    many = Rows(student=student.repeat(20_000, 1), teacher=teacher.repeat(20_000, 1))
    loss = SampledTargets(samples=10)
    pulls = gradient(loss, many)
    expected = gradient(ForwardKL(), Rows(student=student, teacher=teacher))
    error = pulls.std(0) / 20_000**0.5
    assert bool(((pulls.mean(0) - expected[0]).abs() <= 5 * error).all())

    drawn = sampled(teacher, samples=10, generator=torch.Generator().manual_seed(3))
    p = as_dense(drawn, 6)
    expected = torch.special.xlogy(p, p).sum(-1) - (p * student.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(loss(Rows(student=student, sparse=drawn)), expected, rtol=1e-12, atol=0)


def test_a_seed_gives_the_same_draws_and_another_call_gives_others():
    student, teacher = random_logits()
    rows, loss = Rows(student=student, teacher=teacher), SampledTargets(samples=4)
    torch.manual_seed(5)
    first, other = loss(rows), loss(rows)
    torch.manual_seed(5)
    assert torch.equal(loss(rows), first)
    assert not torch.equal(first, other)


def test_a_sampled_loss_differentiates_the_draws_it_was_valued_at():
    student, teacher = random_logits()
    leaf = student.clone().requires_grad_()
    mean = SampledTargets(samples=4)(Rows(student=leaf, teacher=teacher)).sum()
    (plain,) = torch.autograd.grad(mean, leaf, retain_graph=True)
    kept = plain.clone()
    (again,) = torch.autograd.grad(mean, leaf, create_graph=True)
    torch.testing.assert_close(again.detach(), kept, rtol=1e-12, atol=1e-15)


def test_a_masked_row_may_hold_any_index():
    student, teacher = random_logits(rows=3)
    kept = most_likely(teacher, kept=4)
    index = kept.index.clone()
    index[1] = -7
    rows = Rows(
        student=student, sparse=SparseTeacher(index, kept.probability), weight=torch.tensor([1.0, 0.0, 1.0])
    )
    whole = Rows(student=student, sparse=kept)
    for loss in (GhostTokenKL(kept=4), SampledTargets()):
        assert torch.equal(loss(rows)[::2], loss(whole)[::2])
        leaf = student.clone().requires_grad_()
        live = replace(rows, student=leaf)
        (pull,) = torch.autograd.grad(live.mean(loss(live)), leaf, create_graph=True)
        assert bool((pull[1] == 0).all())


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"same shape \(N, K\), got \(2, 3\) and \(2, 4\)"):
        SparseTeacher(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 4))
    with pytest.raises(TypeError, match="index must hold integers"):
        SparseTeacher(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(TypeError, match="probability must be floating-point"):
        SparseTeacher(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long))
    sparse = SparseTeacher(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="sparse must have 3 rows, as the student's logits, got 2"):
        Rows(student=torch.zeros(3, 4), sparse=sparse)
    for loss in (GhostTokenKL(), SampledTargets()):
        with pytest.raises(ValueError, match=r"rows\.teacher is None"):
            loss(Rows(student=torch.zeros(3, 4)))
    wrong = SparseTeacher(torch.full((1, 1), 9), torch.ones(1, 1))
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        GhostTokenKL()(Rows(student=torch.zeros(1, 4), sparse=wrong))
