"""The tests' own ban on the network holds: here, in processes that tests start, and where a library says nothing of it."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ELSEWHERE = ("203.0.113.7", 443)  # an address for documentation, which is nobody's


@pytest.fixture
def attempts(_no_connection: None) -> Iterator[Callable[[], list[str]]]:
    """What was tried until now; it is forgiven."""
    log = Path(os.environ["DISTILL_CONNECTIONS"])
    yield lambda: log.read_text(encoding="utf-8").split() if log.is_file() else []
    log.unlink(missing_ok=True)


def test_no_socket_reaches_another_machine(attempts):
    for family, address in ((socket.AF_INET, ELSEWHERE), (socket.AF_INET6, ("2001:db8::7", 443, 0, 0))):
        with socket.socket(family) as tried, pytest.raises(RuntimeError, match=f"went to {address[0]}:443"):
            tried.connect(address)
    with socket.socket(type=socket.SOCK_DGRAM) as tried, pytest.raises(RuntimeError, match="went to"):
        tried.sendto(b"?", ELSEWHERE)
    with pytest.raises(RuntimeError, match=r"went to huggingface\.co:443"):
        socket.getaddrinfo("huggingface.co", 443)
    assert len(attempts()) == 4


def test_sockets_to_this_machine_work(attempts):
    for host in ("127.0.0.1", "localhost"):
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection((host, server.getsockname()[1]), timeout=5).close()
    assert attempts() == []


def test_a_process_that_a_test_starts_has_no_network_either(attempts):
    code = f"import socket; socket.create_connection({ELSEWHERE!r}, timeout=5)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "tests have no network" in done.stderr
    assert attempts() == ["203.0.113.7:443"]


def test_a_library_that_goes_on_without_the_network_fails_its_test_all_the_same(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import contextlib, socket\n"
        "def test_quiet():\n"
        "    with contextlib.suppress(Exception):\n"
        f"        socket.create_connection({ELSEWHERE!r})\n"
        "def test_other():\n"
        "    pass\n"
    )
    code = (
        "import importlib.util, pytest, sys\n"
        "spec = importlib.util.spec_from_file_location('conftest_of_all', sys.argv[1])\n"
        "plugin = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(plugin)\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', sys.argv[2]], plugins=[plugin]))\n"
    )
    command = [sys.executable, "-c", code, str(TESTS / "conftest.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "went to the network: 203.0.113.7:443" in done.stdout
    assert "2 passed, 1 error" in done.stdout
