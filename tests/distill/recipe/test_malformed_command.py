"""Malformed recipes as `distill check` meets them: exit 2, one line a mistake, at once, without torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

from .test_malformed import MALFORMED

# One process for all: what is to be imported is imported, and what may not be is not, for every one of them.
PROGRAM = """
import contextlib, io, json, sys, time
from distill.cli.ending import exit_code

found = []
for path in json.load(sys.stdin):
    sys.argv = ["distill", "check", path]
    said, printed = io.StringIO(), io.StringIO()
    start = time.process_time()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
        code = exit_code()
    found.append([code, said.getvalue(), printed.getvalue(), time.process_time() - start])
    for name in ("torch", "transformers", "datasets"):
        assert name not in sys.modules, (path, name)
json.dump(found, sys.stdout)
"""


def checked(paths: list[Path]) -> list[list]:
    """What the command does with each: exit code, what it says to stderr and to stdout, seconds."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([str(path) for path in paths]),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_malformed_recipe_exits_2_with_a_line_a_mistake_and_without_torch(tmp_path: Path):
    paths = [tmp_path / f"{number}.yaml" for number in range(len(MALFORMED))]
    for path, (_, text, _) in zip(paths, MALFORMED, strict=True):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert len(paths) >= 60
    for path, (name, _, expected), found in zip(paths, MALFORMED, checked(paths), strict=True):
        code, said, printed, seconds = found
        assert (code, printed) == (2, ""), name
        lines = said.splitlines()
        assert len(lines) == len(expected), (name, lines)
        for line, start in zip(lines, expected, strict=True):
            assert line.startswith(f"distill: {path}:{start}"), name
        assert seconds < 0.5, name


def test_what_is_no_readable_file_exits_2_with_one_line(tmp_path: Path):
    loop, dangling, closed = tmp_path / "loop.yaml", tmp_path / "dangling.yaml", tmp_path / "closed.yaml"
    loop.symlink_to(loop)
    dangling.symlink_to(tmp_path / "nowhere")
    closed.write_text("name: a\n")
    closed.chmod(0)
    paths = [tmp_path, loop, dangling, closed, tmp_path / "missing.yaml", tmp_path / ("x" * 300)]
    if sys.platform == "linux":
        paths += [Path("/dev/zero"), Path("/dev/null"), Path("/proc/self/mem"), Path("/etc/passwd")]
    for path, (code, said, printed, seconds) in zip(paths, checked(paths), strict=True):
        assert (code, printed) == (2, ""), path
        one = len(said.splitlines()) == 1
        assert one or (path == closed and os.access(closed, os.R_OK)), (
            said
        )  # whoever may read all files reads it
        assert seconds < 0.5


def test_a_recipe_on_a_pipe_is_read(tmp_path: Path):
    """`distill check <(make-recipe)`: what is no file on a disk is read all the same, and closed."""
    read, write = os.pipe()
    os.write(write, b"name: a b\n")
    os.close(write)
    command = [sys.executable, "-m", "distill", "check", f"/dev/fd/{read}"]
    done = subprocess.run(command, pass_fds=[read], capture_output=True, text=True, timeout=60)
    os.close(read)
    assert done.returncode == 2
    assert f"/dev/fd/{read}:1:1: name: must be a name" in done.stderr
