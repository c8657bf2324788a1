"""The recipes that come with distill."""

from __future__ import annotations

import importlib.resources

from distill.errors import RecipeError

from .wording import nearest


def shipped_recipes() -> dict[str, str]:
    """The recipes that come with distill: name to what its file's first comment says."""
    found: dict[str, str] = {}
    for entry in sorted(importlib.resources.files("distill.recipes").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".yaml"):
            lines = entry.read_text("utf-8").splitlines()
            comments = [line.lstrip("# ").strip() for line in lines if line.startswith("#")]
            said = [each for each in comments if each and not each.startswith("yaml-language-server")]
            found[entry.name.removesuffix(".yaml")] = said[0] if said else ""
    return found


def recipe_text(name: str) -> str:
    """The YAML of a recipe that comes with distill, as its file has it.

    Raises:
        RecipeError: there is none of that name.
    """
    names = list(shipped_recipes())
    if name not in names:
        shown = name if name.isprintable() else ascii(name)
        known = f"the recipes that come with distill are {', '.join(names)}{nearest(name, names)}"
        raise RecipeError([f"{shown}: no such file; {known}"])
    return importlib.resources.files("distill.recipes").joinpath(f"{name}.yaml").read_text("utf-8")
