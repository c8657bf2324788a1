"""A folder of a model to a repository of the Hugging Face hub: one commit, or none where all of it is there already."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from distill.disk import sha256_of
from distill.errors import DistillError, HubError, PublishError

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

# What a published folder may hold, and nothing else: a student's own files, and what a run says of it.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "chat_template.jinja",
    "provenance.json",
    "manifest.json",
    "onnx/model.onnx",
)
SHOWN_FILES = (
    "README.md",
    "report.json",
    "report.md",
    "report.html",
    "compression.png",
    "recipe.yaml",
)
HUBS_OWN = ".gitattributes"

# Seconds before each new try after a dropped connection, too many requests (429) or a failure of the hub's (5xx).
WAITS = (1.0, 2.0, 4.0)
PASSING = (408, 429, 500, 502, 503, 504)
REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"

Found = TypeVar("Found")


@dataclass(frozen=True)
class Upload:
    """What an upload came to.

    Attributes:
        url: of the repository.
        commit: that holds the folder's files.
        changed: whether this upload made the commit; False where all was there already.
    """

    url: str
    commit: str
    changed: bool


def is_published(name: str) -> bool:
    """Whether a file of this name, with its folder, is one of those that are published."""
    return name in MODEL_FILES or name in SHOWN_FILES


def published_files(folder: Path) -> list[Path]:
    """The files of a folder that is to be published, in name order, those of the folder in it that is published too.

    Raises:
        PublishError: it holds something that is not published, or a link.
    """
    inside = {Path(name).parent.as_posix() for name in MODEL_FILES}
    files = []
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_dir() and not file.is_symlink() and name in inside:
            continue
        if file.is_symlink() or not file.is_file() or not is_published(name):
            raise PublishError(f"{file}: is none of the files that are published; remove it")
        files.append(file)
    return files


def upload_folder(folder: Path, repository: str, *, private: bool, message: str) -> Upload:
    """Make a repository hold what a folder holds, in one commit; it is made if it is not there.

    A try that failed for a reason that passes is made again up to three times, each time from what the hub holds by
    then: a commit whose answer was lost is found there and not made twice. The token is the one that `hf auth login`
    stored or HF_TOKEN holds, which huggingface_hub finds and nobody else reads.

    Args:
        folder: holds nothing but files that are published.
        repository: OWNER/NAME.
        private: what a new repository is. One that others can see already is refused.
        message: of the commit.

    Raises:
        PublishError: the folder or the repository holds something else, the hub refuses, or somebody else wrote there
            at the same time.
        HubError: the hub cannot be reached, or fails again and again.
    """
    from huggingface_hub import HfApi

    if not re.fullmatch(REPOSITORY, repository, re.ASCII) or len(repository) > 96:
        raise PublishError(f"--to {ascii(repository)[1:-1]}: must be OWNER/NAME as the hub writes it")
    files = published_files(folder)
    api = HfApi(library_name="distill")
    return _tried(lambda: _upload_once(api, folder, files, repository, private, message), repository)


def _upload_once(
    api: HfApi, folder: Path, files: list[Path], repository: str, private: bool, message: str
) -> Upload:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    there = _repository(api, repository, private)
    url = f"{api.endpoint}/{repository}"
    head = str(there.sha)
    stored = {
        entry.path: entry
        for entry in api.list_repo_tree(repository, recursive=True, revision=head)
        if hasattr(entry, "blob_id")
    }
    for path in stored:
        if path != HUBS_OWN and not is_published(path):
            raise PublishError(
                f"{repository}: holds {path}, which distill does not publish; remove it there, or publish elsewhere"
            )
    changes: list[CommitOperationAdd | CommitOperationDelete] = []
    for file in files:
        name = file.relative_to(folder).as_posix()
        entry = stored.pop(name, None)
        if entry is None or not _same(file, entry):
            changes.append(CommitOperationAdd(name, str(file)))
    changes += [CommitOperationDelete(path) for path in sorted(stored) if path != HUBS_OWN]
    if not changes:
        return Upload(url, head, changed=False)
    made = api.create_commit(
        repository, operations=changes, commit_message=message, parent_commit=head, revision="main"
    )
    return Upload(url, made.oid, changed=True)


def _repository(api: HfApi, repository: str, private: bool) -> ModelInfo:
    """The repository as it is now, made if it is not there."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        there = api.model_info(repository)
    except RepositoryNotFoundError:
        api.create_repo(repository, private=private, exist_ok=True)
        there = api.model_info(repository)
    if private and not there.private:
        raise PublishError(
            f"{repository}: is there already and everybody can see it; say --public if they may"
        )
    return there


def _same(file: Path, entry: object) -> bool:
    """Whether the hub holds these bytes: by their sha256 where it keeps a large file, else by git's sha1 of a blob."""
    lfs = getattr(entry, "lfs", None)
    if lfs is not None:
        return bool(lfs.size == file.stat().st_size and lfs.sha256 == sha256_of(file))
    content = file.read_bytes()
    blob = b"blob %d\0" % len(content) + content
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest() == getattr(entry, "blob_id", None)


def _tried(work: Callable[[], Found], repository: str) -> Found:
    for wait in WAITS:
        try:
            with hub_errors(repository):
                return work()
        except HubError:
            time.sleep(wait)
    with hub_errors(repository):
        return work()


@contextlib.contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """One line for whatever the hub and the network between raise, without headers and so without the token.

    Args:
        what: was wanted: the beginning of the line.

    Raises:
        HubError: for a reason that may pass: the network, 429, 5xx.
        PublishError: the hub refuses.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except DistillError:
        raise
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        if code in PASSING:
            raise HubError(f"{what}: the hub fails ({code}); try again later") from error
        cures = {
            401: "the hub does not know who asks; type: hf auth login, or set HF_TOKEN",
            403: "the hub does not let this token write there; choose another owner or another token",
            404: "the hub finds no such repository that this token may see",
            409: "somebody else wrote there at the same time; look at what is there now, then publish again",
            412: "somebody else wrote there at the same time; look at what is there now, then publish again",
        }
        raise PublishError(f"{what}: {cures.get(code, _line(error))} ({code})") from error
    except ValueError as error:  # metadata that the hub does not take, a malformed name, a broken answer
        raise PublishError(f"{what}: {_line(error)}") from error
    except Exception as error:  # huggingface_hub lets those of its network library through, and wraps some
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            with hub_errors(what):
                raise cause from None
        raise HubError(
            f"{what}: the hub cannot be reached ({type(cause or error).__name__}: {_line(error)})"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
