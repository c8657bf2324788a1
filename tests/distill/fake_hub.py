"""A Hugging Face hub on this machine, for `HF_ENDPOINT`: what huggingface_hub asks of the real one, and its failures."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

# Of a repository that is there from the beginning.
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_CANARYofThePublisher000000000000000"  # noqa: S105
# What git keeps itself; the hub stores other files by their sha256.
SMALL = (".json", ".md", ".yaml", ".jinja", ".txt", ".gitattributes")


@dataclass
class Repository:
    """Its visibility, and its commits with their files, oldest first."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], message: str = "") -> str:
        oid = hashlib.sha1(
            repr((len(self.commits), sorted(files))).encode(), usedforsecurity=False
        ).hexdigest()
        self.commits.append((oid, files))
        self.messages.append(message)
        return oid

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][1]


class FakeHub:
    """What it holds, what it was asked, and how it will fail.

    Attributes:
        tokens: what was said for authorization.
        failures: by a part of a path: the answers of the next requests for it: a status, or "drop" (the connection is
            closed without an answer), or "lose" (the request is carried out and the connection is closed).
    """

    def __init__(self) -> None:
        self.endpoint = ""
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.tokens: set[str] = set()
        self.failures: dict[str, list[int | str]] = {}
        self.cards: list[str] = []

    def answer(
        self, method: str, path: str, query: dict[str, list[str]], body: bytes
    ) -> tuple[int, object, dict]:
        """Status, what is sent (bytes, or an object for JSON), headers."""
        parts = path.split("/")
        if path == "api/whoami-v2":
            return 200, {"type": "user", "name": "ada"}, {}
        if path == "api/validate-yaml":
            content = json.loads(body)["content"]
            self.cards.append(content)
            said = yaml.safe_load(content.split("---")[1])
            if not isinstance(said.get("license"), str):
                return 400, {"errors": [{"message": "license is missing"}], "warnings": []}, {}
            return 200, {"errors": [], "warnings": []}, {}
        if path == "api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] != "ada":
                return 403, {"error": "no right to that namespace"}, {}
            if name in self.repositories:
                return 409, {"error": "exists", "url": f"{self.endpoint}/{name}"}, {}
            # As huggingface_hub 2 says it, or 1.
            private = asked.get("visibility") == "private" or asked.get("private") is True
            self.repositories[name] = Repository(private)
            self.repositories[name].commit(
                {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit"
            )
            return 200, {"url": f"{self.endpoint}/{name}"}, {}
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = []
            for each in json.loads(body)["objects"]:
                upload = {"href": f"{self.endpoint}/store/{each['oid']}", "header": {}}
                objects.append(each if each["oid"] in self.large else each | {"actions": {"upload": upload}})
            return 200, {"transfer": "basic", "objects": objects}, {}
        if parts[0] == "store" and method == "PUT":
            if hashlib.sha256(body).hexdigest() != parts[1]:
                return 400, {"error": "other bytes than announced"}, {}
            self.large[parts[1]] = body
            return 200, b"", {}
        if parts[:2] == ["api", "models"]:
            return self.of_model("/".join(parts[2:4]), parts[4:], query, body)
        if len(parts) > 3 and parts[2] == "resolve":
            return self.download("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return 404, {}, {"X-Error-Code": "RepoNotFound"}

    def of_model(
        self, name: str, rest: list[str], query: dict[str, list[str]], body: bytes
    ) -> tuple[int, object, dict]:
        repository = self.repositories.get(name)
        if repository is None:
            return 404, {}, {"X-Error-Code": "RepoNotFound"}
        head, files = repository.commits[-1]
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
            said = {"id": name, "modelId": name, "sha": head, "siblings": siblings, "tags": []}
            return 200, said | {"private": repository.private}, {}
        if rest[0] == "tree":
            return 200, [entry(path, content) for path, content in sorted(files.items())], {}
        if rest[0] == "preupload":
            said = []
            for each in json.loads(body)["files"]:
                mode = "regular" if each["path"].endswith(SMALL) else "lfs"
                known = entry(each["path"], files[each["path"]])["oid"] if each["path"] in files else None
                said.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known})
            return 200, {"files": said}, {}
        if rest[0] == "commit":
            return self.commit(repository, name, [json.loads(line) for line in body.splitlines()])
        return 404, {}, {}

    def commit(self, repository: Repository, name: str, lines: list[dict]) -> tuple[int, object, dict]:
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repository.commits[-1][0]):
            return 412, {"error": "A commit has happened since. Please refresh and try again."}, {}
        files = dict(repository.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(files, header["summary"])
        return 200, {"commitOid": oid, "commitUrl": f"{self.endpoint}/{name}/commit/{oid}"}, {}

    def download(self, name: str, revision: str, path: str) -> tuple[int, object, dict]:
        repository = self.repositories.get(name)
        if repository is None:
            return 404, b"", {"X-Error-Code": "RepoNotFound"}
        named = {**dict(repository.commits), "main": repository.files}
        if path not in named.get(revision, {}):
            return 404, b"", {"X-Error-Code": "EntryNotFound"}
        content = named[revision][path]
        commit = repository.commits[-1][0] if revision == "main" else revision
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
        return 200, content, headers | {"Accept-Ranges": "bytes"}


def entry(path: str, content: bytes) -> dict:
    """A file as the hub lists it."""
    if path.endswith(SMALL):
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        return {"type": "file", "path": path, "size": len(content), "oid": oid}
    sha256 = hashlib.sha256(content).hexdigest()
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
    )
    lfs = {"oid": sha256, "size": len(content), "pointerSize": len(pointer)}
    oid = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer, usedforsecurity=False).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": oid, "lfs": lfs}


@contextlib.contextmanager
def serving(
    repositories: Mapping[str, Path] | None = None, *, token: str | None = TOKEN
) -> Iterator[FakeHub]:
    """A hub that knows one user, ada.

    Args:
        repositories: folders whose files it holds from the beginning, public and at COMMIT, by OWNER/NAME.
        token: ada's, without which it answers nobody; None answers everybody.
    """
    hub = FakeHub()
    for name, folder in (repositories or {}).items():
        files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        hub.repositories[name] = Repository(private=False, commits=[(COMMIT, files)])
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.handle_one()

        def do_GET(self) -> None:
            self.handle_one()

        def do_POST(self) -> None:
            self.handle_one()

        def do_PUT(self) -> None:
            self.handle_one()

        def handle_one(self) -> None:
            split = urlsplit(self.path)
            path = unquote(split.path).strip("/")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                hub.asked.append(f"{self.command} {path}")
                said = self.headers.get("Authorization") or ""
                hub.tokens.add(said)
                failing = next(
                    (kinds for part, kinds in hub.failures.items() if part in path and kinds), None
                )
                failure = failing.pop(0) if failing else None
                if failure == "drop":
                    self.hang_up()
                    return
                if isinstance(failure, int):
                    self.reply(failure, {"error": "as the test asked"}, {})
                    return
                if token and said != f"Bearer {token}" and not path.startswith("store/"):
                    self.reply(401, {"error": "Invalid username or password."}, {})
                    return
                answer = hub.answer(self.command, path, parse_qs(split.query), body)
            if failure == "lose":
                self.hang_up()
                return
            self.reply(*answer)

        def hang_up(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def reply(self, code: int, said: object, headers: dict) -> None:
            content = said if isinstance(said, bytes) else json.dumps(said).encode()
            kind = "application/octet-stream" if isinstance(said, bytes) else "application/json"
            self.send_response(code)
            for key, value in {"Content-Type": kind, **headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
