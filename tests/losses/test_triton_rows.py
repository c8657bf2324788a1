"""The Triton kernel of the divergences, in Triton's interpreter: what the torch loop says, and the laws."""

import inspect
import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from distill.losses.divergences import steps
from distill.losses.kernels import dense
from distill.losses.kernels.availability import forced_on
from distill.losses.kernels.fused_linear import Projection, fused_linear_mean
from distill.losses.laws import laws_of

from distill.losses import (
    TAID,
    AdaptiveKL,
    ForwardKL,
    JensenShannon,
    Labels,
    ReverseKL,
    Rows,
    SkewKL,
    SkewReverseKL,
    Total,
    TotalVariation,
)

pytest.importorskip("triton", minversion="3.3", reason="no Triton, or an old one")
from distill.losses.kernels import triton_rows, triton_steps

INTERPRETED = "Interpreted" in type(triton_rows._compare_rows).__name__
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("TRITON_INTERPRET=0 and no GPU", allow_module_level=True)

# What overflows on purpose in a kernel makes NumPy speak, in which the interpreter computes.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning",
)
DEVICE = "cpu" if INTERPRETED else "cuda"
LOSSES = (
    ForwardKL(temperature=2.0, scale="temperature_squared"),
    ReverseKL(temperature=0.7),
    JensenShannon(beta=0.3, scale=0.5),
    SkewKL(temperature=2.0),
    SkewReverseKL(skew=0.6),
    TotalVariation(),
)


@pytest.fixture(params=LOSSES, ids=lambda loss: loss.kind)
def loss(request):
    """One of each kind that has a kernel."""
    return request.param


@pytest.fixture
def small_blocks(monkeypatch):
    """Rows of several blocks at a few dozen classes."""
    monkeypatch.setattr(triton_rows, "BLOCK", 16)


@pytest.fixture
def through_kernel(monkeypatch):
    """Losses that are called as ever, and run in the kernel on any device."""
    calls = []

    def fill(*arguments):
        values_N = original(*arguments)
        calls.append(values_N is not None)
        return values_N

    original = triton_rows.fill
    monkeypatch.setattr(triton_rows, "fill", fill)
    with forced_on(DEVICE):
        yield calls


def random_rows(rows: int, classes: int, *, dtype: torch.dtype = torch.float32, spread: float = 3.0) -> Rows:
    generator = torch.Generator().manual_seed(rows * 1000 + classes)
    student, teacher = spread * torch.randn(2, rows, classes, generator=generator)
    return Rows(student=student.to(DEVICE, dtype), teacher=teacher.to(DEVICE, dtype))


def by_kernel(loss, rows: Rows, gradient: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    gradient = dense._room_for_gradient(rows.student) if gradient is None else gradient
    values = triton_rows.fill(loss, rows, gradient)
    assert values is not None
    return values, gradient


def by_loop(loss, rows: Rows, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """What torch says of the same numbers, in float64."""
    wide = replace(rows, student=rows.student.to(dtype), teacher=rows.teacher.to(dtype))
    gradient = torch.empty_like(wide.student)
    return dense.fill(loss, wide, gradient).double(), gradient.double()


def assert_agree(loss, rows: Rows, found: tuple[torch.Tensor, torch.Tensor], relative: float = 1e-6) -> None:
    """As near to float64 as float32 can be, or twice as far from it as torch's float32 is."""
    values, gradient = by_loop(loss, rows, torch.float64)
    single_values, single_gradient = by_loop(loss, rows, torch.float32)
    off = (found[0].double() - values).abs()
    beyond = off - relative * values - 2 * (single_values - values).abs()
    assert bool((beyond <= 0).all()), f"values off by {off}"
    # A derivative is what the softmax leaves of slopes, which are of the order of the value, or of 1.
    allowed = relative * values.clamp(min=0.1) + 2 * (single_gradient - gradient).abs().amax(-1)
    off = (found[1].double() - gradient).abs()
    if found[1].dtype == torch.bfloat16:  # the interpreter cuts, where a GPU rounds
        off -= 2**-7 * gradient.abs()
    beyond = off - allowed[:, None]
    assert bool((beyond <= 0).all()), f"derivatives off by {float(off.max())}"


@pytest.mark.parametrize("classes", [1, 2, 16, 17, 50])
def test_any_number_of_classes_gives_what_the_loop_gives(loss, classes, small_blocks):
    rows = random_rows(2, classes)
    assert_agree(loss, rows, by_kernel(loss, rows))


def test_a_thousand_classes_give_what_the_loop_gives(loss):
    rows = random_rows(3, 1000)
    assert_agree(loss, rows, by_kernel(loss, rows))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    rows = random_rows(2, 40, dtype=dtype)
    values, gradient = by_kernel(loss, rows)
    assert values.dtype == torch.float32
    assert gradient.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    assert_agree(loss, rows, (values, gradient))


def test_values_alone_and_rows_far_apart_in_memory(loss, small_blocks):
    rows = random_rows(3, 20)
    apart = replace(rows, student=torch.cat([rows.student, rows.student], 1)[:, :20])
    same_teacher = replace(apart, teacher=rows.teacher[:1].expand(3, 20))
    room = torch.empty(3, 33, device=DEVICE)[:, 7:27]
    assert_agree(loss, same_teacher, by_kernel(loss, same_teacher, room))
    torch.testing.assert_close(triton_rows.fill(loss, apart, None), by_kernel(loss, rows)[0], rtol=0, atol=0)


def test_the_gradient_may_take_the_place_of_the_logits(loss, small_blocks):
    for dtype in (torch.float32, torch.bfloat16):
        rows = random_rows(2, 50, dtype=dtype)
        values, gradient = by_kernel(loss, rows)
        over = replace(rows, student=rows.student.clone())
        assert torch.equal(triton_rows.fill(loss, over, over.student), values)
        assert torch.equal(over.student, gradient)


def test_rows_of_weight_0_are_skipped_whatever_they_hold(loss, small_blocks):
    rows = random_rows(4, 20)
    values, gradient = by_kernel(loss, rows)
    weight = torch.tensor([0.5, 0.0, 2.0, 0.0], device=DEVICE)
    for numbers in (weight, weight.bool(), weight.long()):
        counts = numbers > 0
        spoilt = rows.student.where(counts[:, None], math.nan)
        kept = by_kernel(loss, replace(rows, student=spoilt, weight=numbers))
        assert torch.equal(kept[0], values.where(counts, 0))
        assert torch.equal(kept[1], gradient.where(counts[:, None], 0))


def test_no_rows_are_no_values(loss):
    values, _ = by_kernel(loss, random_rows(0, 5))
    assert values.shape == (0,)
    assert values.dtype == torch.float32


def test_impossible_classes_and_far_logits_give_what_the_loop_gives(loss, small_blocks):
    rows = random_rows(6, 40)
    student, teacher = rows.student, rows.teacher
    student[0, :20] = -math.inf  # a block of nothing
    teacher[1, :17] = -math.inf
    student[2, 1:] = teacher[2, 1:] = -math.inf
    student[3], student[3, 5] = -6e4, 6e4
    teacher[4], teacher[4, 5] = -6e4, 6e4
    student[5], teacher[5, 0] = -3e38, 3e38
    values, gradient = by_kernel(loss, rows)
    assert_agree(loss, rows, (values, gradient))
    assert bool((values >= 0).all())


def test_unusable_rows_come_out_as_nan_and_the_others_do_not(loss, small_blocks):
    for spoil in (math.nan, math.inf, -math.inf):
        for side in ("student", "teacher"):
            rows = random_rows(2, 20)
            getattr(rows, side)[0, slice(None) if spoil < 0 else 3] = spoil
            values, gradient = by_kernel(loss, rows)
            assert bool(values[0].isnan())
            assert bool(gradient[0].isnan().all())
            assert bool(values[1].isfinite())
            assert bool(gradient[1].isfinite().all())


def test_equal_rows_cost_exactly_nothing_and_nearly_equal_ones_keep_their_digits(loss):
    rows = random_rows(2, 50)
    values, gradient = by_kernel(loss, replace(rows, student=rows.teacher))
    assert float(values.abs().amax()) < 1e-11
    assert float(gradient.abs().amax()) < 1e-6
    noise = 1e-3 * random_rows(2, 51).student[:, :50]
    near = replace(rows, student=rows.teacher + noise)
    assert_agree(loss, near, by_kernel(loss, near), relative=1e-3)
    if loss.kind in ("forward_kl", "total_variation"):
        assert not bool(gradient.any())


def test_the_ends_of_mixtures_are_the_kls():
    rows = random_rows(2, 20)
    forward, reverse = (by_kernel(kl, rows)[1] for kl in (ForwardKL(), ReverseKL()))
    for end, expected in (
        (JensenShannon(beta=0), forward),
        (JensenShannon(beta=1), reverse),
        (SkewKL(skew=0), forward),
        (SkewReverseKL(skew=0), reverse),
    ):
        assert torch.equal(by_kernel(end, rows)[1], expected)


def test_every_step_has_a_twin_that_takes_the_same():
    here, there = (
        {
            name: [
                parameter.partition("_")[0]
                for parameter in inspect.signature(getattr(thing, "fn", thing)).parameters
            ]
            for name, thing in vars(module).items()
            if callable(thing) and name in vars(steps) and not name.startswith("_")
        }
        for module in (steps, triton_steps)
    )
    assert here
    assert there == here


class OtherReverseKL(ReverseKL):
    def compare(self, teacher, student):
        return super().compare(student, teacher)


def test_what_has_no_kernel_is_left_to_the_loop():
    rows = random_rows(2, 5)
    for other in (
        Labels(),
        TAID(),
        AdaptiveKL(),
        OtherReverseKL(),
        ForwardKL() + ReverseKL(),
    ):
        assert triton_rows.fill(other, rows, None) is None
    transposed = replace(rows, student=rows.student.T.contiguous().T)
    for unreadable in (replace(rows, student=rows.student.double()), transposed):
        assert triton_rows.fill(ForwardKL(), unreadable, None) is None
    with pytest.raises(ValueError, match=r"rows\.teacher is None"):
        triton_rows.fill(ForwardKL(), replace(rows, teacher=None), None)


def test_where_triton_fails_the_loop_runs_and_a_warning_says_so_once(through_kernel, monkeypatch):
    class Failing:
        def __getitem__(self, grid):
            raise RuntimeError("Failed to find C compiler.")

    rows = random_rows(3, 11)
    with forced_on():
        expected = ForwardKL()(rows)
    monkeypatch.setattr(triton_rows, "_compare_rows", Failing())
    monkeypatch.setattr(triton_rows, "_works", True)
    with pytest.warns(UserWarning, match="no Triton kernel .*, torch goes on .*Failed to find C compiler"):
        values = ForwardKL()(rows)
    torch.testing.assert_close(values, expected)
    assert torch.equal(ForwardKL()(rows), values)
    assert through_kernel == [False, False]


def test_whole_numbers_reach_the_kernel_as_floats(monkeypatch):
    class Noting:
        def __getitem__(self, grid):
            return lambda *arguments, **constants: noted.extend(arguments[-3:])

    noted = []
    monkeypatch.setattr(triton_rows, "_compare_rows", Noting())
    triton_rows.fill(
        Total([2 * ForwardKL(temperature=2, scale="temperature_squared")]), random_rows(2, 3), None
    )
    assert noted == [2.0, 8.0, 4.0]
    assert all(isinstance(number, float) for number in noted)


def test_losses_and_fused_projections_run_in_it_unasked(through_kernel):
    rows = random_rows(3, 11)
    total = 0.25 * ForwardKL(temperature=2.0)
    student = rows.student.clone().requires_grad_()
    live = replace(rows, student=student, weight=torch.tensor([1.0, 0.0, 3.0], device=DEVICE))
    mean = live.mean(dense.row_values(ForwardKL(temperature=2.0), live))
    mean.backward()
    assert through_kernel == [True]
    identity = torch.eye(11, device=DEVICE, requires_grad=True)
    found = fused_linear_mean(
        total,
        Projection(rows.student, identity),
        Projection(rows.teacher, torch.eye(11, device=DEVICE)),
        weight=live.weight,
    )
    found.backward()
    assert through_kernel == [True, True]
    torch.testing.assert_close(found, mean / 4)
    torch.testing.assert_close(identity.grad, (rows.student.T @ student.grad).T / 4)


class InFloat32:
    """A loss held to its laws in float32, which is what the kernel computes in."""

    accuracy = 2e-6

    def __init__(self, loss):
        self.loss, self.bound, self.zero_at_equality = loss, loss.bound, loss.zero_at_equality

    def __call__(self, rows: Rows) -> torch.Tensor:
        narrow = {
            name: tensor.float() if tensor.dtype == torch.float64 else tensor
            for name, tensor in (("student", rows.student), ("teacher", rows.teacher))
        }
        values = self.loss(replace(rows, **narrow))
        return values.double() if rows.student.dtype == torch.float64 else values


def test_it_obeys_the_laws(loss, through_kernel):
    rows = random_rows(2, 3)
    laws = laws_of(InFloat32(loss))
    for law in laws.values():
        law(InFloat32(loss), rows)
    near = random_rows(8, 50)
    laws["never_negative"](InFloat32(loss), replace(near, student=near.teacher + 1e-5 * near.student))
    assert through_kernel
    assert all(through_kernel)


COMPILE = """
import json, sys, torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from distill.losses import ForwardKL, JensenShannon, ReverseKL, SkewKL, SkewReverseKL, TotalVariation
from distill.losses.kernels import triton_rows

made = []
for capability, loss, logits, gradient in (
    (90, ForwardKL(), "fp32", "fp32"),
    (90, ReverseKL(), "bf16", "bf16"),
    (90, JensenShannon(), "fp16", "fp32"),
    (90, SkewKL(), "fp32", None),
    (90, SkewReverseKL(), "bf16", "bf16"),
    (90, TotalVariation(), "bf16", "bf16"),
    (80, ForwardKL(), "bf16", "bf16"),
    (80, JensenShannon(), "fp32", "fp32"),
):
    comparison, number = loss.comparison()
    constants = {"COMPARISON": triton_rows.COMPARISONS[comparison], "NUMBER": number, "BLOCK": triton_rows.BLOCK}
    pointers = {"student_NV": logits, "teacher_NV": logits, "values_N": "fp32", "gradient_NV": gradient}
    kernel = triton_rows._compare_rows
    signature = dict.fromkeys(kernel.arg_names, "fp32")
    signature |= dict.fromkeys(("student_stride", "teacher_stride", "gradient_stride", "classes"), "i32")
    signature |= {name: f"*{dtype}" for name, dtype in pointers.items()} | {"counts_N": "*i1"}
    if gradient is None:
        constants |= {"gradient_NV": None, "counts_N": None}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature, constants)
    compiled = compile(source, target=GPUTarget("cuda", capability, 32), options=triton_rows.OPTIONS)
    made.append([loss.kind, compiled.asm["ptx"], len(compiled.asm["cubin"])])
print(json.dumps(made))
"""


def test_it_compiles_for_gpus_that_are_not_here(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert [kind for kind, *_ in made[:6]] == [loss.kind for loss in LOSSES]
    for place, (kind, ptx, binary_bytes) in enumerate(made):
        assert f".target sm_{90 if place < 6 else 80}" in ptx
        assert binary_bytes > 1000
        # Of a fused multiplication, q − p of equal sides would not be 0.
        assert kind != "total_variation" or "fma.rn" not in ptx
