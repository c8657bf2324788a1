"""The loop over materialised logits: any cut gives the same, nothing is held, nothing is overwritten by surprise."""

import gc
import math
import weakref
from dataclasses import replace

import pytest
import torch
from distill.losses.kernels import dense
from distill.losses.kernels.dense import row_values

from distill.losses import (
    ForwardKL,
    Labels,
    ReverseKL,
    Rows,
    Sinkhorn,
)


def random_rows(rows: int = 13, classes: int = 50, dtype: torch.dtype = torch.float32) -> Rows:
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, rows, classes, generator=generator)
    return Rows(
        student=student.to(dtype),
        teacher=teacher.to(dtype),
        label=torch.randint(classes, (rows,), generator=generator),
        weight=torch.arange(rows) % 3 / 2.0,
    )


def value_and_gradient(loss, rows: Rows, overwrite: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = rows.student.clone().requires_grad_()
    live = replace(rows, student=leaf * 1)
    values = row_values(loss, live, overwrite=overwrite)
    (gradient,) = torch.autograd.grad(live.mean(values), leaf)
    return values.detach(), gradient


def test_the_cut_into_buffers_changes_nothing(row_wise_loss, monkeypatch):
    rows = random_rows()
    whole = value_and_gradient(row_wise_loss, rows)
    for buffer_rows in (1, 4, 7, len(rows)):
        monkeypatch.setitem(dense._BUFFER_BYTES, "cpu", buffer_rows * 50 * 4)
        for mine, theirs in zip(value_and_gradient(row_wise_loss, rows), whole, strict=True):
            assert torch.equal(mine, theirs)


def test_overwriting_gives_the_same_and_leaves_the_gradient_behind(row_wise_loss):
    rows = random_rows()
    values, gradient = value_and_gradient(row_wise_loss, rows)
    leaf = rows.student.clone().requires_grad_()
    logits = leaf * 1
    live = replace(rows, student=logits)
    overwritten = row_values(row_wise_loss, live, overwrite=True)
    assert torch.equal(overwritten.detach(), values)
    live.mean(overwritten).backward()
    assert torch.equal(leaf.grad, gradient)
    assert torch.equal(logits.detach(), gradient)


def test_a_second_pass_through_a_retained_graph_computes_again():
    rows = random_rows()
    leaf = rows.student.clone().requires_grad_()
    mean = rows.mean(ForwardKL()(replace(rows, student=leaf)))
    (first,) = torch.autograd.grad(mean, leaf, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(mean, leaf)
    assert torch.equal(second, kept)
    assert torch.equal(first, kept)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(mean, leaf)


def test_the_differentiable_gradient_is_the_plain_one(row_wise_loss):
    rows = random_rows(dtype=torch.float64)
    leaf = rows.student.clone().requires_grad_()
    mean = rows.mean(row_wise_loss(replace(rows, student=leaf)))
    (differentiable,) = torch.autograd.grad(mean, leaf, create_graph=True)
    _, plain = value_and_gradient(row_wise_loss, rows)
    assert differentiable.requires_grad
    torch.testing.assert_close(differentiable.detach(), plain, rtol=1e-12, atol=1e-15)


def test_a_teacher_in_inference_mode_is_any_other_teacher(row_wise_loss):
    rows = random_rows(dtype=torch.float64)
    with torch.inference_mode():
        detached = rows.teacher.clone()
    leaf = rows.student.clone().requires_grad_()
    mean = rows.mean(row_wise_loss(replace(rows, student=leaf, teacher=detached)))
    (plain,) = torch.autograd.grad(mean, leaf, retain_graph=True)
    (differentiable,) = torch.autograd.grad(mean, leaf, create_graph=True)
    assert torch.equal(plain, value_and_gradient(row_wise_loss, rows)[1])
    torch.testing.assert_close(differentiable.detach(), plain, rtol=1e-12, atol=1e-15)
    torch.autograd.grad(differentiable.square().sum(), leaf)


def test_overwritten_logits_allow_one_pass_and_say_so():
    rows = random_rows()
    for create_graph in (False, True):
        leaf = rows.student.clone().requires_grad_()
        mean = rows.mean(row_values(ForwardKL(), replace(rows, student=leaf * 1), overwrite=True))
        if not create_graph:
            torch.autograd.grad(mean, leaf, retain_graph=True)
        with pytest.raises(RuntimeError, match="one backward pass and no second derivative"):
            torch.autograd.grad(mean, leaf, create_graph=create_graph)


def test_autograd_notices_an_operation_that_still_needs_the_overwritten_logits():
    rows = random_rows()
    leaf = rows.student.clone().requires_grad_()
    capped = 30 * leaf.tanh()
    row_values(ForwardKL(), replace(rows, student=capped), overwrite=True).sum().backward()
    capped = leaf.tanh()
    values = row_values(ForwardKL(), replace(rows, student=capped), overwrite=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        values.sum().backward()


def test_logits_that_must_not_be_overwritten_are_refused():
    rows = random_rows()
    leaf = rows.student.clone().requires_grad_()
    both = torch.stack([leaf, leaf])
    for student, teacher, message in (
        (leaf, rows.teacher, "leaf of the graph"),
        (leaf.half(), rows.teacher, "float16"),
        ((leaf[:1] * 1).expand(13, 50), rows.teacher, r"not apart in memory, strides \(0, 1\)"),
        ((leaf[:, :1] * 1).expand(13, 50), rows.teacher, r"not apart in memory, strides \(1, 0\)"),
        (both[0], both[1], "share memory"),
    ):
        with pytest.raises(ValueError, match=message):
            row_values(ForwardKL(), replace(rows, student=student, teacher=teacher), overwrite=True)


def test_logits_without_gradient_are_left_alone():
    rows = random_rows()
    before = rows.student.clone()
    values = row_values(ForwardKL(), rows, overwrite=True)
    assert torch.equal(rows.student, before)
    assert torch.equal(values, ForwardKL()(rows))


def test_small_derivatives_of_float16_logits_survive_a_loss_scale():
    student = torch.tensor([[0.0, -17.0]], dtype=torch.float16, requires_grad=True)
    teacher = torch.tensor([[0.0, -torch.inf]])
    scaled = 65536 * ForwardKL()(Rows(student=student, teacher=teacher)).sum()
    scaled.backward()
    assert float(student.grad[0, 1]) == pytest.approx(65536 * math.exp(-17), rel=1e-3)


def test_the_graph_lets_go_of_the_logits_after_the_backward_pass():
    rows = random_rows()
    leaf = rows.student.clone().requires_grad_()
    logits = leaf * 1
    seen = weakref.ref(logits)
    mean = rows.mean(ForwardKL()(replace(rows, student=logits)))
    mean.backward()
    del logits
    gc.collect()
    assert seen() is None
    assert mean.requires_grad


def test_a_total_runs_through_the_same_loop():
    rows = random_rows()
    total = 0.3 * ForwardKL(temperature=2.0) + 0.7 * Labels() + ReverseKL()
    for mine, theirs in zip(value_and_gradient(total, rows), _by_terms(total, rows), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match="Sinkhorn is not row-wise"):
        row_values(ForwardKL() + Sinkhorn(), rows)


def _by_terms(total, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = rows.student.clone().requires_grad_()
    values = total(replace(rows, student=leaf))
    (gradient,) = torch.autograd.grad(rows.mean(values), leaf)
    return values.detach(), gradient


def test_a_large_vocabulary_in_bfloat16_agrees_with_float64_on_the_same_numbers(row_wise_loss):
    generator = torch.Generator().manual_seed(1)
    student, teacher = (4 * torch.randn(2, 2, 152_064, generator=generator)).bfloat16()
    label = torch.tensor([7, 152_063])
    coarse = Rows(student=student, teacher=teacher, label=label)
    exact = Rows(student=student.double(), teacher=teacher.double(), label=label)
    values = row_wise_loss(coarse)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), row_wise_loss(exact), rtol=5e-5, atol=1e-6)
