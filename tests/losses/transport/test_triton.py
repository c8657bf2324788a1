"""What transport launches on a GPU, without one: which kernels, with what, and that they compile for it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from distill.losses.kernels.availability import forced_on
from distill.losses.transport import on_gpu
from distill.losses.transport.manhattan import manhattan
from distill.losses.transport.problem import TransportProblem
from distill.losses.transport.solve import solve

from distill.losses import Rows, Sinkhorn


@pytest.fixture
def launches(monkeypatch) -> Iterator[list[tuple]]:
    """What would be launched on a GPU: (kernel, arguments, constants). Nothing is, and results are not set."""
    found: list[tuple] = []
    monkeypatch.setattr(
        on_gpu,
        "_launch",
        lambda name, grid, *arguments, **constants: found.append((name, arguments, constants)),
    )
    with forced_on("cpu"):
        yield found


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


COMPILE = """
import json, re, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from distill.losses.transport import triton_kernels

capability, launches = json.load(sys.stdin)
made = []
for name, types, constants, multiples, options in launches:
    source = ASTSource(
        fn=getattr(triton_kernels, name),
        signature={**types, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
        attrs={(place,): [["tt.divisibility", 16]] for place in multiples},
    )
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    orderless = re.findall(r"\\b(?:atom|red)\\..*", built.asm["ptx"])
    made.append([name, len(built.asm["cubin"]), orderless, built.metadata.shared])
print(json.dumps(made))
"""


@pytest.mark.parametrize("capability", [80, 90])
def test_every_launch_compiles_for_a_gpu(capability, launches, tmp_path):
    """Down to machine code that adds nothing in an order of its own: a result repeats bit by bit."""
    pytest.importorskip("triton", minversion="3.3", reason="no Triton, or an old one")
    from distill.losses.transport import triton_kernels

    use_every_kernel()
    different = {}
    for name, arguments, constants in launches:
        names = getattr(triton_kernels, name).arg_names
        options = {"num_warps": constants.pop("warps", 4), "enable_fp_fusion": True}
        given = dict(zip(names, arguments, strict=False))
        assert names == [*given, *constants]
        types = {key: TYPES[getattr(value, "dtype", type(value))] for key, value in given.items()}
        # What Triton's launcher makes of a 1, a multiple of 16, and a tensor that begins at one.
        ones = {key: 1 for key, value in given.items() if type(value) is int and value == 1}
        multiples = [
            place
            for place, value in enumerate(arguments)
            if isinstance(value, torch.Tensor) or (type(value) is int and value % 16 == 0)
        ]
        launch = (name, types, {**ones, **constants}, multiples, options)
        different[str(launch)] = launch
    # A process imports Triton for its interpreter, as this one does, or for its compiler.
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        input=json.dumps([capability, list(different.values())]),
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    for name, size, orderless, shared in made:
        assert size, name
        assert not orderless, name
        assert shared <= 99 * 1024, name  # what the smallest of these GPUs has
    kernels = {name for name, value in vars(triton_kernels).items() if hasattr(value, "arg_names")}
    assert {name for name, *_ in made} == {name for name in kernels if not name.startswith("_")}


def test_nothing_but_float32_goes_to_the_kernels():
    here = torch.zeros(2, 3)
    assert not on_gpu.runs(here)
    with forced_on("cpu"):
        assert on_gpu.runs(here)
        assert not on_gpu.runs(here, here.double())


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
