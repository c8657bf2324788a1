"""The compiled loops compute what torch and NumPy do, or are not there and say so."""

import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from distill.losses.transport import compiled
from distill.losses.transport.compiled import CompiledTransport, use_compiled_transport
from distill.losses.transport.few_classes import FewClasses
from distill.losses.transport.manhattan import distance_pull, manhattan, overlap, self_overlap
from distill.losses.transport.problem import TransportProblem
from distill.losses.transport.rounds import LARGEST_EXPONENT, NUMPY_ROWS, scale, scale_adjoint
from distill.losses.transport.solve import solve

from distill.losses import Rows, Sinkhorn

PROGRAM = """
import sys, warnings, torch
warnings.simplefilter("default")
from distill.losses import Rows, Sinkhorn
from distill.losses.transport import compiled
student, teacher = torch.randn(2, 4, 100, generator=torch.Generator().manual_seed(0))
print(float(Sinkhorn()(Rows(student=student, teacher=teacher)).sum()), compiled._attempt != [None])
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the library in it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        try:
            compiled._compiler()
        except compiled._UnavailableError as why:
            pytest.skip(str(why))
        patch.setattr(compiled, "_attempt", [])
        assert use_compiled_transport()
        use_compiled_transport(False)
    return folder


@pytest.fixture
def library(cache: Path, monkeypatch: pytest.MonkeyPatch) -> CompiledTransport:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(compiled, "_attempt", [])
    monkeypatch.setattr(compiled, "_wanted", False)
    found = compiled._library()
    assert found is not None
    return found


def run(environment: dict[str, str]) -> tuple[float, bool, str]:
    """A process of its own that asks for the library: the loss, whether it has it, and what it warned of."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "DISTILL_COMPILED": "1", **environment},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    value, there = done.stdout.split()
    return float(value), there == "True", done.stderr


def plain() -> float:
    """The loss of that process, by torch."""
    assert not use_compiled_transport(False)
    student, teacher = torch.randn(2, 4, 100, generator=torch.Generator().manual_seed(0))
    return float(Sinkhorn()(Rows(student=student, teacher=teacher)).sum())


def softmaxes(rows: int, others: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    p, q = (3 * torch.randn(n, classes, generator=generator).softmax(-1) for n in (rows, others))
    p[0, : classes // 2] = q[-1, : classes // 2]  # ties
    return p, q


def kernel_and_masses(
    rows: int, others: int, largest: float = 20.0
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """What Sinkhorn's rounds start from, with masses that differ twentyfold, and a gradient for their plan."""
    random = np.random.default_rng(1000 * rows + others)
    source, target = (random.uniform(0.05, 1, n) for n in (rows, others))
    given = (np.exp(-largest * random.random((rows, others))), source / source.sum(), target / target.sum())
    return tuple(part.astype(np.float32) for part in given), random.random((rows, others)).astype(np.float32)


def in_float64(*parts: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(part.astype(np.float64) for part in parts)


def distance(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 16), (1, 9, 17), (5, 1, 31), (4, 4, 64), (7, 6, 1025), (3, 70, 5000), (67, 130, 1100), (64, 66, 4099)],
)  # fmt: skip
def test_sums_and_gradients_are_those_of_all_pairs_at_once(library, shape, threads):
    rows, others, _ = shape
    p, q = softmaxes(*shape)
    pull = torch.randn(others, rows, generator=torch.Generator().manual_seed(0)).T
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        shared, pulled = library.overlap(p, q, own=False), library.distance_pull(pull, p, q)
        own = library.overlap(q, q, own=True)
    finally:
        torch.set_num_threads(before)
    exact = torch.stack([torch.minimum(row, q).double().sum(-1) for row in p])
    torch.testing.assert_close(shared, exact, rtol=3e-7, atol=0)
    exact = torch.stack([torch.minimum(row, q).double().sum(-1) for row in q])
    torch.testing.assert_close(own.triu(), exact.triu(), rtol=3e-7, atol=0)
    exact = torch.stack([w.double() @ (row - q).sign().double() for w, row in zip(pull, p, strict=True)])
    torch.testing.assert_close(pulled.double(), exact, rtol=1e-6, atol=1e-6 * float(pull.abs().sum(1).amax()))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are flags for x86-64")
@pytest.mark.parametrize("flag", ["-mno-avx512f", "-mno-avx"])
def test_older_processors_get_the_same(cache, tmp_path, monkeypatch, flag):
    monkeypatch.setenv("CXX", f"{compiled._compiler()[0]} {flag}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled, "_attempt", [])
    library = compiled._library()
    assert library is not None
    p, q = softmaxes(67, 130, 1100)
    pull = torch.randn(67, 130, generator=torch.Generator().manual_seed(0))
    exact = torch.stack([torch.minimum(row, q).double().sum(-1) for row in p])
    torch.testing.assert_close(library.overlap(p, q, own=False), exact, rtol=3e-7, atol=0)
    exact = torch.stack([torch.minimum(row, q).double().sum(-1) for row in q])
    torch.testing.assert_close(library.overlap(q, q, own=True).triu(), exact.triu(), rtol=3e-7, atol=0)
    torch.testing.assert_close(
        library.distance_pull(pull, p, q), distance_pull(pull, p, q), rtol=1e-5, atol=1e-5
    )
    given, pull = kernel_and_masses(33, 21)
    plan, *scalings = library.scale(*given, 20)
    exact, *exact_scalings = scale(*in_float64(*given), 20)
    np.testing.assert_allclose(plan, exact, rtol=2e-6)
    pulled = library.scale_adjoint(pull, plan, *given, *scalings)
    exact_pull = scale_adjoint(*in_float64(pull), exact, *in_float64(*given), *exact_scalings)
    assert distance(pulled, exact_pull) < 2e-6


def test_threads_do_not_change_the_gradient_and_the_sums_by_a_rounding_of_float64(library):
    p, q = softmaxes(64, 64, 20_011)
    pull = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append((library.overlap(p, q, own=False), library.distance_pull(pull, p, q)))
    torch.set_num_threads(before)
    for shared, pulled in found[1:]:
        torch.testing.assert_close(shared, found[0][0], rtol=1e-14, atol=0)
        assert torch.equal(pulled, found[0][1])


@pytest.mark.parametrize("place", [0, 16, 36])
def test_a_nan_shows_in_its_rows_distances_and_in_its_columns_gradient(library, place):
    p, q = softmaxes(5, 7, 37)
    p[2, place] = torch.nan
    q[6, place] = torch.nan
    bad = torch.zeros(5, 7, dtype=torch.bool)
    bad[2], bad[:, 6] = True, True
    assert torch.equal(library.overlap(p, q, own=False).isnan(), bad)
    assert torch.equal(
        library.overlap(p, p, own=True).triu().isnan().any(1), torch.tensor([1, 1, 1, 0, 0]) > 0
    )
    there = torch.zeros(5, 37, dtype=torch.bool)
    there[:, place] = True
    assert torch.equal(library.distance_pull(torch.ones(5, 7), p, q).isnan(), there)


def test_a_number_below_zero_which_no_distribution_has_is_not_taken_for_one(library):
    p, q = softmaxes(3, 4, 37)
    p[1, 20] = -1e-30
    assert library.overlap(p, q, own=False).isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_pull_that_is_not_finite_takes_torchs_way(library, monkeypatch, bad):
    p, q = softmaxes(3, 4, 40)
    pull = torch.ones(3, 4)
    pull[0, 3] = bad  # which meets ties
    expected = distance_pull(pull, p, q)
    monkeypatch.setattr(compiled, "_wanted", True)
    torch.testing.assert_close(distance_pull(pull, p, q), expected, rtol=0, atol=0, equal_nan=True)
    assert not bool(expected[0].isfinite().any())


@pytest.fixture
def calls(library, monkeypatch) -> list[str]:
    """Use the library, and note what it is called for."""
    noted: list[str] = []
    call = CompiledTransport._call
    monkeypatch.setattr(
        CompiledTransport, "_call", lambda self, name, *rest: noted.append(name) or call(self, name, *rest)
    )
    monkeypatch.setattr(compiled, "_wanted", True)
    return noted


@pytest.mark.parametrize(
    ("loss", "solves", "pulled"),
    [
        (Sinkhorn(debias=False), 1, 1),
        (Sinkhorn(), 3, 2),
        (Sinkhorn(cost="total_variation"), 3, 2),
        (Sinkhorn(memory="low", debias=False), 1, 1),
    ],
)
@pytest.mark.parametrize("sparse", [False, True])
def test_the_losses_use_it_and_change_by_no_more_than_roundings(calls, loss, solves, pulled, sparse):
    generator = torch.Generator().manual_seed(0)
    student, teacher = 2 * torch.randn(2, 7, 3001, generator=generator)
    if sparse:
        kept = teacher.topk(40)
        teacher = torch.full_like(teacher, -torch.inf).scatter_(1, kept.indices, kept.values)
    student.requires_grad_()
    found = []
    for wanted in (True, False):
        use_compiled_transport(wanted)
        values = loss(Rows(student=student, teacher=teacher))
        found.append((values, *torch.autograd.grad(values.sum(), student)))
    assert Counter(calls) == Counter(
        l1_overlap=solves, sinkhorn_scale=solves, sinkhorn_scale_adjoint=pulled, l1_pull=pulled
    )
    torch.testing.assert_close(found[0][0], found[1][0], rtol=2e-6, atol=2e-7)
    # Each is about 5e-6 from float64's: a rounding of the distances counts 1/ε times in the plan.
    assert float((found[0][1] - found[1][1]).norm() / found[1][1].norm()) < 1e-5


def test_what_it_is_not_made_for_is_left_to_torch(calls):
    p, q = softmaxes(3, 4, 64)
    for source, target in (
        (p.double(), q.double()),
        (p[:, ::2], q[:, ::2]),
        (p[:, :15].contiguous(), q[:, :15].contiguous()),
        (p[:0], q),
    ):
        overlap(source, target)
        self_overlap(source)
        distance_pull(source.new_ones(len(source), len(target)), source, target)
    assert calls == []
    overlap(p[:, :16].contiguous(), q[:, :16].contiguous())
    assert calls == ["l1_overlap"]


def test_second_derivatives_are_what_they_were(calls):
    generator = torch.Generator().manual_seed(12)
    p, q = (torch.rand(n, 20, generator=generator).requires_grad_() for n in (2, 3))
    weight = torch.rand(2, 3, generator=generator).requires_grad_()

    def second() -> tuple[torch.Tensor, ...]:
        (first,) = torch.autograd.grad((manhattan(p, q).square() * weight).sum(), p, create_graph=True)
        return torch.autograd.grad(first.square().sum(), (p, q, weight))

    mine = second()
    assert calls
    use_compiled_transport(False)
    for found, expected in zip(mine, second(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_it_is_not_used_unless_asked_for(calls):
    p, q = softmaxes(3, 4, 64)
    use_compiled_transport(False)
    overlap(p, q)
    assert calls == []
    assert use_compiled_transport()
    overlap(p, q)
    assert calls == ["l1_overlap"]


def test_the_environment_asks_for_it_and_what_is_in_the_cache_is_not_built_again(cache):
    (library,) = (cache / "distill").iterdir()
    built = library.stat().st_mtime_ns
    value, there, said = run({"XDG_CACHE_HOME": str(cache)})
    assert there
    assert not said
    assert value == pytest.approx(plain(), rel=1e-5)
    assert [path.stat().st_mtime_ns for path in (cache / "distill").iterdir()] == [built]


def test_two_processes_that_build_at_once_both_get_it(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled, "_attempt", [])
    fork = multiprocessing.get_context("fork")
    builders = [fork.Process(target=lambda: sys.exit(compiled._library() is None)) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(timeout=120)
        assert builder.exitcode == 0
    assert os.listdir(tmp_path / "distill") == os.listdir(cache / "distill")


def script(folder: Path, *lines: str) -> str:
    path = folder / "compiler"
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["echo 1.0", "[ $1 = --version ] || { echo 'fatal error: no disk' >&2; exit 1; }"], "fatal error: no disk"),
        (["exit 3"], "it said nothing"),
        (
            ["echo 1.0", 'while [ $# -gt 1 ]; do [ $1 = -o ] && echo junk > "$2"; shift; done'],
            "file too short|invalid ELF|not a mach-o|slice is not valid",
        ),
    ],
    ids=["fails", "cannot say its version", "makes no library"],
)  # fmt: skip
def test_a_compiler_that_fails_is_one_warning_and_torch_goes_on(tmp_path, monkeypatch, lines, said):
    monkeypatch.setenv("CXX", script(tmp_path, *lines))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled, "_attempt", [])
    monkeypatch.setattr(compiled, "_wanted", False)
    with pytest.warns(UserWarning, match=said) as warned:
        assert not use_compiled_transport()
    assert not use_compiled_transport()
    assert len(warned) == 1
    p, q = softmaxes(3, 4, 64)
    torch.testing.assert_close(
        overlap(p, q), torch.minimum(p[:, None], q).double().sum(-1), rtol=1e-6, atol=0
    )


def test_no_compiler_is_a_warning_and_a_run_goes_on(tmp_path):
    environment = {"PATH": str(tmp_path), "CXX": "", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    value, there, said = run(environment)
    assert not there
    assert said.count("no compiled loops for the transport losses") == 1
    assert "none of c++, g++, clang++ is installed" in said
    assert value == plain()


def test_a_cache_that_cannot_be_written_is_a_warning(cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")  # a folder's permissions do not bind root
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(compiled, "_attempt", [])
    monkeypatch.setattr(compiled, "_wanted", False)
    with pytest.warns(UserWarning, match="XDG_CACHE_HOME names another cache folder"):
        assert not use_compiled_transport()


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("manhattan.cpp", "p[n][k] < q[k] ?", "p[n][k] <= q[k] ?"),
        ("rounds.cpp", "load(packed) * u_N[n] * column", "load(packed) * u_N[0] * column"),
        ("rounds.cpp", "if (k == K - 1) part =", "if (k == 0) part ="),
        ("few_classes.cpp", "cost_G[m] *= unit", "cost_G[m] *= 1.0f"),
        ("few_classes.cpp", "difference > 0.0f ? pull", "difference >= 0.0f ? pull"),
        ("few_classes.cpp", "if (own)", "if (own && G > 99)"),
    ],
)
def test_a_library_that_computes_something_else_is_not_used(cache, tmp_path, monkeypatch, file, right, wrong):
    for name in (*compiled._SOURCES, compiled._HEADER):
        shutil.copy(compiled._FOLDER / name, tmp_path)
    source = (tmp_path / file).read_text(encoding="utf-8")
    broken = source.replace(right, wrong)
    assert broken != source
    (tmp_path / file).write_text(broken, encoding="utf-8")
    monkeypatch.setattr(compiled, "_FOLDER", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled, "_attempt", [])
    monkeypatch.setattr(compiled, "_wanted", False)
    with pytest.warns(UserWarning, match="does not compute what torch and NumPy do"):
        assert not use_compiled_transport()
    assert len(list((tmp_path / "distill").iterdir())) == 1


@pytest.mark.parametrize("rounds", [1, 2, 20])
@pytest.mark.parametrize(
    "shape", [(1, 5), (5, 1), (3, 4), (16, 16), (17, 15), (33, 70), (64, 64), (160, 160), (301, 512)]
)
def test_the_rounds_are_numpys_and_so_is_their_adjoint(library, shape, rounds):
    given, pull = kernel_and_masses(*shape)
    found, numpys, exact = (
        do(*parts, rounds)
        for do, parts in ((library.scale, given), (scale, given), (scale, in_float64(*given)))
    )
    assert [part.shape for part in found] == [part.shape for part in numpys]
    assert all(part.dtype == np.float32 for part in found)
    for mine, theirs in zip(found, numpys, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=3e-6)
    for mine, true in zip(found, exact, strict=True):
        assert distance(mine, true) < 1e-6
    pulled = library.scale_adjoint(pull, found[0], *given, *found[1:])
    numpys_pull = scale_adjoint(pull, numpys[0], *given, *numpys[1:])
    exact_pull = scale_adjoint(*in_float64(pull), exact[0], *in_float64(*given), *exact[1:])
    # Where one side is a single row nothing can move, and what is left of the gradient is rounding.
    size = np.linalg.norm(exact_pull) + np.linalg.norm(pull * exact[0]) / 10
    error, numpys_error = (np.linalg.norm(one - exact_pull) / size for one in (pulled, numpys_pull))
    assert error < max(3e-6, 2 * numpys_error)


def test_one_row_and_one_other_have_one_plan(library):
    one = np.ones(1, np.float32)
    plan, u, v = library.scale(np.full((1, 1), 0.25, np.float32), one, one, 3)
    assert plan.tolist() == [[1]]
    assert u.tolist() == [[4]] * 3
    assert v.tolist() == [[1]] * 4
    assert library.scale_adjoint(plan, plan, plan / 4, one, one, u, v).tolist() == [[0]]


def test_the_farthest_that_scalings_reach_has_float64s_plan_and_gradient(library):
    """A kernel of nothing but 1 and the least, and weights eight digits apart."""
    random = np.random.default_rng(4)
    kernel = np.exp(-LARGEST_EXPONENT[torch.float32] * random.integers(0, 2, (21, 40)))
    kernel[0] = kernel[:, 0] = kernel.min()
    given = (
        kernel,
        *(mass / mass.sum() for mass in (10.0 ** np.linspace(-8, 0, 21), 10.0 ** np.linspace(0, -8, 40))),
    )
    given, pull = tuple(part.astype(np.float32) for part in given), random.random((21, 40)).astype(np.float32)
    plan, u, v = library.scale(*given, 500)
    exact = scale(*in_float64(*given), 500)
    np.testing.assert_allclose(plan, exact[0], rtol=1e-3, atol=1e-7)
    pulled = library.scale_adjoint(pull, plan, *given, u, v)
    exact_pull = scale_adjoint(*in_float64(pull), exact[0], *in_float64(*given), *exact[1:])
    assert distance(pulled, exact_pull) < 1e-4


def test_scalings_whose_squares_are_no_numbers_have_the_same_adjoint(library):
    """What u is multiplied by and v divided by, in all rounds, is nowhere in the gradient."""
    given, pull = kernel_and_masses(21, 40)
    plan, u, v = library.scale(*given, 20)
    far = np.float32(2.0**76)
    with np.errstate(over="ignore", under="ignore"):
        assert np.isinf((u * far) ** 2).any()
        assert ((v / far) ** 2 == 0).any()
    np.testing.assert_allclose(
        library.scale_adjoint(pull, plan, *given, u * far, v / far),
        library.scale_adjoint(pull, plan, *given, u, v),
        rtol=1e-6,
        atol=1e-9,
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_not_finite_comes_through_the_rounds_as_in_numpy(library, bad, place):
    given, pull = kernel_and_masses(19, 34)
    given[place][-1] = bad  # a row of the kernel, or a mass
    with np.errstate(all="ignore"):
        found, expected = library.scale(*given, 3), scale(*given, 3)
        pulled = library.scale_adjoint(pull, found[0], *given, *found[1:])
        expected_pull = scale_adjoint(pull, expected[0], *given, *expected[1:])
    for mine, theirs in zip((*found, pulled), (*expected, expected_pull), strict=True):
        assert np.array_equal(np.isfinite(mine), np.isfinite(theirs))
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=3e-6)
    assert bad == 0 or not all(np.isfinite(part).all() for part in (*found, pulled))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_plans_gradient_that_is_not_finite_comes_through_as_in_numpy(library, bad):
    given, pull = kernel_and_masses(19, 34)
    plan, *scalings = scale(*given, 3)
    pull[4, 33] = bad
    with np.errstate(all="ignore"):
        pulled = library.scale_adjoint(pull, plan, *given, *scalings)
        expected = scale_adjoint(pull, plan, *given, *scalings)
    assert np.array_equal(np.isfinite(pulled), np.isfinite(expected))
    assert not np.isfinite(pulled).any()


def test_the_rounds_take_arrays_as_they_lie(calls):
    (kernel, source, target), _ = kernel_and_masses(6, 9)
    given = (np.asfortranarray(kernel), np.repeat(source, 2)[::2], np.broadcast_to(target, (2, 9)).copy()[1])
    pull = torch.arange(6.0)[:, None].expand(6, 9).numpy()
    plan, *scalings = scale(*given, 5)
    pulled = scale_adjoint(pull, plan, *given, *scalings)
    assert calls == ["sinkhorn_scale", "sinkhorn_scale_adjoint"]
    use_compiled_transport(False)
    expected, *expected_scalings = scale(*given, 5)
    np.testing.assert_allclose(plan, expected, rtol=1e-6)
    expected_pull = scale_adjoint(pull, expected, *given, *expected_scalings)
    assert distance(pulled, expected_pull) < 1e-5


def test_the_rounds_of_what_it_is_not_made_for_are_left_to_numpy_and_torch(calls):
    given, _ = kernel_and_masses(6, 9)
    frozen = given[0].copy()
    frozen.flags.writeable = False
    for others in (
        in_float64(*given),
        (frozen, *given[1:]),
        tuple(map(torch.from_numpy, given)),
    ):
        plan, *scalings = scale(*others, 5)
        scale_adjoint(plan, plan, *others, *scalings)
    assert calls == []
    scale(*given, 5)
    assert calls == ["sinkhorn_scale"]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("classes", "rows"), [(1, 5), (2, 16), (3, 33), (8, 1), (8, 160)])
def test_distances_over_few_classes_and_their_gradient_are_numpys(library, classes, rows, own):
    p, q = (
        np.random.default_rng(classes)
        .dirichlet(np.ones(classes), (2, rows))
        .astype(np.float32)
        .swapaxes(1, 2)
    )
    q[:, : rows // 2] = p[:, : rows // 2]  # ties
    q = p if own else q
    cost = library.few_classes_cost(p, q, 0.5)
    difference = p[:, :, None] - q[:, None, :]
    np.testing.assert_allclose(cost, np.abs(difference).sum(0) / 2, rtol=1e-6)
    (_, mass, _), share_pull = kernel_and_masses(rows, 1)
    share_pull = share_pull[:, 0]
    kernel = np.exp(-10 * cost)
    plan, *scalings = library.scale(kernel, mass, mass, 20)
    weight = (share_pull / mass)[:, None]
    pull = library.scale_adjoint(weight * cost, plan, kernel, mass, mass, *scalings) * 10 + weight * plan
    pull = (pull + pull.T if own else pull) / 2
    found = library.few_classes_pull(
        share_pull, p, q, cost, plan, kernel, mass, *scalings, own=own, unit=0.5, epsilon=0.1
    )
    expected = (np.sign(difference) * pull).astype(np.float64).sum(2)
    size = np.abs(pull).sum(1).max()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6 * size)


@pytest.mark.parametrize("side", [0, 1])
def test_a_nan_over_few_classes_shows_in_its_distances_and_its_classs_gradient(library, side):
    p, q = sides = np.random.default_rng(0).dirichlet(np.ones(3), (2, 21)).astype(np.float32).swapaxes(1, 2)
    (_, mass, _), _ = kernel_and_masses(21, 1)
    cost = library.few_classes_cost(p, q, 1.0)
    kernel = np.exp(-10 * cost)
    plan, *scalings = library.scale(kernel, mass, mass, 3)
    sides[side, 1, 20] = np.nan
    bad = np.zeros((21, 21), bool)
    bad[(20, slice(None)) if side == 0 else (slice(None), 20)] = True
    assert np.array_equal(np.isnan(library.few_classes_cost(p, q, 1.0)), bad)
    pulled = library.few_classes_pull(
        mass, p, q, cost, plan, kernel, mass, *scalings, own=False, unit=1.0, epsilon=0.1
    )
    there = np.zeros((3, 21), bool)
    there[(1, 20) if side == 0 else 1] = True
    assert np.array_equal(np.isnan(pulled), there)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_logit_or_a_gradient_that_is_not_finite_comes_through_a_loss_of_few_classes(calls, bad):
    student, teacher = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0))
    spoilt = student.clone()
    spoilt[3, 1] = bad
    pull = torch.ones(16)
    pull[5] = bad
    for logits, given in ((spoilt, torch.ones(16)), (student, pull)):
        finite = []
        for wanted in (True, False):
            use_compiled_transport(wanted)
            live = logits.clone().requires_grad_()
            values = Sinkhorn()(Rows(student=live, teacher=teacher))
            (gradient,) = torch.autograd.grad(values, live, given)
            finite.append((values.isfinite(), gradient.isfinite()))
        assert "few_classes_pull" in calls
        assert all(torch.equal(*pair) for pair in zip(*finite, strict=True))
        assert not bool(finite[0][1].all())


def test_few_classes_are_done_for_as_many_rows_as_the_rounds(calls):
    assert FewClasses.fit(Sinkhorn(), torch.zeros(NUMPY_ROWS, 2))
    assert not FewClasses.fit(Sinkhorn(), torch.zeros(NUMPY_ROWS + 1, 2))
    assert not FewClasses.fit(Sinkhorn(), torch.zeros(NUMPY_ROWS, 2, dtype=torch.float64))


def test_a_loss_of_few_classes_that_stops_or_begins_to_be_compiled_between_its_passes(calls):
    student, teacher = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0))
    student.requires_grad_()
    found = []
    for forward in (True, False):
        for backward in (True, False):
            use_compiled_transport(forward)
            total = Sinkhorn()(Rows(student=student, teacher=teacher)).sum()
            use_compiled_transport(backward)
            found.append(torch.autograd.grad(total, student)[0])
    assert Counter(calls) == Counter(few_classes_cost=6, sinkhorn_scale=6, few_classes_pull=4)
    for gradient in found[1:]:
        torch.testing.assert_close(gradient, found[0], rtol=1e-5, atol=1e-5 * float(found[0].norm()))


@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize("cost", ["l1", "total_variation", "squared_euclidean"])
@pytest.mark.parametrize("shape", [(1, 3), (16, 2), (33, 3), (512, 2)])
def test_a_loss_of_few_classes_uses_it_and_changes_by_no_more_than_roundings(calls, shape, cost, debias):
    student, teacher = 2 * torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    student.requires_grad_()
    weight = torch.linspace(0.5, 2, len(student))
    loss = Sinkhorn(debias=debias, cost=cost)
    found = []
    for wanted in (True, False):
        use_compiled_transport(wanted)
        rows = Rows(student=student, teacher=teacher, weight=weight)
        values = loss(rows)
        found.append((values, *torch.autograd.grad(rows.mean(values), student)))
    solves, pulled = 1 + 2 * debias, 1 + debias
    if cost == "squared_euclidean":
        assert Counter(calls) == Counter(sinkhorn_scale=solves, sinkhorn_scale_adjoint=pulled)
    else:
        assert Counter(calls) == Counter(
            few_classes_cost=solves, sinkhorn_scale=solves, few_classes_pull=pulled
        )
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        found[0][1], found[1][1], rtol=1e-5, atol=1e-5 * float(found[1][1].norm()) + 1e-8
    )


def test_a_plan_between_unequal_clouds_has_float64s_gradient(calls):
    generator = torch.Generator().manual_seed(0)
    cost = 2 * torch.rand(7, 20, generator=generator)
    source, target = (torch.rand(n, generator=generator) + 0.05 for n in cost.shape)
    weight = torch.rand(7, 20, generator=generator)
    found = []
    for dtype in (torch.float32, torch.float64):
        parts = (part.to(dtype) for part in (cost, source / source.sum(), target / target.sum()))
        given = TransportProblem(*parts, epsilon=0.1)
        given.cost_NM.requires_grad_()
        plan = solve(given, iterations=20).plan
        found.append((plan, *torch.autograd.grad((plan * weight).sum(), given.cost_NM)))
    assert calls == ["sinkhorn_scale", "sinkhorn_scale_adjoint"]
    torch.testing.assert_close(found[0][0].double(), found[1][0], rtol=5e-6, atol=0)
    assert distance(found[0][1].double().numpy(), found[1][1].numpy()) < 5e-6


@pytest.mark.parametrize("classes", [3, 20])
def test_a_gradients_gradient_is_what_it_was(calls, classes):
    student, teacher = torch.randn(2, 4, classes, generator=torch.Generator().manual_seed(1))
    loss = Sinkhorn(iterations=5)

    def of(logits: torch.Tensor) -> torch.Tensor:
        return loss(Rows(student=logits, teacher=teacher.to(logits.dtype)))

    assert torch.autograd.gradgradcheck(of, student.double().requires_grad_())
    assert calls == []
    student.requires_grad_()
    found = []
    for wanted in (True, False):
        use_compiled_transport(wanted)
        (first,) = torch.autograd.grad(of(student).sum(), student, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), student)[0])
    assert "sinkhorn_scale" in calls
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
