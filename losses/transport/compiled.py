"""The L1 distances' inner loops in C++, compiled where they run, for whoever asks for it.

Torch can only make every |p − q| of a tile and then add them up; a compiler keeps the sums in registers. The library
is plain C functions on pointers, called by ctypes: without torch's headers it takes a second to compile, and it
depends neither on torch's version nor on Python's. It is speed and nothing else, so no loss has a field for it.

N source rows, M target rows, V columns.
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

import torch
from torch import Tensor

from ..memory import empty

_SOURCE = Path(__file__).with_name("l1_tile.cpp")
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-pthread")
_FOR_THIS_PROCESSOR = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler takes
_SECONDS = 120  # a compiler that takes longer is stuck

_wanted = os.environ.get("DISTILL_COMPILED", "0") not in ("", "0")
_attempt: list[Tile | None] = []  # empty before the only one
_lock = threading.Lock()


def use_compiled_tile(wanted: bool = True) -> bool:
    """Compute L1 transport costs on the CPU with a compiled tile from now on, or (False) with torch again.

    Costs "l1" and "total_variation" of float32 over 16 classes or more; the same sums in another order, so that
    distances agree to about 1e-7. The first call on a machine compiles for a second, with $CXX or else
    the first of c++, g++ and clang++, into `distill` in the user's cache folder ($XDG_CACHE_HOME, ~/.cache); later
    ones load what is there. DISTILL_COMPILED=1 in the environment is this call, made before the first cost.

    Returns:
        Whether the tile is in use. Where it cannot be (no compiler, no cache folder to write to), one warning says
        why, and torch goes on.

    Example:
        >>> from distill.losses.transport.compiled import use_compiled_tile
        >>> use_compiled_tile(False)
        False
    """
    global _wanted
    _wanted = wanted
    return wanted and _tile() is not None


@dataclass(frozen=True)
class Tile:
    """The compiled library: `overlap` and `distance_pull` of contiguous float32 rows on the CPU."""

    library: ctypes.CDLL

    def overlap(self, p_NV: Tensor, q_MV: Tensor, *, own: bool) -> Tensor:
        """Return Σ_v min(p_nv, q_mv), (N, M) in float64; NaN for a row with a number below 0.

        own: q is p, and what comes below the diagonal has no meaning.
        """
        shared_NM = torch.empty(len(p_NV), len(q_MV), dtype=torch.float64)
        self._call("l1_overlap", p_NV, q_MV, shared_NM, len(p_NV), len(q_MV), p_NV.shape[1], int(own))
        return shared_NM

    def distance_pull(self, pull_NM: Tensor, source_NV: Tensor, target_MV: Tensor) -> Tensor:
        """Return Σ_m pull_nm · sign(source_nv − target_mv), (N, V), for finite pulls."""
        pulled_NV = empty(source_NV.shape, source_NV)
        self._call(
            "l1_pull",
            pull_NM.to(torch.float32).contiguous(),
            source_NV,
            target_MV,
            pulled_NV,
            len(source_NV),
            len(target_MV),
            source_NV.shape[1],
        )
        return pulled_NV

    def _call(self, name: str, *arguments: Tensor | int) -> None:
        plain = [
            ctypes.c_void_p(argument.data_ptr()) if isinstance(argument, Tensor) else ctypes.c_int64(argument)
            for argument in arguments
        ]
        if self.library[name](*plain, ctypes.c_int64(torch.get_num_threads())):
            raise MemoryError(f"{name}: no memory for a copy of a few rows")


def tile_for(*tensors: Tensor) -> Tile | None:
    """Return the compiled tile if it is in use and can take these rows."""
    if not _wanted or not all(
        rows.dtype == torch.float32 and rows.device.type == "cpu" and rows.is_contiguous() and rows.numel()
        for rows in tensors
    ):
        return None
    return _tile()


class _UnavailableError(Exception):
    """Why there is no compiled tile."""


def _tile() -> Tile | None:
    with _lock:
        if not _attempt:
            try:
                _attempt.append(_checked(Tile(_load())))
            except _UnavailableError as why:
                _attempt.append(None)
                warnings.warn(
                    f"no compiled tile for transport costs, torch goes on computing them: {why}", stacklevel=3
                )
        return _attempt[0]


def _load() -> ctypes.CDLL:
    """Load the library from the cache, where it is built first if it is not there."""
    compiler = _compiler()
    about = _run([*compiler, "--version"])
    parts = (_SOURCE.read_text(encoding="utf-8"), about, repr((_FLAGS, _FOR_THIS_PROCESSOR)), _processor())
    name = f"l1_tile-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:32]}.so"
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distill"
        library = folder / name
        if not library.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as aside:
                built = Path(aside) / name
                _build(compiler, built)
                built.replace(library)  # whole or not at all, however many processes build at once
        return ctypes.CDLL(str(library))
    except (OSError, RuntimeError) as problem:  # RuntimeError: no home
        raise _UnavailableError(f"{problem} (XDG_CACHE_HOME names another cache folder)") from problem


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
            _run([*compiler, *_FLAGS, *processor, "-o", str(library), str(_SOURCE)])
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


def _checked(tile: Tile) -> Tile:
    """Return the tile if it computes what torch does: ties, a part of a register at the end, NaN."""
    p_NV, q_MV = (
        (torch.arange(rows * 53) * 7 % 17).reshape(rows, 53) / 17 + torch.arange(rows)[:, None] % 2
        for rows in (5, 6)
    )
    p_NV[3, 50], q_MV[1, 2] = torch.nan, torch.nan
    pull_NM = torch.arange(30.0).reshape(5, 6) - 15
    difference_NMV = p_NV[:, None] - q_MV[None]
    pairs = (
        (tile.overlap(p_NV, q_MV, own=False), torch.minimum(p_NV[:, None], q_MV[None]).double().sum(-1)),
        (
            tile.distance_pull(pull_NM, p_NV, q_MV),
            (difference_NMV.sign() + 0 * difference_NMV).mul(pull_NM[:, :, None]).sum(1),
        ),
    )
    for found, expected in pairs:
        if not torch.allclose(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True):
            raise _UnavailableError("what the compiler made of it does not compute what torch does")
    return tile
