"""Where a run happened: versions, machine, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "safetensors", "pot", "geomloss", "numpy")


def describe_environment() -> dict[str, Any]:
    """Plain values for `environment.json`: no paths, no user names, no environment variables."""
    import torch

    return {
        "distill": importlib.metadata.version("distill"),
        "commit": _commit(Path(__file__).resolve().parent.parent),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _commit(root: Path) -> str | None:
    """The checkout's commit, read from .git; None for an installed wheel."""
    git = root / ".git"
    try:
        if git.is_file():  # of a second working tree: where its own files are
            git = root / git.read_text().removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        reference = head.removeprefix("ref: ")
        shared = git / (git / "commondir").read_text().strip() if (git / "commondir").is_file() else git
        if (shared / reference).is_file():
            return (shared / reference).read_text().strip()
        for line in (shared / "packed-refs").read_text().splitlines():
            if line.endswith(f" {reference}"):
                return line.split()[0]
    except OSError:
        return None
    return None
