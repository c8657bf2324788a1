"""Transport's kernels: what they compute, in Triton's interpreter, and that they compile for a GPU without one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distill.losses.transport import on_gpu
from distill.losses.transport.manhattan import manhattan
from distill.losses.transport.problem import TransportProblem
from distill.losses.transport.solve import solve

from distill.losses import Rows, Sinkhorn

CASES = Path(__file__).with_name("kernel_cases.py")

try:
    import triton
except ImportError:
    triton = None
needs_triton = pytest.mark.skipif(triton is None, reason="triton is not installed")


def run_cases(**environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
def test_the_kernels_do_what_the_cpu_does_in_tritons_interpreter():
    run_cases(TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_kernels_do_what_the_cpu_does_on_a_gpu():
    run_cases(TRITON_INTERPRET="0")


@pytest.fixture
def launches(monkeypatch) -> list[tuple]:
    """What would be launched on a GPU: (kernel, arguments, constants). Nothing is, and results are not set."""
    found: list[tuple] = []
    monkeypatch.setattr(on_gpu, "_DEVICES", {"cpu"})
    monkeypatch.setattr(on_gpu, "_has_triton", lambda: True)
    monkeypatch.setattr(
        on_gpu,
        "_launch",
        lambda name, grid, *arguments, **constants: found.append((name, arguments, constants)),
    )
    return found


def use_every_kernel() -> None:
    # The numbers of rows and classes are told to the compiler where they are 1, and whether 16 divides them.
    for rows, classes, dtype in (
        (1, 1, torch.float32),
        (6, 3, torch.float32),
        (128, 5000, torch.bfloat16),
    ):
        student = torch.zeros(rows, classes, dtype=dtype, requires_grad=True)
        loss = Sinkhorn(debias=rows > 1, iterations=min(20, rows))
        loss(Rows(student=student, teacher=torch.zeros(rows, classes))).sum().backward()
    points = torch.zeros(6, 40, requires_grad=True)
    manhattan(points, torch.zeros(5, 40)).sum().backward()
    cost, mass = torch.zeros(6, 6, requires_grad=True), torch.full((6,), 1 / 6)
    solve(TransportProblem(cost, mass, mass, 0.1, largest_cost=2.0)).plan.sum().backward()
    Sinkhorn(memory="low")(Rows(student=torch.zeros(6, 40), teacher=torch.zeros(6, 40)))


TYPES = {
    int: "i32",
    float: "fp32",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
}


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_every_launch_compiles_for_a_gpu(capability, launches, monkeypatch, tmp_path):
    """Down to machine code that adds nothing in an order of its own: a result repeats bit by bit."""
    from distill.losses.transport import triton_kernels
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    use_every_kernel()
    compiled = {}
    for name, arguments, constants in launches:
        kernel = getattr(triton_kernels, name)
        options = {"num_warps": constants.pop("warps", 4), "enable_fp_fusion": True}
        given = dict(zip(kernel.arg_names, arguments, strict=False))
        assert kernel.arg_names == [*given, *constants]
        types = {key: TYPES[getattr(value, "dtype", type(value))] for key, value in given.items()}
        # What Triton's launcher makes of a 1, a multiple of 16, and a tensor that begins at one.
        ones = {key: 1 for key, value in given.items() if type(value) is int and value == 1}
        multiples = {
            (place,): [["tt.divisibility", 16]]
            for place, value in enumerate(arguments)
            if isinstance(value, torch.Tensor) or (type(value) is int and value % 16 == 0)
        }
        key = str((name, types, ones, multiples, constants, options))
        if key in compiled:
            continue
        constants = {**ones, **constants}
        source = ASTSource(
            fn=kernel,
            signature={**types, **dict.fromkeys(constants, "constexpr")},
            constexprs=constants,
            attrs=multiples,
        )
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert built.asm["cubin"]
        assert not re.search(r"\b(atom|red)\.", built.asm["ptx"])
        assert built.metadata.shared <= 99 * 1024  # what the smallest of these GPUs has
        compiled[key] = name
    kernels = {name for name, value in vars(triton_kernels).items() if hasattr(value, "arg_names")}
    assert set(compiled.values()) == {name for name in kernels if not name.startswith("_")}


def test_nothing_but_float32_on_a_gpu_goes_to_the_kernels(launches, monkeypatch):
    here = torch.zeros(2, 3)
    assert on_gpu.runs(here)
    assert not on_gpu.runs(here, here.double())
    monkeypatch.setattr(on_gpu, "_has_triton", lambda: False)
    assert not on_gpu.runs(here)
    monkeypatch.undo()
    assert not on_gpu.runs(here)


def test_a_machine_on_which_triton_cannot_launch_does_without_and_says_so(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert not on_gpu._can_launch.__wrapped__(0)
    if triton is None or torch.cuda.is_available():
        return
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    with pytest.warns(UserWarning, match="transport losses do without their GPU kernels: "):
        assert not on_gpu._can_launch.__wrapped__(0)


def test_no_matrix_of_all_pairs_and_all_columns_is_ever_made(launches):
    rows, classes = 64, 5000
    student = torch.zeros(rows, classes, requires_grad=True)
    Sinkhorn()(Rows(student=student, teacher=torch.zeros(rows, classes))).sum().backward()
    sizes = [
        argument.numel()
        for _, arguments, _ in launches
        for argument in arguments
        if not isinstance(argument, (int, float))
    ]
    assert max(sizes) == rows * classes
