"""Where Triton's kernels run, and what is said where they could and do not."""

from types import SimpleNamespace

import pytest
import torch
from distill.losses.kernels import availability
from distill.losses.kernels.availability import forced_on, triton_runs_on
from packaging.version import Version

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)

try:
    from triton import __version__ as triton_version
except ImportError:
    triton_version = "0.0"
needs_triton = pytest.mark.skipif(Version(triton_version) < Version("3.3"), reason="no Triton, or an old one")


@pytest.fixture
def gpu(monkeypatch):
    """A function that pretends there is an NVIDIA GPU of some compute capability, asked for the first time."""

    def pretend(*capability: int) -> None:
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    availability._launches_on.cache_clear()
    yield pretend
    availability._launches_on.cache_clear()


class Launcher:
    """Triton's, which is built when it is first asked for."""

    def __init__(self, problem: Exception | None = None):
        self.problem, self.built = problem, 0

    @property
    def active(self):
        self.built += 1
        if self.problem is not None:
            raise self.problem
        return SimpleNamespace(utils=None)


@needs_triton
def test_a_gpu_with_triton_and_a_compiler_runs_them_and_is_asked_once(gpu, monkeypatch):
    gpu(8, 0)
    launcher = Launcher()
    monkeypatch.setattr("triton.runtime.driver", launcher)
    assert triton_runs_on(GPU)
    assert triton_runs_on(GPU)
    assert launcher.built == 1


@needs_triton
@pytest.mark.parametrize(
    "problem", [RuntimeError("Failed to find C compiler."), AttributeError("no attribute 'active'")]
)
def test_where_triton_cannot_launch_torch_computes_and_one_warning_says_why(problem, gpu, monkeypatch):
    gpu(9, 0)
    monkeypatch.setattr("triton.runtime.driver", Launcher(problem))
    with pytest.warns(UserWarning, match=f"no Triton kernels .* cuda:0, torch goes on .*{problem}"):
        assert not triton_runs_on(GPU)
    assert not triton_runs_on(GPU)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_triton_itself_says_without_a_driver_is_passed_on(gpu):
    gpu(9, 0)
    with pytest.warns(UserWarning, match=r"torch goes on computing them: RuntimeError: .*driver"):
        assert not triton_runs_on(GPU)


@needs_triton
def test_an_old_triton_is_named(gpu, monkeypatch):
    gpu(9, 0)
    monkeypatch.setattr("triton.__version__", "3.2.0+git1")
    with pytest.warns(
        UserWarning, match=r"on cuda:0, .*: Triton is version 3\.2\.0\+git1, and they need 3\.3"
    ):
        assert not triton_runs_on(GPU)


@needs_triton
def test_an_old_gpu_is_named(gpu):
    gpu(7, 5)
    with pytest.warns(
        UserWarning, match=r"on cuda:0, .*: its compute capability is 7\.5, and they need 8\.0"
    ):
        assert not triton_runs_on(GPU)


def test_without_triton_nothing_is_said(gpu, monkeypatch):
    gpu(9, 0)
    monkeypatch.setattr(availability, "find_spec", lambda name: None)
    assert not triton_runs_on(GPU)


def test_other_devices_and_amds_gpus_run_nothing(gpu, monkeypatch):
    gpu(9, 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    for device in (CPU, GPU, torch.device("mps"), torch.device("meta")):
        assert not triton_runs_on(device)
    assert availability._launches_on.cache_info().misses == 0


def test_an_answer_is_forced_within_and_not_beyond():
    with forced_on("cpu", "mps"):
        assert triton_runs_on(CPU)
        with forced_on():
            assert not triton_runs_on(CPU)
        assert triton_runs_on(torch.device("mps"))
        assert not triton_runs_on(GPU)
    assert not triton_runs_on(CPU)


def test_what_torch_compile_traces_is_torchs_own_work():
    with forced_on("cpu"):
        assert triton_runs_on(CPU)
        assert not torch.compile(triton_runs_on, backend="eager", fullgraph=True)(CPU)
