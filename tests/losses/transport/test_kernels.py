"""The transport kernels, in Triton's interpreter or on a GPU, against the paths of the CPU, which are their definition."""

from collections.abc import Iterator

import pytest
import torch
from distill.losses.kernels.availability import forced_on
from distill.losses.transport import on_gpu
from distill.losses.transport.manhattan import distance_pull, manhattan, overlap, self_overlap
from distill.losses.transport.problem import TransportProblem
from distill.losses.transport.rounds import scale, scale_adjoint
from distill.losses.transport.softened import softmax
from distill.losses.transport.solve import solve
from torch.utils._python_dispatch import TorchDispatchMode

from distill.losses import MultiLevelTransport, Rows, Sinkhorn

pytest.importorskip("triton", minversion="3.3", reason="no Triton, or an old one")
from distill.losses.transport import triton_kernels

INTERPRETED = "Interpreted" in type(triton_kernels.scale).__name__
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("TRITON_INTERPRET=0 and no GPU", allow_module_level=True)
DEVICE = "cpu" if INTERPRETED else "cuda"

# What the interpreter's NumPy says of NaN and inf, which are in some of the cases.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@pytest.fixture(autouse=True)
def launches(monkeypatch) -> Iterator[list[str]]:
    """Every kernel launched; the kernels run wherever the test's tensors are."""
    names: list[str] = []
    launch = on_gpu._launch

    def watched(name, *arguments, **constants):
        names.append(name)
        launch(name, *arguments, **constants)

    monkeypatch.setattr(on_gpu, "_launch", watched)
    with forced_on(DEVICE):
        yield names


@pytest.fixture
def many_parts(monkeypatch):
    """Columns cut into parts that are uneven, and tiles that are not whole, at sizes an interpreter can do."""
    monkeypatch.setattr(on_gpu, "_CHUNK", 64)
    monkeypatch.setattr(on_gpu, "_PROGRAMS", 7)
    monkeypatch.setattr(on_gpu, "_BLOCK", 128)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def near(mine: torch.Tensor, exact: torch.Tensor, digits: float) -> bool:
    mine, exact = mine.detach().double().cpu(), exact.detach().double().cpu()
    return float((mine - exact).norm()) <= digits * float(exact.norm())


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 15), (3, 18, 33), (8, 8, 1000)])
def test_sums_over_all_pairs(shape, launches, many_parts):
    rows, others, classes = shape
    p, q = random(1, rows, classes).softmax(-1), random(2, others, classes).softmax(-1)
    wide_p, wide_q = p.double(), q.double()
    assert near(overlap(p, q), torch.minimum(wide_p[:, None], wide_q[None]).sum(-1), 1e-7)
    assert near(self_overlap(p), torch.minimum(wide_p[:, None], wide_p[None]).sum(-1), 1e-7)
    assert near(manhattan(p, q), (wide_p[:, None] - wide_q[None]).abs().sum(-1), 2e-7)
    assert overlap(p, q).dtype == torch.float64
    assert manhattan(p, q).dtype == torch.float32
    assert torch.equal(self_overlap(p), self_overlap(p).T)
    assert ("add_parts" in launches) == (classes == 1000)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 15), (9, 3, 300)])
def test_the_gradient_of_all_distances(shape, launches):
    rows, others, classes = shape
    p, q = random(1, rows, classes).softmax(-1), random(2, others, classes).softmax(-1)
    q[0] = p[0]  # ties
    pull = random(3, others, rows).T
    expected = ((p[:, None] - q[None]).sign().double() * pull[:, :, None].double()).sum(1)
    assert near(distance_pull(pull, p, q), expected, 1e-6)
    assert launches == ["pull_to_rows"]


def test_a_manhattan_distance_is_differentiable_on_both_sides(launches):
    p, q = random(1, 3, 20).requires_grad_(), random(2, 4, 20).requires_grad_()
    weights = random(3, 3, 4)
    mine = torch.autograd.grad((manhattan(p, q) * weights).sum(), (p, q))
    naive = torch.autograd.grad(((p[:, None] - q[None]).abs().sum(-1) * weights).sum(), (p, q))
    assert all(near(a, b, 1e-6) for a, b in zip(mine, naive, strict=True))
    assert launches == ["all_pairs", "pull_to_rows", "pull_to_rows"]


def test_nan_shows_in_its_row_and_in_no_other():
    p, q = random(1, 4, 40).softmax(-1), random(2, 3, 40).softmax(-1)
    p[1, 7] = torch.nan
    for sums in (overlap(p, q), manhattan(p, q), distance_pull(random(3, 4, 3), p, q)):
        assert sums.isnan().any(1).tolist() == [False, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [1, 3, 300])
def test_softmaxes(dtype, classes, many_parts):
    student, teacher = (5 * random(1, 4, 2 * classes)).to(dtype), (5 * random(2, 4, classes)).to(dtype)
    student = student[:, :classes]  # rows that are apart
    teacher = teacher.T.contiguous().T  # and columns
    teacher[1:, 0] = -torch.inf if classes > 1 else 0
    teacher[3, -1] = torch.nan
    found = on_gpu.softmaxes(student, teacher, 0.7)
    for mine, logits in zip(found, (student, teacher), strict=True):
        exact = softmax(logits.cpu().double(), 0.7)
        # As good as what is divided: 60 below the largest logit, a float32 has 4e-6 left.
        torch.testing.assert_close(mine.cpu().double(), exact, rtol=1e-5, atol=1e-30, equal_nan=True)


def masses(seed: int, *shape: int) -> torch.Tensor:
    mass = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.05
    return (mass / mass.sum(-1, keepdim=True)).to(DEVICE)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (6, 1), (4, 7), (19, 9)])
@pytest.mark.parametrize("rounds", [1, 8])
def test_rounds_and_their_adjoint(shape, rounds):
    """Two groups of two problems, against `rounds.py` in float64."""
    cost, epsilon = (2 * random(1, 4, *shape).abs()).clamp(max=2), 0.1
    source, target = masses(2, 2, shape[0]), masses(3, 2, shape[1])
    plan, rows, columns, shares, error = on_gpu.scale(cost, source, target, epsilon, rounds)
    pull = random(4, 4, *shape)
    pulled = on_gpu.scale_adjoint(pull, cost, source, target, plan, rows, columns, epsilon)
    for problem in range(4):
        a, b = (mass[problem // 2].double().cpu() for mass in (source, target))
        exact_cost, exact_pull = cost[problem].double().cpu(), pull[problem].double().cpu()
        kernel = (-exact_cost / epsilon).exp()
        exact_plan, exact_rows, exact_columns = scale(kernel, a, b, rounds)
        assert near(plan[problem], exact_plan, 1e-6)
        # Scalings carry what float32 leaves of cost / epsilon, 1e-6, which the plan takes out again.
        assert near(rows[problem], torch.stack(tuple(exact_rows)), 2e-6)
        assert near(columns[problem], torch.stack(tuple(exact_columns[1:])), 2e-6)
        counted = (exact_plan * exact_cost).sum(1) / a * (1 if problem % 2 == 0 else -0.5)
        assert near(shares[problem], counted, 1e-6)
        misplaced = (exact_plan.sum(1) - a).abs().sum() + (exact_plan.sum(0) - b).abs().sum()
        assert abs(float(error[problem]) - float(misplaced)) < 1e-6
        adjoint = scale_adjoint(exact_pull, exact_plan, kernel, a, b, exact_rows, exact_columns) / epsilon
        size = (
            float((exact_pull * exact_plan).norm()) / epsilon
        )  # of what cancels in it, for one row altogether
        assert float((pulled[problem].cpu() - adjoint).norm()) <= 5e-7 * size


def test_a_problem_is_solved_as_on_a_cpu(launches):
    cost = (2 * random(1, 6, 4).abs()).clamp(max=2)
    given = TransportProblem(
        cost.T.contiguous().T.requires_grad_(), masses(2, 6), masses(3, 4), 0.1, largest_cost=2.0
    )
    exact = TransportProblem(
        *(part.detach().double().cpu() for part in (cost, given.source_N, given.target_M)), 0.1
    )
    exact.cost_NM.requires_grad_()
    mine, expected = solve(given), solve(exact)
    assert launches == ["scale"]
    for name in ("plan", "cost", "shares"):
        assert near(getattr(mine, name), getattr(expected, name), 1e-6)
    for potential, theirs in zip(mine.potentials, expected.potentials, strict=True):
        assert near(potential, theirs, 1e-6)
    (pulled,) = torch.autograd.grad((mine.plan * mine.plan).sum(), given.cost_NM)
    (exact_pulled,) = torch.autograd.grad((expected.plan * expected.plan).sum(), exact.cost_NM)
    assert launches == ["scale", "scale_adjoint"]
    assert near(pulled, exact_pulled, 1e-5)


def test_more_rows_than_a_program_holds_are_solved_without(launches, monkeypatch):
    monkeypatch.setattr(on_gpu, "ROWS", 5)
    solve(TransportProblem(random(1, 6, 4).abs(), masses(2, 6), masses(3, 4), 0.1, largest_cost=3.0))
    rows = Rows(student=random(1, 6, 20), teacher=random(2, 6, 20))
    Sinkhorn(debias=False)(rows)
    assert launches == ["all_pairs"]


FEW_ROWS = ["softmaxes", "all_pairs", "scale", "scale_adjoint", "pull_to_rows"]
LOSSES = {
    "few classes": (Sinkhorn(iterations=5), 3, FEW_ROWS),
    "many": (Sinkhorn(iterations=5), 600, [*FEW_ROWS[:2], "add_parts", *FEW_ROWS[2:], "finish_softmax"]),
    "plain": (Sinkhorn(iterations=5, debias=False, epsilon=0.2), 30, FEW_ROWS),
    "total variation": (Sinkhorn(iterations=5, cost="total_variation", temperature=1.0), 30, FEW_ROWS),
    "groups": (Sinkhorn(iterations=5, group_size=3), 30, FEW_ROWS),
    "uneven groups": (Sinkhorn(iterations=5, group_size=4), 30, None),
    "streamed": (Sinkhorn(iterations=5, memory="low", debias=False), 300, None),
    "logarithms": (Sinkhorn(iterations=5, epsilon=0.04), 30, None),
    "cosine": (Sinkhorn(iterations=5, cost="cosine"), 30, None),
    "envelope": (Sinkhorn(iterations=5, gradient="envelope"), 30, None),
    "multi-level": (MultiLevelTransport(iterations=5, kept=5), 30, None),
}


@pytest.mark.parametrize(("dtype", "weighted"), [(torch.float32, True), (torch.bfloat16, False)])
@pytest.mark.parametrize("case", LOSSES)
def test_losses_and_their_gradients(case, weighted, dtype, launches, many_parts):
    loss, classes, expected_launches = LOSSES[case]
    student, teacher = 3 * random(1, 6, classes), 3 * random(2, 6, classes)
    student = student.to(dtype).requires_grad_()
    with torch.inference_mode():
        teacher = teacher.to(dtype).clone()
    weight = torch.tensor([1.0, 0.3, 2.0, 0.5, 1.0, 0.7], device=DEVICE) if weighted else None
    values, diagnostics = loss.evaluate(Rows(student=student, teacher=teacher, weight=weight))
    pull = random(3, 6)
    (gradient,) = torch.autograd.grad((values * pull).sum(), student)
    assert launches
    assert expected_launches is None or launches == expected_launches
    assert (values.dtype, gradient.dtype) == (torch.float32, dtype)

    exact = Rows(
        student=student.detach().cpu().double().requires_grad_(),
        teacher=teacher.clone().cpu().double(),
        weight=None if weight is None else weight.cpu().double(),
    )
    with forced_on():
        exact_values, exact_diagnostics = loss.evaluate(exact)
        (exact_gradient,) = torch.autograd.grad((exact_values * pull.cpu()).sum(), exact.student)
    torch.testing.assert_close(values.cpu().double(), exact_values, rtol=1e-5, atol=2e-6)
    assert near(gradient, exact_gradient, 5e-5 if dtype == torch.float32 else 5e-3)
    assert diagnostics.keys() == exact_diagnostics.keys()
    for name, exact_value in exact_diagnostics.items():
        torch.testing.assert_close(diagnostics[name].cpu().double(), exact_value, rtol=1e-4, atol=1e-6)


def test_a_row_of_nan_spoils_its_group_alone():
    student = random(1, 6, 30)
    student[1, 4] = torch.nan
    student.requires_grad_()
    values = Sinkhorn(iterations=3, group_size=3)(Rows(student=student, teacher=random(2, 6, 30)))
    assert values.isnan().tolist() == [True] * 3 + [False] * 3
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert gradient.isnan().all(1).tolist() == [True] * 3 + [False] * 3


def test_rows_of_weight_0_are_in_no_group():
    student, teacher = random(1, 6, 30), random(2, 6, 30)
    student[2] = torch.nan
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 1.0], device=DEVICE)
    loss, kept = Sinkhorn(iterations=3), weight > 0
    values = loss(Rows(student=student.requires_grad_(), teacher=teacher, weight=weight))
    alone = loss(Rows(student=student[kept], teacher=teacher[kept]))
    torch.testing.assert_close(values[kept], alone)
    assert values[~kept].tolist() == [0, 0]
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert gradient.any(1).tolist() == kept.tolist()


def test_equal_predictions_cost_exactly_nothing():
    student = random(1, 5, 40)
    assert Sinkhorn()(Rows(student=student, teacher=student.clone())).tolist() == [0.0] * 5


def test_a_result_repeats_bit_by_bit(many_parts):
    def once():
        student = random(1, 7, 300).requires_grad_()
        values = Sinkhorn(iterations=3)(Rows(student=student, teacher=random(2, 7, 300)))
        return values, *torch.autograd.grad((values * values).sum(), student)

    for first, second in zip(once(), once(), strict=True):
        assert torch.equal(first, second)


def test_second_derivatives(launches):
    def curvature(student, teacher):
        values = Sinkhorn(epsilon=0.3, iterations=3)(Rows(student=student, teacher=teacher))
        (gradient,) = torch.autograd.grad((values * values).sum(), student, create_graph=True)
        return torch.autograd.grad((gradient * gradient).sum(), student)[0]

    student, teacher = random(1, 4, 5), random(2, 4, 5)
    mine = curvature(student.clone().requires_grad_(), teacher)
    assert launches[:3] == FEW_ROWS[:3]
    with forced_on():
        exact = curvature(student.cpu().double().requires_grad_(), teacher.cpu().double())
    assert near(mine, exact, 1e-4)


class Operations(TorchDispatchMode):
    """What torch does by itself that is work for the device, by name."""

    FREE = (
        "alias",
        "detach",
        "empty",
        "expand",
        "new_empty",
        "select",
        "slice",
        "unbind",
        "unsqueeze",
        "view",
    )

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        result = function(*args, **(kwargs or {}))
        numbers = result.numel() if isinstance(result, torch.Tensor) else 1
        if not name.startswith(self.FREE) and numbers:
            self.names.append(name)
        return result


def test_a_small_loss_and_its_gradient_are_nine_launches_and_wait_for_nothing(launches, monkeypatch):
    launch = on_gpu._launch

    def aside(name, *arguments, **constants):
        with torch.utils._python_dispatch._disable_current_modes():  # the interpreter is made of torch, too
            launch(name, *arguments, **constants)

    monkeypatch.setattr(on_gpu, "_launch", aside)
    student, teacher = random(1, 8, 3).requires_grad_(), random(2, 8, 3)
    one = torch.ones((), device=DEVICE)
    with Operations() as operations:
        rows = Rows(student=student, teacher=teacher)
        rows.mean(Sinkhorn(iterations=3)(rows)).backward(one)
    # The uniform mass; a group's three shares added; the rows' mean, and its gradient.
    assert operations.names == ["new_full", "sum", "mean", "div"]
    assert launches == FEW_ROWS
