"""Gradients: exact to second order, equal to the published loss's, and never in the teacher."""

from dataclasses import replace

import pytest
import torch

from distill.losses import (
    TAID,
    AdaptiveKL,
    ForwardKL,
    GhostTokenKL,
    JensenShannon,
    Labels,
    MeanSquaredLogits,
    MultiLevelTransport,
    ReverseKL,
    Rows,
    SampledTargets,
    Sinkhorn,
    SkewKL,
    SkewReverseKL,
    SortedTransport,
    SparseTeacher,
    TotalVariation,
)


class Drawn:
    """A sampled loss whose draws are fixed."""

    def __init__(self, loss: SampledTargets):
        self.loss = loss

    def __call__(self, rows: Rows) -> torch.Tensor:
        index = torch.tensor([[0, 1, 0]]).expand(len(rows), 3)
        probability = torch.tensor([[0.3, 0.9, 0.0]], dtype=torch.float64).expand(len(rows), 3)
        return self.loss(replace(rows, teacher=None, sparse=SparseTeacher(index, probability)))


LOSSES = {
    "forward_kl": ForwardKL,
    "reverse_kl": ReverseKL,
    "jensen_shannon": lambda temperature: JensenShannon(temperature=temperature, beta=0.3),
    "labels": lambda temperature: Labels(smoothing=0.1 * temperature),
    "jensen_shannon_0": lambda temperature: JensenShannon(temperature=temperature, beta=0),
    "jensen_shannon_1": lambda temperature: JensenShannon(temperature=temperature, beta=1),
    "skew_kl": lambda temperature: SkewKL(temperature=temperature, skew=0.2, scale="temperature_squared"),
    "skew_reverse_kl": lambda temperature: SkewReverseKL(temperature=temperature, skew=0.2),
    "total_variation": TotalVariation,
    "ghost_token_kl": lambda temperature: GhostTokenKL(temperature=temperature, kept=2),
    "mean_squared_logits": lambda temperature: MeanSquaredLogits(),
    "sampled_targets": lambda temperature: Drawn(SampledTargets(temperature=temperature)),
    "sinkhorn": Sinkhorn,
    "sinkhorn_plain": lambda temperature: Sinkhorn(temperature=temperature, debias=False),
    # Few rounds suffice to see a cost's derivatives; the rounds' own are seen above.
    "sinkhorn_squared": lambda temperature: Sinkhorn(
        temperature=temperature, cost="squared_euclidean", iterations=2
    ),
    "sinkhorn_cosine": lambda temperature: Sinkhorn(temperature=temperature, cost="cosine", iterations=2),
    "sinkhorn_sharp": lambda temperature: Sinkhorn(temperature=temperature, epsilon=0.005, iterations=3),
    "sinkhorn_streamed": lambda temperature: Sinkhorn(temperature=temperature, memory="low", iterations=2),
    "sorted": SortedTransport,
    "sorted_kept": lambda temperature: SortedTransport(temperature=temperature, kept=2),
    "multi_level": lambda temperature: MultiLevelTransport(temperature=temperature, kept=3, iterations=3),
    "sinkhorn_variation": lambda temperature: Sinkhorn(
        temperature=temperature, cost="total_variation", iterations=2
    ),
}


def random_rows(rows: int, classes: int) -> Rows:
    generator = torch.Generator().manual_seed(rows * 100 + classes)
    student, teacher = 2 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return Rows(
        student=student,
        teacher=teacher,
        label=torch.randint(classes, (rows,), generator=generator),
        weight=torch.rand(rows, generator=generator).double() + 0.1,
    )


@pytest.mark.parametrize("temperature", [0.8, 2.0])
@pytest.mark.parametrize("shape", [(1, 2), (3, 4), (4, 3)])
@pytest.mark.parametrize("name", LOSSES)
def test_first_and_second_derivatives_match_finite_differences(name, shape, temperature):
    loss, rows = LOSSES[name](temperature=temperature), random_rows(*shape)

    def values(student):
        return loss(replace(rows, student=student))

    def mean(student):
        return rows.mean(values(student))

    student = rows.student.clone().requires_grad_()
    assert torch.autograd.gradcheck(values, student, eps=1e-6, atol=1e-6)
    assert torch.autograd.gradgradcheck(mean, student, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", [TAID(t=0.3, temperature=2.0), AdaptiveKL(temperature=0.8)], ids=repr)
def test_a_gradient_past_a_constant_has_its_own_derivative(loss):
    # Their gradient is a field of its own, not the slope of the value: autograd must differentiate that field.
    rows = random_rows(3, 4)

    def pull(student):
        (field,) = torch.autograd.grad(loss(replace(rows, student=student)).sum(), student, create_graph=True)
        return field

    student = rows.student.clone().requires_grad_()
    assert torch.autograd.gradcheck(pull, student, eps=1e-6, atol=1e-6)


def test_taid_pulls_towards_its_target_as_it_is_now():
    rows = replace(random_rows(4, 5), weight=None)
    target = ((0.7 * rows.student + 0.3 * rows.teacher) / 2).softmax(-1)
    expected = ((rows.student / 2).softmax(-1) - target) / 2
    torch.testing.assert_close(
        gradient(TAID(t=0.3, temperature=2.0), rows), expected / 4, rtol=1e-12, atol=1e-14
    )


def gradient(loss, rows: Rows) -> torch.Tensor:
    student = rows.student.clone().requires_grad_()
    live = replace(rows, student=student)
    return torch.autograd.grad(live.mean(loss(live)), student)[0]


def test_forward_kl_pulls_by_the_difference_of_the_probabilities():
    rows = replace(random_rows(4, 5), weight=None)
    for temperature in (0.5, 2.0):
        expected = (
            (rows.student / temperature).softmax(-1) - (rows.teacher / temperature).softmax(-1)
        ) / temperature
        torch.testing.assert_close(
            gradient(ForwardKL(temperature=temperature), rows), expected / 4, rtol=1e-12, atol=1e-14
        )


def published_sinkd(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The loss as its authors' code executes it, less the factor 0.001."""
    p, q = (student / 2).softmax(1), (teacher / 2).softmax(1)
    distance = torch.cdist(p, q, p=1)
    kernel = torch.exp(-distance / 0.1)
    for _ in range(20):
        kernel = kernel / kernel.sum(1, keepdim=True)
        kernel = kernel / kernel.sum(0, keepdim=True)
    return (kernel * distance).sum()


@pytest.mark.parametrize("shape", [(4, 2), (16, 3), (8, 200)])
def test_plain_sinkhorn_has_the_published_value_and_gradient(shape):
    rows = replace(random_rows(*shape), weight=None)
    student = rows.student.clone().requires_grad_()
    published = published_sinkd(student, rows.teacher) / len(rows)
    loss = Sinkhorn(debias=False)
    torch.testing.assert_close(rows.mean(loss(rows)), published.detach(), rtol=1e-11, atol=0)
    (expected,) = torch.autograd.grad(published, student)
    torch.testing.assert_close(gradient(loss, rows), expected, rtol=1e-9, atol=1e-13)


def test_debiased_sinkhorn_rests_at_the_teacher_and_the_plain_cost_does_not():
    rows = replace(random_rows(8, 2), weight=None)
    rows = replace(rows, teacher=rows.student)
    assert torch.equal(Sinkhorn()(rows), torch.zeros(8, dtype=torch.float64))
    plain = float(gradient(Sinkhorn(debias=False), rows).norm())
    assert plain > 1e-3
    assert float(gradient(Sinkhorn(), rows).norm()) < plain / 20
    assert float(gradient(Sinkhorn(iterations=500), rows).norm()) < 1e-3 * plain


@pytest.mark.parametrize("solver", ["pot", "geomloss"])
def test_other_solvers_pull_along_their_constant_plan(solver):
    rows = replace(random_rows(5, 3), weight=None)
    loss = Sinkhorn(solver=solver, debias=False, iterations=100)
    student = rows.student.clone().requires_grad_()
    p, q = (student / 2).softmax(-1), (rows.teacher / 2).softmax(-1)
    cost = (p[:, None] - q[None]).abs().sum(-1)
    from distill.losses.transport.problem import TransportProblem
    from distill.losses.transport.solve import solve

    fifth = torch.full((5,), 0.2, dtype=torch.float64)
    plan = solve(TransportProblem(cost.detach(), fifth, fifth, 0.1), iterations=100, solver=solver).plan
    (expected,) = torch.autograd.grad((plan * cost).sum(), student)
    torch.testing.assert_close(gradient(loss, rows), expected, rtol=1e-10, atol=1e-14)


def test_the_exact_assignments_gradient_is_its_slope():
    from distill.losses.laws import law_gradient_is_the_slope

    law_gradient_is_the_slope(Sinkhorn(solver="pot", epsilon=0, debias=False), random_rows(6, 4))


def test_reverse_kl_stays_finite_where_the_teacher_rules_a_class_out():
    teacher = torch.tensor([[0.0, 1.0, -torch.inf]])
    rows = Rows(student=torch.zeros(1, 3), teacher=teacher)
    value, pull = float(ReverseKL()(rows)), gradient(ReverseKL(), rows)
    assert value == pytest.approx(131_008 / 3, rel=1e-4)
    assert bool(pull.isfinite().all())
    assert float(pull[0, 2]) > 0  # descending lowers the logit of the class that must not be
