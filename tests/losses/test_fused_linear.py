"""Hidden states and output matrices in, the same mean and gradients as from materialised logits out."""

from dataclasses import replace

import pytest
import torch
from distill.losses.kernels.fused_linear import Projection, fused_linear_mean
from distill.losses.sparse import most_likely

from distill.losses import (
    ForwardKL,
    GhostTokenKL,
    JensenShannon,
    Labels,
    Rows,
    SampledTargets,
    Sinkhorn,
)

N, V, SMALL, LARGE = 11, 23, 3, 5
ONE_ROW = 2 * V * 8


def parts(dtype: torch.dtype = torch.float64, bias: bool = True) -> tuple[Projection, Projection, dict]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    student = Projection(random(N, SMALL), random(V, SMALL), random(V) if bias else None)
    teacher = Projection(random(N, LARGE), random(V, LARGE), random(V) if bias else None)
    label = torch.randint(V, (N,), generator=generator)
    return student, teacher, {"label": label, "weight": torch.arange(N) % 3 / 2.0}


def tracked(student: Projection) -> tuple[Projection, list[torch.Tensor]]:
    leaves = [
        part.detach().clone().requires_grad_()
        for part in (student.hidden, student.weight, student.bias)
        if part is not None
    ]
    bias = leaves[2] if len(leaves) > 2 else None
    return replace(student, hidden=leaves[0], weight=leaves[1], bias=bias), leaves


def logits(side: Projection) -> torch.Tensor:
    made = side.scale * torch.nn.functional.linear(side.hidden, side.weight, side.bias)
    return made if side.softcap is None else side.softcap * torch.tanh(made / side.softcap)


def materialised(loss, student: Projection, teacher: Projection, extra: dict) -> list[torch.Tensor]:
    live, leaves = tracked(student)
    rows = Rows(student=logits(live), teacher=logits(teacher), label=extra["label"], weight=extra["weight"])
    mean = rows.mean(loss(rows))
    return [mean.detach(), *torch.autograd.grad(mean, leaves)]


@pytest.mark.parametrize("rows_a_block", [1, 4, 100])
def test_mean_and_gradients_are_those_of_materialised_logits(row_wise_loss, rows_a_block):
    loss = 0.3 * row_wise_loss + 0.7 * Labels()
    student, teacher, extra = parts()
    live, leaves = tracked(student)
    mean = fused_linear_mean(loss, live, teacher, **extra, buffer_bytes=rows_a_block * ONE_ROW)
    found = [mean.detach(), *torch.autograd.grad(mean, leaves)]
    for mine, theirs in zip(found, materialised(loss, student, teacher, extra), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("bias", [False, True])
def test_derivatives_match_finite_differences_to_second_order(bias):
    student, teacher, extra = parts(bias=bias)
    _, leaves = tracked(student)

    def mean(*inputs):
        return fused_linear_mean(
            JensenShannon(), Projection(*inputs), teacher, **extra, buffer_bytes=4 * ONE_ROW
        )

    assert torch.autograd.gradcheck(mean, leaves, eps=1e-6, atol=1e-7)
    assert torch.autograd.gradgradcheck(mean, leaves, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_scaled_and_capped_logits(softcap):
    student, teacher, extra = parts()
    student, teacher = replace(student, scale=0.5, softcap=softcap), replace(teacher, scale=3.0, softcap=5.0)
    live, leaves = tracked(student)

    def mean(*inputs):
        side = Projection(*inputs, scale=student.scale, softcap=softcap)
        return fused_linear_mean(ForwardKL(), side, teacher, **extra, buffer_bytes=4 * ONE_ROW)

    found = [mean(*leaves).detach(), *torch.autograd.grad(mean(*leaves), leaves)]
    for mine, theirs in zip(found, materialised(ForwardKL(), student, teacher, extra), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-14)
    assert torch.autograd.gradgradcheck(mean, leaves, eps=1e-6, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found_half = fused_linear_mean(ForwardKL(), live, teacher, **extra)
    torch.testing.assert_close(found_half.double(), found[0], rtol=0.05, atol=0)


def test_stored_classes_take_the_teachers_place():
    student, teacher, extra = parts()
    sparse = most_likely(logits(teacher), kept=4)
    loss = GhostTokenKL(kept=4)
    live, leaves = tracked(student)
    mean = fused_linear_mean(loss, live, sparse, weight=extra["weight"], buffer_bytes=4 * ONE_ROW)
    found = [mean.detach(), *torch.autograd.grad(mean, leaves)]
    for mine, theirs in zip(found, materialised(loss, student, teacher, extra), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    assert float(fused_linear_mean(SampledTargets(samples=4), live, teacher).detach()) > 0


def test_rows_of_weight_0_may_hold_anything():
    student, teacher, extra = parts()
    clean = fused_linear_mean(ForwardKL(), student, teacher, weight=extra["weight"])
    hidden = student.hidden.clone()
    hidden[extra["weight"] == 0] = torch.nan
    live, leaves = tracked(replace(student, hidden=hidden))
    mean = fused_linear_mean(ForwardKL(), live, teacher, weight=extra["weight"])
    mean.backward()
    assert torch.equal(mean.detach(), clean)
    assert bool((leaves[0].grad[extra["weight"] == 0] == 0).all())
    assert bool(leaves[1].grad.isfinite().all())


@pytest.mark.parametrize("rows", [0, 3], ids=["no rows", "all masked"])
def test_a_mean_over_nothing_is_a_zero_with_a_gradient(rows):
    live, leaves = tracked(Projection(torch.ones(rows, 2), torch.ones(4, 2)))
    teacher = Projection(torch.ones(rows, 2), torch.ones(4, 2))
    mean = fused_linear_mean(ForwardKL(), live, teacher, weight=torch.zeros(rows))
    mean.backward()
    assert float(mean.detach()) == 0
    assert all(bool((leaf.grad == 0).all()) for leaf in leaves)


def test_micro_batches_add_up_to_the_batch():
    student, teacher, extra = parts()
    total = float(extra["weight"].sum())
    whole = materialised(ForwardKL(), student, teacher, extra)
    live, leaves = tracked(student)
    for part in (slice(0, 4), slice(4, N)):
        fused_linear_mean(
            ForwardKL(),
            Projection(live.hidden[part], live.weight, live.bias),
            Projection(teacher.hidden[part], teacher.weight, teacher.bias),
            weight=extra["weight"][part],
            total_weight=total,
        ).backward()
    for leaf, theirs in zip(leaves, whole[1:], strict=True):
        torch.testing.assert_close(leaf.grad, theirs, rtol=1e-11, atol=1e-14)


def test_a_second_pass_computes_again_and_a_frozen_matrix_gets_nothing():
    student, teacher, extra = parts()
    hidden = student.hidden.clone().requires_grad_()
    mean = fused_linear_mean(ForwardKL(), replace(student, hidden=hidden), teacher, weight=extra["weight"])
    (first,) = torch.autograd.grad(mean, hidden, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(mean, hidden)
    assert torch.equal(second, kept)
    assert torch.equal(first, kept)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(mean, hidden)
    with torch.no_grad():
        assert torch.equal(
            fused_linear_mean(ForwardKL(), student, teacher, weight=extra["weight"]), mean.detach()
        )


def test_bfloat16_keeps_its_matrix_gradient_in_float32_until_the_end():
    student, teacher, extra = parts(torch.bfloat16)
    live, leaves = tracked(student)
    mean = fused_linear_mean(ForwardKL(), live, teacher, **extra, buffer_bytes=ONE_ROW)
    assert mean.dtype == torch.float32
    found = [mean.detach(), *torch.autograd.grad(mean, leaves)]
    expected = materialised(ForwardKL(), student.to(torch.float64), teacher.to(torch.float64), extra)
    # A logit in bfloat16 is off by half a percent of itself; eleven blocks must not make that more.
    for mine, theirs in zip(found, expected, strict=True):
        error = (mine.double() - theirs).norm() / theirs.norm()
        assert float(error) < 0.02


def test_under_autocast_the_products_are_done_in_its_precision():
    student, teacher, extra = parts(torch.float32)
    live, leaves = tracked(student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean = fused_linear_mean(ForwardKL(), live, teacher, **extra)
    expected = fused_linear_mean(ForwardKL(), student.to(torch.bfloat16), teacher.to(torch.bfloat16), **extra)
    assert torch.equal(mean.detach(), expected)
    mean.backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in leaves)


def test_what_does_not_belong_together_is_named():
    student, teacher, extra = parts()
    for build, error, message in (
        (lambda: Projection(torch.ones(2, 3), torch.ones(4, 5)), ValueError, r"got \(2, 3\) and \(4, 5\)"),
        (
            lambda: Projection(torch.ones(2, 3), torch.ones(4, 3), torch.ones(3)),
            ValueError,
            r"bias must have",
        ),
        (lambda: Projection(torch.ones(2, 3), torch.ones(4, 3).double()), TypeError, "one precision"),
        (lambda: Projection(torch.ones(2, 3), torch.ones(4, 3), softcap=0.0), ValueError, "softcap must be"),
        (lambda: Projection(torch.ones(2, 3).half(), torch.ones(4, 3).half()), TypeError, "float16"),
        (
            lambda: fused_linear_mean(
                ForwardKL(), student, Projection(torch.ones(N, 2), torch.ones(V + 1, 2))
            ),
            ValueError,
            rf"same rows and vocabulary, got \({N}, {V + 1}\) and \({N}, {V}\)",
        ),
        (
            lambda: fused_linear_mean(ForwardKL(), student, teacher, weight=torch.ones(2)),
            ValueError,
            rf"weight must have shape \({N},\), got \(2,\)",
        ),
        (
            lambda: fused_linear_mean(GhostTokenKL(), student, most_likely(torch.ones(2, V), kept=2)),
            ValueError,
            f"teacher has 2 rows, the student {N}",
        ),
        (
            lambda: fused_linear_mean(ForwardKL() + Sinkhorn(), student, teacher, **extra),
            TypeError,
            "Sinkhorn is not row-wise",
        ),
        (lambda: fused_linear_mean(ForwardKL(), student), ValueError, r"rows\.teacher is None"),
    ):
        with pytest.raises(error, match=message):
            build()
