"""What the batch-wise loss says about groups, weights and convergence."""

from dataclasses import replace

import pytest
import torch
from distill.losses.transport.problem import TransportProblem
from distill.losses.transport.solve import solve

from distill.losses import Rows, Sinkhorn


def random_rows(rows: int, classes: int = 3, seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return Rows(student=student, teacher=teacher)


def test_groups_are_separate_problems_wherever_their_rows_stand():
    rows = replace(random_rows(7), group=torch.tensor([5, 2, 5, 2, 2, 5, 9]))
    values = Sinkhorn()(rows)
    for group in (2, 5, 9):
        alone = rows.select(rows.group == group)
        assert torch.equal(values[rows.group == group], Sinkhorn()(alone))


def test_group_size_makes_groups_of_consecutive_rows_where_none_are_given():
    rows = random_rows(5)
    explicit = replace(rows, group=torch.tensor([0, 0, 1, 1, 2]))
    assert torch.equal(Sinkhorn(group_size=2)(rows), Sinkhorn()(explicit))
    assert torch.equal(Sinkhorn(group_size=2)(explicit), Sinkhorn()(explicit))
    assert not torch.equal(Sinkhorn(group_size=2)(rows), Sinkhorn()(rows))


def test_permuting_the_students_rows_changes_nothing():
    rows = random_rows(6)
    permuted = replace(rows, student=rows.student.flip(0))
    for loss in (Sinkhorn(), Sinkhorn(debias=False)):
        torch.testing.assert_close(
            permuted.mean(loss(permuted)), rows.mean(loss(rows)), rtol=1e-12, atol=1e-14
        )


def test_the_weighted_mean_of_the_values_is_the_cost_of_the_plan():
    rows = replace(random_rows(6), weight=torch.tensor([1.0, 2.0, 0.0, 0.5, 4.0, 1.0]).double())
    kept = rows.select(rows.weight > 0)
    mass = kept.weight / kept.weight.sum()
    p, q = ((part / 2).softmax(-1) for part in (kept.student, kept.teacher))
    cost = (p[:, None] - q[None]).abs().sum(-1)
    result = solve(TransportProblem(cost, mass, mass, 0.1))
    torch.testing.assert_close(rows.mean(Sinkhorn(debias=False)(rows)), result.cost, rtol=1e-13, atol=0)


def test_the_cost_does_not_grow_with_the_batch():
    rows = random_rows(4)
    four_times = Rows(student=rows.student.repeat(4, 1), teacher=rows.teacher.repeat(4, 1))
    for loss in (Sinkhorn(), Sinkhorn(debias=False)):
        torch.testing.assert_close(
            four_times.mean(loss(four_times)), rows.mean(loss(rows)), rtol=1e-12, atol=1e-14
        )


def test_an_unconverged_solve_shows_in_the_diagnostics():
    rows = replace(random_rows(8, classes=2), group=torch.tensor([0, 0, 0, 0, 1, 1, 1, 2]))
    _, hasty = Sinkhorn(epsilon=0.01, iterations=1).evaluate(rows)
    _, patient = Sinkhorn(epsilon=0.1, iterations=2000, tolerance=1e-3).evaluate(rows)
    assert float(hasty["marginal_error"]) > 0.05
    assert float(hasty["converged"]) == pytest.approx(1 / 3)  # the group of one row cannot go wrong
    assert float(patient["marginal_error"]) < 1e-3
    assert float(patient["converged"]) == 1


def test_a_result_says_whether_it_converged():
    rows = random_rows(5)
    cost = (rows.student[:, None] - rows.teacher[None]).abs().sum(-1) / 10
    fifth = torch.full((5,), 0.2, dtype=torch.float64)
    hasty = solve(TransportProblem(cost, fifth, fifth, 0.01), iterations=1, tolerance=1e-3)
    patient = solve(TransportProblem(cost, fifth, fifth, 0.1), iterations=3000, tolerance=1e-9)
    assert (hasty.iterations, bool(hasty.converged)) == (1, False)
    # What is misplaced may come up to the tolerance.
    problem = TransportProblem(cost, fifth, fifth, 0.01)
    assert bool(solve(problem, iterations=1, tolerance=float(hasty.error)).converged)
    assert (patient.iterations, bool(patient.converged)) == (3000, True)
    f, g = patient.potentials
    torch.testing.assert_close(((f[:, None] + g[None] - cost) / 0.1).exp(), patient.plan, rtol=1e-10, atol=0)


def test_a_problem_refuses_marginals_that_do_not_fit():
    with pytest.raises(ValueError, match=r"shape \(N, M\) = \(2, 3\) as its marginals, got \(3, 2\)"):
        TransportProblem(torch.zeros(3, 2), torch.ones(2) / 2, torch.ones(3) / 3, 0.1)


@pytest.mark.parametrize("solver", ["distill", "geomloss"])
def test_the_exact_problem_needs_pot(solver):
    half = torch.ones(2) / 2
    with pytest.raises(ValueError, match=r"epsilon 0 .* needs solver 'pot'"):
        solve(TransportProblem(torch.zeros(2, 2), half, half, 0), solver=solver)
    with pytest.raises(ValueError, match=r"epsilon 0 .* needs solver 'pot'"):
        Sinkhorn(epsilon=0, solver=solver)


def test_an_unknown_solver_is_refused():
    half = torch.ones(2) / 2
    with pytest.raises(ValueError, match="solver must be one of 'distill', 'pot', 'geomloss', got 'magic'"):
        solve(TransportProblem(torch.zeros(2, 2), half, half, 0.1), solver="magic")


@pytest.mark.parametrize("epsilon", [1e-4, 1e-2, 10.0])
def test_small_and_large_epsilon_stay_finite_in_float32(epsilon):
    rows = random_rows(6)
    student = rows.student.float().requires_grad_()
    single = Rows(student=student, teacher=rows.teacher.float())
    mean = single.mean(Sinkhorn(epsilon=epsilon, iterations=50)(single))
    mean.backward()
    assert bool(mean.isfinite())
    assert bool(student.grad.isfinite().all())


def test_the_plain_cost_is_at_least_the_exact_one():
    for seed in range(20):
        rows = random_rows(6, seed=seed)
        exact = rows.mean(Sinkhorn(solver="pot", epsilon=0, debias=False)(rows))
        entropic = rows.mean(Sinkhorn(debias=False, iterations=500)(rows))
        assert float(entropic) >= float(exact) - 1e-6


def test_exact_assignment_gives_zero_at_equality_without_debiasing():
    rows = random_rows(5)
    same = replace(rows, teacher=rows.student)
    assert float(same.mean(Sinkhorn(solver="pot", epsilon=0, debias=False)(same))) == 0
