"""Sinkhorn's rounds against POT and its adjoint against autograd, in every way they are done."""

import math

import ot
import pytest
import torch
from distill.losses.transport import plan as plan_module
from distill.losses.transport.plan import fits_scaling
from distill.losses.transport.problem import TransportProblem
from distill.losses.transport.rounds import LARGEST_EXPONENT, log_scale
from distill.losses.transport.solve import solve


def problem(
    seed: int, shape: tuple[int, int], epsilon: float = 0.1, dtype: torch.dtype = torch.float64
) -> TransportProblem:
    generator = torch.Generator().manual_seed(seed)
    cost = 2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    source, target = (torch.rand(n, generator=generator).double() + 0.05 for n in shape)
    return TransportProblem(
        cost.to(dtype), (source / source.sum()).to(dtype), (target / target.sum()).to(dtype), epsilon
    )


def unrolled(given: TransportProblem, iterations: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The plan by plain loops that autograd sees through, and the cost it was made from."""
    cost = given.cost_NM.double().clone().requires_grad_()
    kernel = (-cost / given.epsilon).exp() * given.source_N.double()[:, None] * given.target_M.double()
    for _ in range(iterations):
        kernel = kernel / kernel.sum(1, keepdim=True) * given.source_N.double()[:, None]
        kernel = kernel / kernel.sum(0, keepdim=True) * given.target_M.double()[None, :]
    return kernel, cost


def pulled(given: TransportProblem, iterations: int, gradient: str = "exact") -> torch.Tensor:
    """The gradient of a function of the plan that is not the cost."""
    cost = given.cost_NM.clone().requires_grad_()
    live = TransportProblem(cost, given.source_N, given.target_M, given.epsilon)
    result = solve(live, iterations=iterations, gradient=gradient)
    weights = torch.linspace(-1, 2, cost.numel(), dtype=cost.dtype).reshape(cost.shape).cos()
    (gradient_NM,) = torch.autograd.grad((result.plan * weights).sum() + result.cost, cost)
    return gradient_NM


def expected_pull(given: TransportProblem, iterations: int) -> torch.Tensor:
    plan, cost = unrolled(given, iterations)
    weights = torch.linspace(-1, 2, cost.numel(), dtype=cost.dtype).reshape(cost.shape).cos()
    (gradient_NM,) = torch.autograd.grad((plan * weights).sum() + (plan * cost).sum(), cost)
    return gradient_NM


WAYS = {"numpy": {}, "torch": {"NUMPY_ROWS": 0}, "logarithms": {"LARGEST_EXPONENT": {}}}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    for name, value in WAYS[request.param].items():
        monkeypatch.setattr(plan_module, name, value)
    return request.param


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (6, 1), (4, 7), (9, 9)])
@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_the_adjoint_is_autograd_through_the_rounds(way, shape, iterations):
    for seed in range(5):
        given = problem(seed, shape)
        torch.testing.assert_close(
            pulled(given, iterations), expected_pull(given, iterations), rtol=1e-9, atol=1e-14
        )


def test_the_plan_is_pots_to_nine_digits_and_its_cost_to_ten(way):
    for seed in range(20):
        given = problem(seed, (7, 5))
        ours, pots = solve(given, iterations=20), solve(given, iterations=20, solver="pot")
        torch.testing.assert_close(ours.plan, pots.plan, rtol=0, atol=1e-9)
        torch.testing.assert_close(ours.cost, pots.cost, rtol=0, atol=1e-10)
        for mine, theirs in zip(ours.potentials, pots.potentials, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)


def test_a_vanishing_epsilon_comes_to_the_exact_cost(way):
    given = problem(1, (6, 6), epsilon=0.01)
    exact = ot.emd2(*(part.numpy() for part in (given.source_N, given.target_M, given.cost_NM)))
    found = [
        float(
            solve(
                TransportProblem(given.cost_NM, given.source_N, given.target_M, epsilon), iterations=20_000
            ).cost
        )
        for epsilon in (0.1, 0.03, 0.01)
    ]
    assert found[0] > found[1] > found[2] > exact - 1e-9
    assert found[2] == pytest.approx(exact, abs=0.01 * math.log(36))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_jumps_where_logarithms_take_over(dtype, monkeypatch):
    limit = LARGEST_EXPONENT[dtype]
    largest = 2.0
    at_limit = problem(3, (8, 6), dtype=dtype, epsilon=largest * (1 + 1e-6) / limit)
    cost = at_limit.cost_NM.clone()
    cost[0, 0] = largest
    given = TransportProblem(cost, at_limit.source_N, at_limit.target_M, at_limit.epsilon)
    assert fits_scaling(given)
    assert not fits_scaling(TransportProblem(cost, given.source_N, given.target_M, given.epsilon * 0.99))
    tolerance = {"rtol": 2e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-14}
    for iterations in (1, 20, 200):
        scaled, scaled_pull = solve(given, iterations=iterations), pulled(given, iterations)
        with monkeypatch.context() as patch:
            patch.setattr(plan_module, "LARGEST_EXPONENT", {})
            logged, logged_pull = solve(given, iterations=iterations), pulled(given, iterations)
        torch.testing.assert_close(scaled.plan, logged.plan, **tolerance)
        torch.testing.assert_close(scaled.cost, logged.cost, **tolerance)
        torch.testing.assert_close(
            scaled_pull, logged_pull, rtol=2e-3 if dtype == torch.float32 else 1e-8, atol=1e-5
        )


@pytest.mark.parametrize("gap", [0.0, 1.0])
def test_the_farthest_that_scalings_reach_stays_finite_in_float32(gap):
    """A cost of nothing but 0 and the largest, and weights eight digits apart."""
    generator = torch.Generator().manual_seed(4)
    cost = 2.0 * torch.randint(2, (12, 12), generator=generator).float()
    cost[0] = 2.0
    cost[:, 0] = gap * 2
    mass = 10.0 ** torch.linspace(-8, 0, 12)
    given = TransportProblem(
        cost, mass / mass.sum(), mass.flip(0) / mass.sum(), 2 / LARGEST_EXPONENT[torch.float32]
    )
    assert fits_scaling(given)
    result = solve(given, iterations=500)
    assert bool(result.plan.isfinite().all())
    assert bool(pulled(given, 500).isfinite().all())
    wide = TransportProblem(cost.double(), given.source_N.double(), given.target_M.double(), given.epsilon)
    torch.testing.assert_close(result.plan.double(), solve(wide, iterations=500).plan, rtol=1e-3, atol=1e-7)


def test_a_bound_on_the_costs_decides_without_reading_them():
    spoilt = torch.full((2, 2), torch.nan)
    half = torch.ones(2) / 2
    assert fits_scaling(TransportProblem(spoilt, half, half, 0.1, largest_cost=2.0))
    assert not fits_scaling(TransportProblem(spoilt, half, half, 0.1, largest_cost=9.0))
    assert not fits_scaling(TransportProblem(spoilt, half, half, 0.1))


def test_the_rounds_are_differentiable_twice(way):
    given = problem(5, (3, 4), epsilon=0.3)

    def plan(cost):
        return solve(TransportProblem(cost, given.source_N, given.target_M, 0.3), iterations=4).plan

    cost = given.cost_NM.clone().requires_grad_()
    assert torch.autograd.gradcheck(plan, cost)
    assert torch.autograd.gradgradcheck(plan, cost)


def test_marginals_that_want_a_gradient_get_one():
    given = problem(6, (3, 4), epsilon=0.3)

    def plan(cost, source, target):
        return solve(TransportProblem(cost, source, target, 0.3), iterations=4).plan

    parts = [part.clone().requires_grad_() for part in (given.cost_NM, given.source_N, given.target_M)]
    assert torch.autograd.gradcheck(plan, parts)


def test_the_implicit_gradient_is_the_exact_one_once_converged():
    for seed, shape in enumerate([(1, 1), (5, 5), (4, 7), (8, 2)]):
        given = problem(seed, shape, epsilon=0.2)
        torch.testing.assert_close(
            pulled(given, 3000, "implicit"), pulled(given, 3000), rtol=1e-7, atol=1e-11
        )


def test_the_implicit_gradient_is_another_before():
    given = problem(7, (6, 6), epsilon=0.03)
    assert not bool(solve(given, iterations=2).converged)
    exact, implicit = pulled(given, 2), pulled(given, 2, "implicit")
    assert float((exact - implicit).norm()) > 0.05 * float(exact.norm())


def test_the_envelope_is_the_plan_itself():
    given = problem(8, (5, 4))
    cost = given.cost_NM.clone().requires_grad_()
    result = solve(TransportProblem(cost, given.source_N, given.target_M, 0.1), gradient="envelope")
    (gradient,) = torch.autograd.grad(result.cost, cost)
    assert torch.equal(gradient, result.plan)
    exact = solve(TransportProblem(cost, given.source_N, given.target_M, 0.1))
    assert torch.equal(result.plan, exact.plan.detach())


# geomloss stops short of convergence, however many rounds it is given.
@pytest.mark.parametrize(("solver", "short"), [("pot", 1e-7), ("geomloss", 2e-4)])
def test_another_solvers_plan_takes_the_implicit_gradient_too(solver, short):
    given = problem(9, (5, 5), epsilon=0.3)
    cost = given.cost_NM.clone().requires_grad_()
    live = TransportProblem(cost, given.source_N, given.target_M, 0.3)
    found = solve(live, iterations=2000, solver=solver, gradient="implicit")
    ours = solve(live, iterations=2000)
    torch.testing.assert_close(
        torch.autograd.grad(found.cost, cost)[0],
        torch.autograd.grad(ours.cost, cost)[0],
        rtol=1e-4,
        atol=short,
    )


@pytest.mark.parametrize(
    ("epsilon", "arguments", "message"),
    [
        (
            0.1,
            {"gradient": "unrolled"},
            "gradient must be one of 'exact', 'envelope', 'implicit', got 'unrolled'",
        ),
        (0, {"solver": "pot", "gradient": "implicit"}, "a gradient other than 'implicit'"),
    ],
)
def test_what_cannot_be_solved_is_refused(epsilon, arguments, message):
    given = problem(0, (2, 2), epsilon=epsilon)
    with pytest.raises(ValueError, match=message):
        solve(given, **arguments)


def test_only_the_scalings_are_kept_for_the_backward_pass():
    """Not a matrix a round, as unrolled autograd does."""
    given = problem(10, (40, 40))
    cost = given.cost_NM.clone().requires_grad_()
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _ = solve(TransportProblem(cost, given.source_N, given.target_M, 0.1), iterations=100).plan
        rounds = sum(kept)
        kept.clear()
        log_scale(-cost / 0.1, given.source_N.log(), given.target_M.log(), 100)
    assert rounds <= 3 * 40 * 40
    assert sum(kept) > 100 * 40 * 40
