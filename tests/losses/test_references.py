"""Every loss against implementations that share no code with it."""

import math

import ot
import pytest
import torch
from distill.losses.transport.manhattan import manhattan
from distill.losses.transport.problem import COSTS, TransportProblem, cost_matrix
from distill.losses.transport.solve import solve
from scipy.optimize import linear_sum_assignment
from scipy.special import rel_entr, softmax

from distill.losses import (
    TAID,
    AdaptiveKL,
    ForwardKL,
    GhostTokenKL,
    JensenShannon,
    Labels,
    MeanSquaredLogits,
    ReverseKL,
    Rows,
    Sinkhorn,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
)

KINDS = (ForwardKL, ReverseKL, JensenShannon)


def random_rows(seed: int, rows: int = 7, classes: int = 5, spread: float = 3.0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = spread * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    label = torch.randint(classes, (rows,), generator=generator)
    return Rows(
        student=student, teacher=teacher, label=label, weight=torch.rand(rows, generator=generator).double()
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_divergences_agree_with_scipy(temperature):
    rows = random_rows(1)
    p = softmax(rows.teacher.numpy() / temperature, axis=-1)
    q = softmax(rows.student.numpy() / temperature, axis=-1)
    middle = (p + q) / 2
    raw = rows.student.numpy() - rows.teacher.numpy()
    expected = {
        SkewKL: rel_entr(p, 0.1 * p + 0.9 * q).sum(-1),
        SkewReverseKL: rel_entr(q, 0.9 * p + 0.1 * q).sum(-1),
        TotalVariation: abs(p - q).sum(-1) / 2,
        TAID: rel_entr(
            softmax((0.6 * rows.student.numpy() + 0.4 * rows.teacher.numpy()) / temperature, axis=-1), q
        ).sum(-1),
        ForwardKL: rel_entr(p, q).sum(-1),
        ReverseKL: rel_entr(q, p).sum(-1),
        JensenShannon: (rel_entr(p, middle) + rel_entr(q, middle)).sum(-1) / 2,
    }
    for kind, values in expected.items():
        torch.testing.assert_close(
            kind(temperature=temperature)(rows), torch.from_numpy(values), rtol=1e-12, atol=1e-14
        )
    torch.testing.assert_close(
        MeanSquaredLogits()(rows), torch.from_numpy(raw.var(-1) / 2), rtol=1e-12, atol=0
    )


def test_divergences_agree_with_torch_distributions():
    rows = random_rows(2)
    p = torch.distributions.Categorical(logits=rows.teacher)
    q = torch.distributions.Categorical(logits=rows.student)
    torch.testing.assert_close(
        ForwardKL()(rows), torch.distributions.kl_divergence(p, q), rtol=1e-12, atol=1e-14
    )
    torch.testing.assert_close(
        ReverseKL()(rows), torch.distributions.kl_divergence(q, p), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.7])
def test_generalised_jensen_shannon_agrees_with_plain_loops(beta):
    rows = random_rows(3, rows=3)
    for value, z_s, z_t in zip(
        JensenShannon(beta=beta)(rows), rows.student.tolist(), rows.teacher.tolist(), strict=True
    ):
        p = [math.exp(z) / sum(map(math.exp, z_t)) for z in z_t]
        q = [math.exp(z) / sum(map(math.exp, z_s)) for z in z_s]
        m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
        expected = 0.0
        for a, b, c in zip(p, q, m, strict=True):
            expected += beta * a * math.log(a / c) + (1 - beta) * b * math.log(b / c)
        assert float(value) == pytest.approx(expected, rel=1e-11)


def probabilities(logits: list[float]) -> list[float]:
    return [math.exp(z) / sum(map(math.exp, logits)) for z in logits]


@pytest.mark.parametrize("mass", [0.0, 0.4, 0.7, 0.95])
def test_adaptive_kl_agrees_with_plain_loops(mass):
    rows = random_rows(11, spread=1.0)
    loss = AdaptiveKL(head=mass)
    student = rows.student.clone().requires_grad_()
    values = loss(Rows(student=student, teacher=rows.teacher))
    (pulls,) = torch.autograd.grad(values.sum(), student)
    for value, pull, z_s, z_t in zip(
        values.tolist(), pulls, rows.student.tolist(), rows.teacher.tolist(), strict=True
    ):
        p, q = probabilities(z_t), probabilities(z_s)
        order = sorted(range(len(p)), key=lambda v: -p[v])
        head = {v for place, v in enumerate(order) if sum(p[u] for u in order[: place + 1]) <= mass}
        head.add(order[0])
        gaps = [abs(a - b) for a, b in zip(p, q, strict=True)]
        weight = sum(gaps[v] for v in head) / sum(gaps)
        forward = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        reverse = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
        assert value == pytest.approx(weight * forward + (1 - weight) * reverse, rel=1e-11)
        expected = [
            weight * (b - a) + (1 - weight) * b * (math.log(b / a) - reverse)
            for a, b in zip(p, q, strict=True)
        ]
        assert pull.tolist() == pytest.approx(expected, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("kept", [1, 2, 4, 5])
def test_the_ghost_token_agrees_with_plain_loops(kept):
    rows = random_rows(12)
    for value, z_s, z_t in zip(
        GhostTokenKL(kept=kept)(rows).tolist(), rows.student.tolist(), rows.teacher.tolist(), strict=True
    ):
        p, q = probabilities(z_t), probabilities(z_s)
        known = sorted(range(len(p)), key=lambda v: -p[v])[:kept]
        expected = sum(p[v] * math.log(p[v] / q[v]) for v in known)
        if kept < len(p):
            rest_p = sum(p[v] for v in range(len(p)) if v not in known)
            rest_q = sum(q[v] for v in range(len(p)) if v not in known)
            expected += rest_p * math.log(rest_p / rest_q)
        assert value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
def test_labels_agree_with_torch_cross_entropy(smoothing):
    rows = random_rows(4)
    expected = torch.nn.functional.cross_entropy(
        rows.student, rows.label, label_smoothing=smoothing, reduction="none"
    )
    torch.testing.assert_close(Labels(smoothing=smoothing)(rows), expected, rtol=1e-12, atol=1e-14)


def test_half_precision_logits_are_computed_in_float32():
    rows = random_rows(5, rows=64, classes=100)
    for dtype in (torch.bfloat16, torch.float16):
        coarse = Rows(student=rows.student.to(dtype), teacher=rows.teacher.to(dtype), label=rows.label)
        exact = Rows(student=coarse.student.double(), teacher=coarse.teacher.double(), label=rows.label)
        kinds = (
            *KINDS,
            SkewKL,
            SkewReverseKL,
            TotalVariation,
            AdaptiveKL,
            TAID,
            GhostTokenKL,
            MeanSquaredLogits,
        )
        for loss in (*(kind() for kind in kinds), Labels(), Sinkhorn()):
            values = loss(coarse)
            assert values.dtype == torch.float32
            torch.testing.assert_close(values.double(), loss(exact), rtol=5e-5, atol=1e-6)


def test_nearly_equal_float32_rows_keep_their_digits_and_are_never_negative():
    generator = torch.Generator().manual_seed(6)
    teacher = torch.randn(200, 50, generator=generator)
    student = teacher + 1e-4 * torch.randn(200, 50, generator=generator)
    single = ForwardKL()(Rows(student=student, teacher=teacher))
    double = ForwardKL()(Rows(student=student.double(), teacher=teacher.double()))
    assert bool((single >= 0).all())
    torch.testing.assert_close(single.double(), double, rtol=5e-3, atol=0)


def test_a_vocabulary_of_152064_keeps_five_digits_in_float32():
    generator = torch.Generator().manual_seed(7)
    student, teacher = 4 * torch.randn(2, 2, 152_064, generator=generator)
    for kind in KINDS:
        single = kind()(Rows(student=student, teacher=teacher))
        double = kind()(Rows(student=student.double(), teacher=teacher.double()))
        torch.testing.assert_close(single.double(), double, rtol=5e-5, atol=1e-6)


def random_problem(seed: int, epsilon: float) -> TransportProblem:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (int(n) for n in torch.randint(1, 9, (2,), generator=generator))
    source, target = (torch.rand(n, generator=generator).double() + 0.05 for n in (rows, columns))
    cost = torch.rand(rows, columns, generator=generator).double()
    return TransportProblem(cost, source / source.sum(), target / target.sum(), epsilon)


@pytest.mark.parametrize("iterations", [1, 20])
def test_plans_equal_pots_on_fifty_problems(iterations):
    for seed in range(50):
        problem = random_problem(seed, epsilon=0.1)
        ours, pots = (solve(problem, iterations=iterations, solver=name) for name in ("distill", "pot"))
        torch.testing.assert_close(ours.plan, pots.plan, rtol=0, atol=1e-12)
        torch.testing.assert_close(ours.cost, pots.cost, rtol=0, atol=1e-12)
        for mine, theirs in zip(ours.potentials, pots.potentials, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_converged_plans_meet_their_marginals_and_pots_plain_call():
    for seed in range(50):
        problem = random_problem(seed, epsilon=0.2)
        result = solve(problem, iterations=400)
        assert float(result.error) <= 1e-9
        assert bool(result.converged)
        plan = ot.sinkhorn(
            problem.source_N, problem.target_M, problem.cost_NM, 0.2, stopThr=1e-13, numItermax=2000
        )
        torch.testing.assert_close(result.plan, plan, rtol=0, atol=1e-10)


def test_small_epsilon_comes_within_its_bound_of_the_exact_cost():
    epsilon = 0.02
    for seed in range(50):
        problem = random_problem(seed, epsilon)
        exact = float(
            ot.emd2(*(part.numpy() for part in (problem.source_N, problem.target_M, problem.cost_NM)))
        )
        entropic = float(solve(problem, iterations=2000).cost)
        assert -1e-6 <= entropic - exact <= epsilon * math.log(problem.cost_NM.numel() + 1)


def test_the_exact_solver_agrees_with_scipys_assignment():
    rows = random_rows(8, rows=9)
    p, q = (softmax(part.numpy() / 2, axis=-1) for part in (rows.student, rows.teacher))
    cost = abs(p[:, None] - q[None]).sum(-1)
    matched = cost[linear_sum_assignment(cost)].mean()
    plain = Rows(student=rows.student, teacher=rows.teacher)
    loss = Sinkhorn(solver="pot", epsilon=0, debias=False)
    assert float(plain.mean(loss(plain))) == pytest.approx(matched, rel=1e-12)


def test_geomloss_approaches_the_same_cost():
    rows = random_rows(9, rows=6)
    reference = rows.mean(Sinkhorn(debias=False, iterations=2000)(rows))
    annealed = rows.mean(Sinkhorn(debias=False, iterations=500, solver="geomloss")(rows))
    assert float(annealed) == pytest.approx(float(reference), rel=5e-3)
    assert torch.is_grad_enabled()


def test_geomloss_stopped_after_one_round_still_returns_a_plan():
    problem = random_problem(3, epsilon=0.01)
    plan = solve(problem, iterations=1, solver="geomloss").plan
    torch.testing.assert_close(plan.sum(0), problem.target_M, rtol=1e-10, atol=1e-12)


def test_manhattan_in_tiles_equals_all_pairs_at_once():
    generator = torch.Generator().manual_seed(10)
    source = torch.rand(20, 1100, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.rand(300, 1100, generator=generator, dtype=torch.float64, requires_grad=True)
    pull = torch.rand(20, 300, generator=generator, dtype=torch.float64)
    tiled = manhattan(source, target)
    direct = (source[:, None] - target[None]).abs().sum(-1)
    torch.testing.assert_close(tiled, direct, rtol=1e-13, atol=0)
    for mine, theirs in zip(
        torch.autograd.grad((tiled * pull).sum(), (source, target)),
        torch.autograd.grad((direct * pull).sum(), (source, target)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_the_other_costs_are_what_their_names_say():
    p, q = (torch.rand(4, 6).double().softmax(-1) for _ in range(2))
    for i in range(4):
        for j in range(4):
            difference = (p[i] - q[j]).abs()
            expected = {
                "l1": difference.sum(),
                "total_variation": difference.sum() / 2,
                "squared_euclidean": (difference**2).sum(),
                "cosine": 1 - torch.nn.functional.cosine_similarity(p[i], q[j], dim=0),
            }
            assert expected.keys() == COSTS.keys()
            for name, number in expected.items():
                assert float(cost_matrix(name, p, q)[i, j]) == pytest.approx(float(number), abs=1e-14)


def test_costs_stay_float32_under_autocast():
    p = torch.rand(4, 300).softmax(-1)
    for name in COSTS:
        outside = cost_matrix(name, p, p.flip(0))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = cost_matrix(name, p, p.flip(0))
        assert inside.dtype == torch.float32
        assert torch.equal(inside, outside)
