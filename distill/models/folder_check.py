"""What the files of a model may ask for: nothing that runs code, fetches other files or reads outside their folder.

Whoever wrote a model's folder wrote its JSON too, and transformers follows it: to kernels that it downloads as binaries,
to Python files of other repositories, to weights of other folders, to an adapter beside the weights. Each of these is
refused before transformers sees the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.errors import ModelError
from distill.models.adapter import ADAPTER_CONFIG
from distill.recipe.kernels import is_kernel

INDEX = "model.safetensors.index.json"


def check_folder(name: str, folder: Path, *, runs_code: bool = False) -> None:
    """Refuse a whole model whose files ask for more than to be read.

    Args:
        name: the model, for messages.
        folder: with its config.json.
        runs_code: whether the folder's own Python files will be run, see `find_model`.

    Raises:
        ModelError: one line that names the file and the key.
    """
    if (folder / ADAPTER_CONFIG).exists():
        raise ModelError(
            f"model {name}: holds both config.json and {ADAPTER_CONFIG}, a model and an adapter; remove one"
        )
    for file in ("config.json", "tokenizer_config.json"):
        said = read_object(name, folder / file)
        for key, value in _texts(said):
            if is_kernel(key, value):
                raise ModelError(
                    f"model {name}: its {file} sets {key} to {_short(value)}, a kernel to be downloaded and run; remove it"
                )
            if runs_code and "auto_map" in key.split(".") and "--" in value:
                raise ModelError(
                    f"model {name}: its {file} takes code from {_short(value.partition('--')[0])}, "
                    "and only its own may be run; give a model whose code is beside it"
                )
    _check_index(name, folder)


def read_object(name: str, path: Path) -> dict[str, Any]:
    """The JSON object of a model's file, an empty one where there is no such file.

    Raises:
        ModelError: the file cannot be read, or holds something else.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"model {name}: its {path.name} cannot be read ({_short(error)})") from error
    if not isinstance(said, dict):
        raise ModelError(f"model {name}: its {path.name} is no JSON object")
    return said


def _check_index(name: str, folder: Path) -> None:
    """The shards that an index names are files of the same folder: only those are digested."""
    index = read_object(name, folder / INDEX)
    shards = index.get("weight_map", {})
    for shard in shards.values() if isinstance(shards, dict) else [shards]:
        plain = isinstance(shard, str) and shard.endswith(".safetensors") and Path(shard).name == shard
        if not plain or not (folder / shard).is_file():
            raise ModelError(
                f"model {name}: its {INDEX} names {_short(shard)}, which is no .safetensors file of the folder"
            )


def _texts(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text inside a JSON value with its keys, a dot between them."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for inner, inside in value.items():
            yield from _texts(inside, f"{key}.{inner}" if key else inner)
    elif isinstance(value, list):
        for inside in value:
            yield from _texts(inside, key)


def _short(value: object) -> str:
    text = ascii(value) if not isinstance(value, Exception) else " ".join(str(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
