"""The models that installed PyPI packages carry, and the packages that an export needs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

PREFIX = "package:"
FOR_ONNX = ("onnx", "onnxscript", "onnxruntime")


def model_folder(model: str) -> Path | None:
    """The folder `model` of an installed package, given as `package:NAME`; None if it carries no model/config.json.

    Raises:
        importlib.metadata.PackageNotFoundError: the package is not installed.
    """
    for file in importlib.metadata.files(model.removeprefix(PREFIX)) or []:
        if file.name == "config.json" and file.parent.name == "model":
            return Path(str(file.locate())).parent
    return None


def missing_for_onnx() -> str:
    """What `onnx: true` lacks, in words; empty where nothing is missing."""
    missing = [name for name in FOR_ONNX if importlib.util.find_spec(name) is None]
    if not missing:
        return ""
    return f'needs {" and ".join(missing)}, not installed; type: pip install "distill[onnx]"'
