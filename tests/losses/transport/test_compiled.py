"""The compiled tile computes what torch does, or is not there and says so."""

import multiprocessing
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distill.losses.transport import compiled
from distill.losses.transport.compiled import Tile, use_compiled_tile
from distill.losses.transport.manhattan import distance_pull, manhattan, overlap, self_overlap

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
        assert use_compiled_tile()
        use_compiled_tile(False)
    return folder


@pytest.fixture
def tile(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Tile:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(compiled, "_attempt", [])
    monkeypatch.setattr(compiled, "_wanted", False)
    found = compiled._tile()
    assert found is not None
    return found


def run(environment: dict[str, str]) -> tuple[float, bool, str]:
    """A process of its own that asks for the tile: the loss, whether it has the tile, and what it warned of."""
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
    assert not use_compiled_tile(False)
    student, teacher = torch.randn(2, 4, 100, generator=torch.Generator().manual_seed(0))
    return float(Sinkhorn()(Rows(student=student, teacher=teacher)).sum())


def softmaxes(rows: int, others: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    p, q = (3 * torch.randn(n, classes, generator=generator).softmax(-1) for n in (rows, others))
    p[0, : classes // 2] = q[-1, : classes // 2]  # ties
    return p, q


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 16), (1, 9, 17), (5, 1, 31), (4, 4, 64), (7, 6, 1025), (3, 70, 5000), (67, 130, 1100), (64, 66, 4099)],
)  # fmt: skip
def test_sums_and_gradients_are_those_of_all_pairs_at_once(tile, shape, threads):
    rows, others, _ = shape
    p, q = softmaxes(*shape)
    pull = torch.randn(others, rows, generator=torch.Generator().manual_seed(0)).T
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        shared, pulled = tile.overlap(p, q, own=False), tile.distance_pull(pull, p, q)
        own = tile.overlap(q, q, own=True)
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
    tile = compiled._tile()
    assert tile is not None
    p, q = softmaxes(67, 130, 1100)
    pull = torch.randn(67, 130, generator=torch.Generator().manual_seed(0))
    exact = torch.stack([torch.minimum(row, q).double().sum(-1) for row in p])
    torch.testing.assert_close(tile.overlap(p, q, own=False), exact, rtol=3e-7, atol=0)
    exact = torch.stack([torch.minimum(row, q).double().sum(-1) for row in q])
    torch.testing.assert_close(tile.overlap(q, q, own=True).triu(), exact.triu(), rtol=3e-7, atol=0)
    torch.testing.assert_close(
        tile.distance_pull(pull, p, q), distance_pull(pull, p, q), rtol=1e-5, atol=1e-5
    )


def test_threads_do_not_change_the_gradient_and_the_sums_by_a_rounding_of_float64(tile):
    p, q = softmaxes(64, 64, 20_011)
    pull = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append((tile.overlap(p, q, own=False), tile.distance_pull(pull, p, q)))
    torch.set_num_threads(before)
    for shared, pulled in found[1:]:
        torch.testing.assert_close(shared, found[0][0], rtol=1e-14, atol=0)
        assert torch.equal(pulled, found[0][1])


@pytest.mark.parametrize("place", [0, 16, 36])
def test_a_nan_shows_in_its_rows_distances_and_in_its_columns_gradient(tile, place):
    p, q = softmaxes(5, 7, 37)
    p[2, place] = torch.nan
    q[6, place] = torch.nan
    bad = torch.zeros(5, 7, dtype=torch.bool)
    bad[2], bad[:, 6] = True, True
    assert torch.equal(tile.overlap(p, q, own=False).isnan(), bad)
    assert torch.equal(tile.overlap(p, p, own=True).triu().isnan().any(1), torch.tensor([1, 1, 1, 0, 0]) > 0)
    there = torch.zeros(5, 37, dtype=torch.bool)
    there[:, place] = True
    assert torch.equal(tile.distance_pull(torch.ones(5, 7), p, q).isnan(), there)


def test_a_number_below_zero_which_no_distribution_has_is_not_taken_for_one(tile):
    p, q = softmaxes(3, 4, 37)
    p[1, 20] = -1e-30
    assert tile.overlap(p, q, own=False).isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_pull_that_is_not_finite_takes_torchs_way(tile, monkeypatch, bad):
    p, q = softmaxes(3, 4, 40)
    pull = torch.ones(3, 4)
    pull[0, 3] = bad  # which meets ties
    expected = distance_pull(pull, p, q)
    monkeypatch.setattr(compiled, "_wanted", True)
    torch.testing.assert_close(distance_pull(pull, p, q), expected, rtol=0, atol=0, equal_nan=True)
    assert not bool(expected[0].isfinite().any())


@pytest.fixture
def calls(tile, monkeypatch) -> list[str]:
    """Use the tile, and note what it is called for."""
    noted: list[str] = []
    call = Tile._call
    monkeypatch.setattr(
        Tile, "_call", lambda self, name, *rest: noted.append(name) or call(self, name, *rest)
    )
    monkeypatch.setattr(compiled, "_wanted", True)
    return noted


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (Sinkhorn(debias=False), ["l1_overlap", "l1_pull"]),
        (Sinkhorn(), 3 * ["l1_overlap"] + 2 * ["l1_pull"]),
        (Sinkhorn(cost="total_variation"), 3 * ["l1_overlap"] + 2 * ["l1_pull"]),
        (Sinkhorn(memory="low", debias=False), ["l1_overlap", "l1_pull"]),
    ],
)
@pytest.mark.parametrize("sparse", [False, True])
def test_the_losses_use_it_and_change_by_no_more_than_roundings(calls, loss, expected, sparse):
    generator = torch.Generator().manual_seed(0)
    student, teacher = 2 * torch.randn(2, 7, 3001, generator=generator)
    if sparse:
        kept = teacher.topk(40)
        teacher = torch.full_like(teacher, -torch.inf).scatter_(1, kept.indices, kept.values)
    student.requires_grad_()
    found = []
    for wanted in (True, False):
        use_compiled_tile(wanted)
        values = loss(Rows(student=student, teacher=teacher))
        found.append((values, *torch.autograd.grad(values.sum(), student)))
    assert calls == expected
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
    use_compiled_tile(False)
    for found, expected in zip(mine, second(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_it_is_not_used_unless_asked_for(calls):
    p, q = softmaxes(3, 4, 64)
    use_compiled_tile(False)
    overlap(p, q)
    assert calls == []
    assert use_compiled_tile()
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
    builders = [fork.Process(target=lambda: sys.exit(compiled._tile() is None)) for _ in range(2)]
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
        assert not use_compiled_tile()
    assert not use_compiled_tile()
    assert len(warned) == 1
    p, q = softmaxes(3, 4, 64)
    torch.testing.assert_close(
        overlap(p, q), torch.minimum(p[:, None], q).double().sum(-1), rtol=1e-6, atol=0
    )


def test_no_compiler_is_a_warning_and_a_run_goes_on(tmp_path):
    environment = {"PATH": str(tmp_path), "CXX": "", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    value, there, said = run(environment)
    assert not there
    assert said.count("no compiled tile for transport costs") == 1
    assert "none of c++, g++, clang++ is installed" in said
    assert value == plain()


def test_a_cache_that_cannot_be_written_is_a_warning(cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")  # a folder's permissions do not bind root
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(compiled, "_attempt", [])
    monkeypatch.setattr(compiled, "_wanted", False)
    with pytest.warns(UserWarning, match="XDG_CACHE_HOME names another cache folder"):
        assert not use_compiled_tile()


def test_a_library_that_computes_something_else_is_not_used(cache, tmp_path, monkeypatch):
    source = compiled._SOURCE.read_text(encoding="utf-8")
    broken = source.replace("p[n][k] < q[k] ?", "p[n][k] <= q[k] ?")
    assert broken != source
    (tmp_path / "l1_tile.cpp").write_text(broken, encoding="utf-8")
    monkeypatch.setattr(compiled, "_SOURCE", tmp_path / "l1_tile.cpp")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled, "_attempt", [])
    monkeypatch.setattr(compiled, "_wanted", False)
    with pytest.warns(UserWarning, match="does not compute what torch does"):
        assert not use_compiled_tile()
    assert len(list((tmp_path / "distill").iterdir())) == 1
