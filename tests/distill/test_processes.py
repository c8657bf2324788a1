"""What processes are told of each other, and what accelerate may not decide."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from distill.errors import DataError, RecipeError
from distill.processes import (
    ElsewhereError,
    Processes,
    check_accelerator,
    failure_elsewhere,
    line_of,
    new_accelerator,
    speaks,
)


@pytest.mark.parametrize("name", ["DEEPSPEED", "MEGATRON_LM"])
def test_what_is_not_supported_is_refused_before_accelerate_begins(monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(RecipeError, match=r"^accelerate: distill does not support .*; use --multi_gpu"):
        new_accelerator()


def test_fsdp_without_gpus_is_refused_where_accelerate_would_leave_it_out(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RecipeError, match="FSDP needs GPUs"):
        new_accelerator()


def accelerator(**changes):
    kind, plugin = changes.pop("kind", "NO"), changes.pop("plugin", None)
    plain = {
        "mixed_precision": "no",
        "gradient_accumulation_steps": 1,
        "num_processes": 1,
        "process_index": 0,
    }
    return SimpleNamespace(
        **(plain | changes),
        distributed_type=SimpleNamespace(value=kind),
        state=SimpleNamespace(fsdp_plugin=plugin),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixed_precision": "fp16"}, "mixed_precision must be no, found fp16: train.precision decides"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps must be 1, found 4"),
        ({"kind": "DEEPSPEED"}, "does not support DEEPSPEED"),
        (
            {"kind": "FSDP", "plugin": SimpleNamespace(fsdp_version=1, cpu_ram_efficient_loading=False)},
            "fsdp_version must be 2, found 1",
        ),
        (
            {"kind": "FSDP", "plugin": SimpleNamespace(fsdp_version=2, cpu_ram_efficient_loading=True)},
            "fsdp_cpu_ram_efficient_loading must be false",
        ),
    ],
)
def test_an_accelerator_that_decides_what_it_must_not_is_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        check_accelerator(accelerator(**changes))


def test_the_engines_own_accelerator_takes_nothing_from_a_launchers_configuration(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    made = new_accelerator()
    assert made.gradient_accumulation_steps == 1
    assert made.mixed_precision == "no"


def test_a_process_alone_does_everything_itself():
    alone = Processes(accelerator())
    assert alone.main
    assert alone.gather(3) == [3]
    assert alone.first(lambda: "done") == "done"
    with pytest.raises(DataError, match="as it was"), alone.failing_together():
        raise DataError("as it was")
    assert failure_elsewhere() is None


def test_one_process_of_a_machine_speaks_before_they_know_of_each_other(monkeypatch):
    assert speaks()
    for rank, local, heard in (("0", "0", True), ("1", "1", False), ("8", "0", True)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", local)
        assert speaks() == (rank == "0")
        assert speaks(DataError("x")) == heard
        assert speaks(ElsewhereError("process 3 of 9: x")) == (rank == "0")


def test_an_error_is_one_line():
    assert line_of(DataError("what it says")) == "what it says"
    assert line_of(ValueError("first\nsecond")) == "internal error, ValueError: first"
    assert line_of(SystemExit(143)) == "stopped by SIGTERM"


# Prints how many threads gloo had, and has behind what distill does at the end of a program.
LEAVING = """
import atexit, json, os, sys
from pathlib import Path

def threads():
    return [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")].count("pt_gloo_runloop")

# Registered first, so called last.
atexit.register(lambda: print(json.dumps({"talked": talked, "left": threads()}), flush=True))

from distill.processes import Processes, exit_alone, new_accelerator

accelerator = new_accelerator()
assert Processes(accelerator).gather("a value") == ["a value"] * 2
talked = threads()
if sys.argv[1] == "fails":
    exit_alone(2)
"""


def end_of_two_processes(how: str) -> list[tuple[int, str]]:
    """The exit code and output of both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", LEAVING, how],
            env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "true"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=120)[0] for process in running]
    return [(process.returncode, text) for process, text in zip(running, said, strict=True)]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have names in Linux's /proc")
def test_no_thread_holds_a_plain_value_when_the_interpreter_goes():
    for code, text in end_of_two_processes("well"):
        found = json.loads(text)
        assert code == 0
        if not found["talked"] and torch.__version__ < "2.13":
            pytest.skip("an old torch, in which gloo's threads have no names")
        assert found["talked"] > 0
        assert found["left"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="threads have names in Linux's /proc")
def test_a_process_that_fails_among_others_leaves_without_its_interpreter():
    assert end_of_two_processes("fails") == [(2, ""), (2, "")]
