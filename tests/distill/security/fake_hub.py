"""A Hugging Face hub on this machine that serves one commit of some repositories, for `HF_ENDPOINT`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """What is served, where, and what was asked for."""

    def __init__(self, endpoint: str):
        self.endpoint = endpoint
        self.asked: list[str] = []
        self.tokens: set[str] = set()


@contextlib.contextmanager
def serving(repositories: Mapping[str, Path]) -> Iterator[FakeHub]:
    """Serve folders under repository names. `main` and COMMIT are the only revisions there are."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path).lstrip("/")
            hub.asked.append(path)
            hub.tokens.add(self.headers.get("Authorization") or "")
            for name, folder in repositories.items():
                files = [file for file in sorted(folder.iterdir()) if file.is_file()]
                for revision in (COMMIT, "main"):
                    if path == f"api/models/{name}/revision/{revision}":
                        siblings = [{"rfilename": file.name, "size": file.stat().st_size} for file in files]
                        said = {
                            "id": name,
                            "modelId": name,
                            "sha": COMMIT,
                            "siblings": siblings,
                            "private": False,
                            "tags": [],
                        }
                        self.reply(200, json.dumps(said).encode(), {"Content-Type": "application/json"})
                        return
                    if path.startswith(f"api/models/{name}/tree/{revision}"):
                        said = [
                            {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40}
                            for f in files
                        ]
                        self.reply(200, json.dumps(said).encode(), {"Content-Type": "application/json"})
                        return
                    for file in files:
                        if path == f"{name}/resolve/{revision}/{file.name}":
                            content = file.read_bytes()
                            tag = hashlib.sha256(content).hexdigest()
                            headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
                            self.reply(200, content, headers)
                            return
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound" if "/resolve/" in path else "RepoNotFound"})

        def reply(self, code: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(code)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = FakeHub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
