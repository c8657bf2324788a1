"""Paths as a recipe writes them: where they lead, and what of them others may read."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath


def leaves_working_directory(folder: str) -> bool:
    """Whether a path points, by what it says, outside the working directory."""
    return (
        ".." in PureWindowsPath(folder).parts
        or PurePosixPath(folder).is_absolute()
        or bool(PureWindowsPath(folder).anchor)
    )


def public_name(model: str) -> str:
    """A model's name for reports and whatever else may be published: of a folder elsewhere on this machine the last part.

    Home folders carry user names, and others carry those of employers and projects.
    """
    return PureWindowsPath(model).name if leaves_working_directory(model) else model
