"""The inner loops of L1 distances and of Sinkhorn's rounds in C++, compiled where they run, for whoever asks for it.

Torch can only make every |p − q| of a tile and then add them up; a compiler keeps the sums in registers. And the
rounds over a few rows are some microseconds of arithmetic in 160 calls of NumPy. The library is plain C functions on
pointers, called by ctypes: without torch's headers it takes a second to compile, and it depends neither on torch's
version nor on Python's. It is speed and nothing else, so no loss has a field for it.

N source rows, M target rows, V columns, K rounds; G rows of one group, a class after the other.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ..memory import empty

_FOLDER = Path(__file__).parent
_SOURCES, _HEADER = ("few_classes.cpp", "manhattan.cpp", "rounds.cpp"), "lanes.h"
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-pthread")
_FOR_THIS_PROCESSOR = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler takes
_SECONDS = 120  # a compiler that takes longer is stuck

# Of each function: how many pointers it takes, whole numbers after them, and float32 after these.
_ARGUMENTS = {
    "l1_overlap": (3, 5, 0),
    "l1_pull": (4, 4, 0),
    "sinkhorn_scale": (6, 3, 0),
    "sinkhorn_scale_adjoint": (8, 3, 0),
    "few_classes_cost": (3, 2, 1),
    "few_classes_pull": (10, 4, 2),
}

_wanted = os.environ.get("DISTILL_COMPILED", "0") not in ("", "0")
_attempt: list[CompiledTransport | None] = []  # empty before the only one
_lock = threading.Lock()


def use_compiled_transport(wanted: bool = True) -> bool:
    """Compute the transport losses' inner loops on the CPU in C++ from now on, or (False) with torch and NumPy again.

    In float32: costs "l1" and "total_variation" over up to 8 classes or from 16 on, and Sinkhorn's rounds of up to
    `rounds.NUMPY_ROWS` rows. They are the same sums in another order: distances agree to about 1e-7, plans to 1e-6.
    The first call on a machine compiles for a second or two, with $CXX or else the first of c++, g++ and clang++, into
    `distill` in the user's cache folder ($XDG_CACHE_HOME, ~/.cache); later ones load what is there.
    DISTILL_COMPILED=1 in the environment is this call, made before the first loss.

    Returns:
        Whether the compiled loops are in use. Where they cannot be (no compiler, no cache folder to write to), one
        warning says why, and torch and NumPy go on.

    Example:
        >>> from distill.losses.transport.compiled import use_compiled_transport
        >>> use_compiled_transport(False)
        False
    """
    global _wanted
    _wanted = wanted
    return wanted and _library() is not None


Floats = numpy.ndarray[Any, Any]


_pointer: Any = (ctypes.c_char * 0).from_buffer  # of an array; `array.ctypes` takes five times as long


@dataclass(frozen=True)
class CompiledTransport:
    """The compiled library, on the CPU and in float32: of tensors that are contiguous, and of any NumPy arrays."""

    library: ctypes.CDLL

    def overlap(self, p_NV: Tensor, q_MV: Tensor, *, own: bool) -> Tensor:
        """Return Σ_v min(p_nv, q_mv), (N, M) in float64; NaN for a row with a number below 0.

        own: q is p, and what comes below the diagonal has no meaning.
        """
        shared_NM = torch.empty(len(p_NV), len(q_MV), dtype=torch.float64)
        pointers = (part.data_ptr() for part in (p_NV, q_MV, shared_NM))
        self._call("l1_overlap", *pointers, *shared_NM.shape, p_NV.shape[1], own, torch.get_num_threads())
        return shared_NM

    def distance_pull(self, pull_NM: Tensor, source_NV: Tensor, target_MV: Tensor) -> Tensor:
        """Return Σ_m pull_nm · sign(source_nv − target_mv), (N, V), for finite pulls."""
        pulled_NV = empty(source_NV.shape, source_NV)
        pull_NM = pull_NM.to(torch.float32).contiguous()
        pointers = (part.data_ptr() for part in (pull_NM, source_NV, target_MV, pulled_NV))
        self._call("l1_pull", *pointers, *pull_NM.shape, source_NV.shape[1], torch.get_num_threads())
        return pulled_NV

    def scale(
        self, kernel_NM: Floats, source_N: Floats, target_M: Floats, rounds: int
    ) -> tuple[Floats, Floats, Floats]:
        """Do `rounds.scale`."""
        sources, targets = kernel_NM.shape
        given = tuple(map(numpy.ascontiguousarray, (kernel_NM, source_N, target_M)))
        shapes = ((sources, targets), (rounds, sources), (rounds + 1, targets))
        plan_NM, rows_KN, columns_KM = made = tuple(numpy.empty(shape, numpy.float32) for shape in shapes)
        self._call("sinkhorn_scale", *map(_pointer, given + made), sources, targets, rounds)
        return plan_NM, rows_KN, columns_KM

    def scale_adjoint(self, *solved: Floats) -> Floats:
        """Do `rounds.scale_adjoint`, of the same arguments."""
        given = tuple(map(numpy.ascontiguousarray, solved))
        rows_KN, columns_KM = given[-2:]
        scaled_NM = numpy.empty((rows_KN.shape[1], columns_KM.shape[1]), numpy.float32)
        self._call(
            "sinkhorn_scale_adjoint", *map(_pointer, (*given, scaled_NM)), *scaled_NM.shape, len(rows_KN)
        )
        return scaled_NM

    def few_classes_cost(self, p_VG: Floats, q_VG: Floats, unit: float) -> Floats:
        """Return unit · Σ_v |p_vn − q_vm|, (G, G)."""
        given = tuple(map(numpy.ascontiguousarray, (p_VG, q_VG)))
        classes, rows = p_VG.shape
        cost_GG = numpy.empty((rows, rows), numpy.float32)
        self._call("few_classes_cost", *map(_pointer, (*given, cost_GG)), rows, classes, unit)
        return cost_GG

    def few_classes_pull(
        self,
        share_pull_G: Floats,
        p_VG: Floats,
        q_VG: Floats,
        *solved: Floats,
        own: bool,
        unit: float,
        epsilon: float,
    ) -> Floats:
        """Return the gradient of the shares of the cost for p, (V, G), q being p if own.

        solved: the cost in that unit, the plan, the kernel, the mass of the rows, and u and v of the rounds.
        """
        given = tuple(map(numpy.ascontiguousarray, (share_pull_G, p_VG, q_VG, *solved)))
        classes, rows = p_VG.shape
        pulled_VG = numpy.empty((classes, rows), numpy.float32)
        pointers, rounds = map(_pointer, (*given, pulled_VG)), len(solved[-2])
        self._call("few_classes_pull", *pointers, rows, classes, rounds, own, unit, epsilon)
        return pulled_VG

    def _call(self, name: str, *arguments: Any) -> None:
        if getattr(self.library, name)(*arguments):
            raise MemoryError(f"{name}: no memory for a copy of a few rows")


def compiled_for_tensors(*tensors: Tensor) -> CompiledTransport | None:
    """Return the compiled loops if they are in use and can take these rows."""
    if not _wanted or not all(
        rows.dtype == torch.float32 and rows.device.type == "cpu" and rows.is_contiguous() and rows.numel()
        for rows in tensors
    ):
        return None
    return _library()


def compiled_for_arrays(*arrays: Any) -> CompiledTransport | None:
    """Return the compiled loops if they are in use and can take these; tensors they cannot."""
    if not _wanted:
        return None
    for array in arrays:
        if array.dtype != numpy.float32 or not array.size or not array.flags.writeable:
            return None
    return _library()


class _UnavailableError(Exception):
    """Why there is no compiled library."""


def _library() -> CompiledTransport | None:
    if _attempt:
        return _attempt[0]
    with _lock:
        if not _attempt:
            try:
                _attempt.append(_checked(CompiledTransport(_load())))
            except _UnavailableError as why:
                _attempt.append(None)
                warnings.warn(
                    f"no compiled loops for the transport losses, torch and NumPy go on: {why}", stacklevel=3
                )
        return _attempt[0]


def _load() -> ctypes.CDLL:
    """Load the library from the cache, where it is built first if it is not there."""
    compiler = _compiler()
    about = _run([*compiler, "--version"])
    written = [(_FOLDER / name).read_text(encoding="utf-8") for name in (*_SOURCES, _HEADER)]
    parts = (*written, about, repr((_FLAGS, _FOR_THIS_PROCESSOR)), _processor())
    name = f"transport-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:32]}.so"
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distill"
        library = folder / name
        if not library.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as aside:
                built = Path(aside) / name
                _build(compiler, built)
                built.chmod(0o755)  # whatever the umask
                built.replace(library)  # whole or not at all, however many processes build at once
        _refuse_others(folder, library)
        loaded = ctypes.CDLL(str(library))
    except (OSError, RuntimeError) as problem:  # RuntimeError: no home
        raise _UnavailableError(f"{problem} (XDG_CACHE_HOME names another cache folder)") from problem
    kinds = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_float)
    for function, counts in _ARGUMENTS.items():
        getattr(loaded, function).argtypes = [
            kind for kind, count in zip(kinds, counts, strict=True) for _ in range(count)
        ]
    return loaded


def _refuse_others(*paths: Path) -> None:
    """Code that somebody else may have written is not loaded."""
    for path in paths if hasattr(os, "getuid") else ():
        about = path.stat()
        if about.st_uid not in (os.getuid(), 0) or about.st_mode & 0o022:
            raise _UnavailableError(
                f"{path} can be written by others (XDG_CACHE_HOME names another cache folder)"
            )


def _compiler() -> list[str]:
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in _COMPILERS:
        if shutil.which(name):
            return [name]
    raise _UnavailableError(f"none of {', '.join(_COMPILERS)} is installed, and CXX names no other compiler")


def _build(compiler: list[str], library: Path) -> None:
    for processor in _FOR_THIS_PROCESSOR:
        try:
            sources = [str(_FOLDER / name) for name in _SOURCES]
            _run([*compiler, *_FLAGS, *processor, "-o", str(library), *sources])
        except _UnavailableError:
            if not processor:
                raise
        else:
            return


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise _UnavailableError(f"the compiler {command[0]!r} cannot be run: {problem}") from problem
    if done.returncode:
        lines = done.stderr.splitlines()
        said = next((line for line in lines if "error" in line), lines[-1] if lines else "it said nothing")
        raise _UnavailableError(f"the compiler {command[0]!r} failed: {said.strip()}")
    return done.stdout


def _processor() -> str:
    """What a library built for this processor must not be loaded without."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = [platform.node()]
    told = {line for line in lines if line.startswith(("flags", "Features", "CPU implementer", "CPU part"))}
    return "|".join([platform.machine(), platform.system(), *sorted(told or lines[:1])])


def _checked(compiled: CompiledTransport) -> CompiledTransport:
    """Return the library if it computes what torch and NumPy do: ties, a part of a register at the end, NaN."""
    pairs: list[tuple[Any, Any]] = [
        *_distances_to_check(compiled),
        *_rounds_to_check(compiled),
        *_few_classes_to_check(compiled),
    ]
    if not all(numpy.allclose(found, expected, 1e-4, 1e-5, equal_nan=True) for found, expected in pairs):
        raise _UnavailableError("what the compiler made of it does not compute what torch and NumPy do")
    return compiled


def _distances_to_check(compiled: CompiledTransport) -> list[tuple[Tensor, Tensor]]:
    p_NV, q_MV = (
        (torch.arange(rows * 53) * 7 % 17).reshape(rows, 53) / 17 + torch.arange(rows)[:, None] % 2
        for rows in (5, 6)
    )
    p_NV[3, 50], q_MV[1, 2] = torch.nan, torch.nan
    pull_NM = torch.arange(30.0).reshape(5, 6) - 15
    difference_NMV = p_NV[:, None] - q_MV[None]
    return [
        (compiled.overlap(p_NV, q_MV, own=False), torch.minimum(p_NV[:, None], q_MV[None]).double().sum(-1)),
        (
            compiled.distance_pull(pull_NM, p_NV, q_MV),
            (difference_NMV.sign() + 0 * difference_NMV).mul(pull_NM[:, :, None]).sum(1),
        ),
    ]


def _rounds_to_check(compiled: CompiledTransport) -> list[tuple[Floats, Floats]]:
    from .rounds import scale, scale_adjoint  # which ask this module whether there is a library

    pairs: list[tuple[Floats, Floats]] = []
    with numpy.errstate(all="ignore"):
        for spoilt in (False, True):
            kernel_NM = numpy.exp(-(numpy.arange(35 * 22) * 7 % 17).reshape(35, 22) / 4)
            if spoilt:
                kernel_NM[34, 3] = numpy.nan
            source_N, target_M = (
                mass / mass.sum() for mass in (numpy.arange(1.0, 36), numpy.arange(3.0, 25))
            )
            given = (kernel_NM, source_N, target_M)
            expected = scale(*given, 3)  # in float64, which is left to NumPy
            kernel_32, source_32, target_32 = (part.astype(numpy.float32) for part in given)
            found = compiled.scale(kernel_32, source_32, target_32, 3)
            pairs += zip(found, expected, strict=True)
            solved = (kernel_NM, expected[0], *given, *expected[1:])
            pulled = compiled.scale_adjoint(*(part.astype(numpy.float32) for part in solved))
            pairs.append((pulled, scale_adjoint(*solved)))
    return pairs


def _few_classes_to_check(compiled: CompiledTransport) -> list[tuple[Floats, Floats]]:
    from .rounds import scale, scale_adjoint

    rows, unit, epsilon = 21, 0.5, 0.25
    both_VR = (numpy.arange(3.0 * 2 * rows) * 7 % 17).reshape(3, 2 * rows) / 17
    mass_G = numpy.arange(1.0, rows + 1) / 231
    pairs: list[tuple[Floats, Floats]] = []
    with numpy.errstate(all="ignore"):
        for own, spoilt in ((False, False), (True, False), (False, True)):
            p_VG, q_VG = both_VR[:, :rows], both_VR[:, :rows] if own else both_VR[:, rows:]
            if spoilt:
                q_VG[2, 20] = numpy.nan
            difference_VGG = p_VG[:, :, None] - q_VG[:, None, :]
            cost_GG = unit * numpy.abs(difference_VGG).sum(0)
            # The plan and its rounds are of another cost, for one NaN there would be all there is to compare.
            kernel_GG = numpy.exp(-numpy.nan_to_num(cost_GG) / epsilon)
            plan_GG, *scalings = scale(kernel_GG, mass_G, mass_G, 3)
            weight_G1 = numpy.cos(mass_G)[:, None] / mass_G[:, None]
            solved = (plan_GG, kernel_GG, mass_G, mass_G, *scalings)
            pull_GG = scale_adjoint(weight_G1 * cost_GG, *solved) / epsilon + weight_G1 * plan_GG
            pull_GG = unit * (pull_GG + pull_GG.T if own else pull_GG)
            given = (numpy.cos(mass_G), p_VG, q_VG, cost_GG, plan_GG, kernel_GG, mass_G, *scalings)
            narrow = [part.astype(numpy.float32) for part in given]
            pulled_VG = compiled.few_classes_pull(*narrow, own=own, unit=unit, epsilon=epsilon)
            pairs.append((compiled.few_classes_cost(narrow[1], narrow[2], unit), cost_GG))
            pairs.append((pulled_VG, (numpy.sign(difference_VGG) * pull_GG).sum(2)))
    return pairs
