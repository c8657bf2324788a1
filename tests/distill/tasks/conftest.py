import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.tasks import TaskData, load_task


@pytest.fixture(scope="session")
def superglue(data_root: Path) -> Path:
    """The folder of official files."""
    return data_root / "superglue"


@pytest.fixture(scope="session")
def official(superglue: Path) -> Callable[[str], TaskData]:
    """Load a task from the official files, once a session."""
    return functools.cache(lambda name: load_task(name, source="folder", path=superglue))


@pytest.fixture(scope="session")
def official_rows(superglue: Path) -> Callable[[str], list[dict[str, Any]]]:
    """The parsed lines of an official file, such as "CB/val.jsonl"."""
    return lambda file: [
        json.loads(line)
        for line in (superglue / file).read_text(encoding="utf-8").split("\n")
        if line.strip()
    ]
