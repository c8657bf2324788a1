"""No connection leaves this machine. Python imports a module of this name when it starts, if its folder is on PYTHONPATH.

`tests/conftest.py` puts it there, so that the ban holds in the processes that tests start too. Whoever tries is refused,
and named in the file that DISTILL_CONNECTIONS names: a library that goes on without what it wanted is found all the same.
Code that is not Python's own sockets is not seen; none of the libraries here opens a connection that way by itself.
"""

import contextlib
import ipaddress
import os
import socket
import sys


def _is_here(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if host in (None, "", "localhost", "ip6-localhost", socket.gethostname()):
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(str(host)).is_loopback
    return False


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("socket.connect", "socket.sendto"):
        target, address = arguments
        if not isinstance(address, tuple) or getattr(target, "family", None) not in (
            socket.AF_INET,
            socket.AF_INET6,
        ):
            return  # a socket of the file system, or of the kernel
        host, port = address[:2]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host, port = arguments[0], arguments[1] if len(arguments) > 1 else ""
    else:
        return
    if _is_here(host):
        return
    wanted = f"{host}:{port}"
    if log := os.environ.get("DISTILL_CONNECTIONS"):
        with open(log, "a", encoding="utf-8") as stream:
            stream.write(f"{wanted}\n")
    raise RuntimeError(f"tests have no network, and this one went to {wanted}")


sys.addaudithook(_refuse)
