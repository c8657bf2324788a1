"""The batch-wise loss by each of its ways: NumPy for few classes, whole softmaxes, streamed; and its gradients."""

from dataclasses import replace

import pytest
import torch
from distill.losses.transport import compiled
from distill.losses.transport.few_classes import FewClasses
from distill.losses.transport.groups import Groups

from distill.losses import MultiLevelTransport, Rows, Sinkhorn, SortedTransport


def random_rows(rows: int, classes: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return Rows(student=student.to(dtype), teacher=teacher.to(dtype))


def mean_and_gradient(loss, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    student = rows.student.clone().requires_grad_()
    live = replace(rows, student=student)
    mean = live.mean(loss(live))
    return mean.detach(), torch.autograd.grad(mean, student)[0]


def published(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The official loss, by its definition: marginals of 1, rows then columns, <P, C>; over the batch."""
    p, q = (student / 2).softmax(1), (teacher / 2).softmax(1)
    distance = (p[:, None] - q[None]).abs().sum(-1)
    plan = torch.exp(-distance / 0.1)
    for _ in range(20):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    return (plan * distance).sum() / len(student)


@pytest.mark.parametrize("shape", [(16, 2), (32, 3), (170, 3), (16, 3000), (8, 20_000)])
@pytest.mark.parametrize("memory", ["fast", "low"])
def test_a_float32_gradient_is_the_published_codes_in_float64_to_1e_5(shape, memory):
    rows = random_rows(*shape, dtype=torch.float32)
    student = rows.student.double().requires_grad_()
    expected = published(student, rows.teacher.double())
    (expected_gradient,) = torch.autograd.grad(expected, student)
    mean, gradient = mean_and_gradient(Sinkhorn(debias=False, memory=memory), rows)
    assert float(mean) == pytest.approx(float(expected.detach()), rel=5e-6)
    assert float((gradient.double() - expected_gradient).norm() / expected_gradient.norm()) <= 1e-5


@pytest.mark.parametrize("cost", ["l1", "total_variation"])
@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_few_classes_are_computed_like_many(cost, debias, weighted, monkeypatch):
    for seed, (count, classes) in enumerate([(1, 1), (1, 3), (5, 2), (16, 3), (40, 8)]):
        rows = random_rows(count, classes, seed)
        if weighted:
            rows = replace(rows, weight=torch.rand(count).double() + 0.1)
        loss = Sinkhorn(cost=cost, debias=debias)
        assert FewClasses.fit(loss, rows.student)
        quick, quick_gradient = mean_and_gradient(loss, rows)
        _, quick_diagnostics = loss.evaluate(rows)
        with monkeypatch.context() as patch:
            patch.setattr(FewClasses, "fit", lambda *_: False)
            general, general_gradient = mean_and_gradient(loss, rows)
            _, diagnostics = loss.evaluate(rows)
        torch.testing.assert_close(quick, general, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(quick_gradient, general_gradient, rtol=1e-9, atol=1e-14)
        for name, number in diagnostics.items():
            torch.testing.assert_close(quick_diagnostics[name], number, rtol=1e-10, atol=1e-13)


def test_few_classes_leave_to_the_others_what_they_cannot_do(monkeypatch):
    monkeypatch.setattr(compiled, "_wanted", False)
    rows = random_rows(4, 3, dtype=torch.float32)
    for other in (
        Sinkhorn(epsilon=0.01),
        Sinkhorn(cost="cosine"),
        Sinkhorn(memory="low"),
        Sinkhorn(gradient="implicit"),
        Sinkhorn(solver="pot"),
    ):
        assert not FewClasses.fit(other, rows.student)
    assert not FewClasses.fit(Sinkhorn(), torch.zeros(4, 9))
    assert not FewClasses.fit(Sinkhorn(), torch.zeros(161, 2))


@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streaming_changes_memory_alone(debias, dtype):
    rows = random_rows(6, 5000, dtype=dtype)
    fast, fast_gradient = mean_and_gradient(Sinkhorn(debias=debias), rows)
    low, low_gradient = mean_and_gradient(Sinkhorn(debias=debias, memory="low"), rows)
    torch.testing.assert_close(low, fast, rtol=1e-5, atol=1e-6)
    assert low_gradient.dtype == dtype
    torch.testing.assert_close(low_gradient, fast_gradient, rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize(
    "loss", [Sinkhorn(), Sinkhorn(memory="low"), Sinkhorn(cost="cosine"), MultiLevelTransport()]
)
@pytest.mark.parametrize("classes", [3, 40])
def test_autocast_changes_nothing(loss, classes):
    rows = random_rows(200, classes, dtype=torch.float32)
    mean, gradient = mean_and_gradient(loss, rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, gradient_inside = mean_and_gradient(loss, rows)
    assert torch.equal(inside, mean)
    torch.testing.assert_close(gradient_inside, gradient, rtol=1e-5, atol=1e-9)


def test_values_and_evaluate_agree():
    for loss in (Sinkhorn(), Sinkhorn(memory="low"), MultiLevelTransport(), Sinkhorn(solver="pot")):
        rows = random_rows(6, 3)
        assert torch.equal(loss.values(rows), loss.evaluate(rows)[0])


def test_a_gradient_of_part_of_the_values_is_right():
    """Each row's share has its own gradient, not only their mean."""
    rows = random_rows(5, 3)

    def shares(student):
        return Sinkhorn()(replace(rows, student=student))

    student = rows.student.clone().requires_grad_()
    (found,) = torch.autograd.grad(shares(student)[2], student)
    step = torch.zeros_like(student)
    step[1, 0] = 1e-6
    slope = (shares(rows.student + step)[2] - shares(rows.student - step)[2]) / 2e-6
    assert float(found[1, 0]) == pytest.approx(float(slope), rel=1e-5)


def test_the_envelope_gradient_is_that_of_a_constant_plan():
    rows = random_rows(6, 4)
    _, envelope = mean_and_gradient(Sinkhorn(debias=False, gradient="envelope"), rows)
    _, pots = mean_and_gradient(Sinkhorn(debias=False, solver="pot"), rows)
    _, exact = mean_and_gradient(Sinkhorn(debias=False), rows)
    torch.testing.assert_close(envelope, pots, rtol=1e-8, atol=1e-12)
    assert float((envelope - exact).norm()) > 0.02 * float(exact.norm())


def test_the_implicit_gradient_is_the_exact_one_where_the_diagnostics_say_converged():
    rows = random_rows(6, 4)
    loss = Sinkhorn(gradient="implicit", iterations=5000, epsilon=0.2, tolerance=1e-8)
    assert float(loss.evaluate(rows)[1]["converged"]) == 1
    _, implicit = mean_and_gradient(loss, rows)
    _, exact = mean_and_gradient(replace(loss, gradient="exact"), rows)
    torch.testing.assert_close(implicit, exact, rtol=1e-6, atol=1e-10)
    assert (
        float(Sinkhorn(gradient="implicit", iterations=1, epsilon=0.02).evaluate(rows)[1]["converged"]) == 0
    )


def test_rows_that_do_not_count_are_gone_before_any_cost_is_computed(monkeypatch):
    from distill.losses.transport import softened

    seen = []
    inner = softened._Softened.forward

    def watched(ctx, student, *rest):
        seen.append(len(student))
        return inner(ctx, student, *rest)

    monkeypatch.setattr(softened._Softened, "forward", staticmethod(watched))
    rows = replace(random_rows(9, 20), weight=torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 1, 1]))
    rows = replace(rows, group=torch.tensor([3, 3, 3, 3, 1, 1, 1, 1, 1]))
    values = Sinkhorn()(rows)
    assert seen == [4, 2]
    assert bool((values[rows.weight == 0] == 0).all())


def test_groups_that_stand_together_are_not_copied():
    rows = random_rows(6, 20)
    groups = Groups.of(replace(rows, group=torch.tensor([0, 0, 2, 2, 2, 7])), None)
    assert (groups.order_K, groups.sizes) == (None, (2, 3, 1))
    assert next(iter(groups.split(rows.student))).data_ptr() == rows.student.data_ptr()
    scattered = Groups.of(replace(rows, group=torch.tensor([7, 0, 7, 0, 0, 0])), None)
    assert (scattered.order_K.tolist(), scattered.sizes) == ([1, 3, 4, 5, 0, 2], (4, 2))
    assert Groups.of(rows, 4).sizes == (4, 2)
    assert Groups.of(rows.select(slice(0)), None).sizes == Groups.of(rows.select(slice(0)), 3).sizes == ()
    masked = replace(rows, weight=torch.zeros(6))
    assert Groups.of(masked, None).sizes == ()


def test_exact_transport_is_reached_as_epsilon_vanishes():
    rows = random_rows(7, 4, seed=3)
    exact = float(rows.mean(Sinkhorn(solver="pot", epsilon=0, debias=False)(rows)))
    near = [
        float(rows.mean(Sinkhorn(epsilon=epsilon, iterations=20_000, debias=False)(rows)))
        for epsilon in (0.1, 0.02, 0.005)
    ]
    assert near[0] > near[1] > near[2] > exact - 1e-9
    assert near[2] == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize(
    "loss",
    [
        Sinkhorn(),
        Sinkhorn(memory="low"),
        Sinkhorn(cost="squared_euclidean"),
        Sinkhorn(solver="pot", gradient="implicit"),
        SortedTransport(),
        SortedTransport(kept=2),
        MultiLevelTransport(),
    ],
    ids=repr,
)
def test_a_teacher_in_inference_mode_is_any_other_teacher(loss, classes):
    rows = random_rows(5, classes)
    with torch.inference_mode():
        inferred = rows.teacher.clone()
    mean, gradient = mean_and_gradient(loss, rows)
    inferred_mean, inferred_gradient = mean_and_gradient(loss, replace(rows, teacher=inferred))
    assert torch.equal(inferred_mean, mean)
    assert torch.equal(inferred_gradient, gradient)
    if loss.exact_gradient:
        student = rows.student.clone().requires_grad_()
        live = replace(rows, student=student, teacher=inferred)
        (first,) = torch.autograd.grad(live.mean(loss(live)), student, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), student)
        assert bool(second.isfinite().all())


@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize(
    ("student_dtype", "teacher_dtype"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float64),
        (torch.bfloat16, torch.float64),
        (torch.float64, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "loss",
    [
        Sinkhorn(),
        Sinkhorn(memory="low"),
        Sinkhorn(cost="cosine"),
        Sinkhorn(cost="squared_euclidean"),
        SortedTransport(),
        MultiLevelTransport(),
    ],
    ids=repr,
)
def test_a_teacher_of_another_precision_is_read_in_the_students(loss, classes, student_dtype, teacher_dtype):
    rows = random_rows(6, classes, dtype=student_dtype)
    teacher = rows.teacher.to(teacher_dtype)
    computed_in = torch.float64 if student_dtype == torch.float64 else torch.float32
    mean, gradient = mean_and_gradient(loss, replace(rows, teacher=teacher))
    expected, expected_gradient = mean_and_gradient(loss, replace(rows, teacher=teacher.to(computed_in)))
    assert (mean.dtype, gradient.dtype) == (computed_in, student_dtype)
    torch.testing.assert_close(mean, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-2, atol=1e-7)
