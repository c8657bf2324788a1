"""The recipe's JSON Schema, so that editors complete and check the keys of a recipe."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from typing import Any, get_args

from pydantic import TypeAdapter

import distill.recipe
from distill.losses import AnyLoss

from .schema import Recipe
from .training import TrainRecipe


def json_schema() -> str:
    """The JSON Schema (draft 2020-12) of a recipe, as the text of recipes/schema.json."""
    made = TypeAdapter(Recipe).json_schema(mode="validation")
    definitions: dict[str, Any] = made.get("$defs", {})
    for owner in (*_dataclasses(), *get_args(AnyLoss)):
        _describe(made if owner is Recipe else definitions.get(owner.__name__, {}), owner)
        if owner is TrainRecipe:
            _describe(definitions["TrainRecipeFields"], owner)
    for part in (made, *definitions.values()):
        part.pop("title", None)
        for entry in part.get("properties", {}).values():
            entry.pop("title", None)
    for loss in get_args(AnyLoss):
        # pydantic tells the losses apart by kind, which has a default only for Python.
        definitions[loss.__name__].setdefault("required", []).append("kind")
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "distill recipe", **made}
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def _dataclasses() -> list[type]:
    found = [value for value in vars(distill.recipe).values() if isinstance(value, type)]
    return [value for value in found if dataclasses.is_dataclass(value)]


def _describe(part: dict[str, Any], owner: type) -> None:
    """The first paragraph of the docstring for the mapping, its Attributes for the keys."""
    text = inspect.getdoc(owner) or ""
    part["description"] = " ".join(text.split("\n\n")[0].split())
    # A key that a recipe's dataclass inherits is described in the one it comes from.
    inherited = [base for base in reversed(owner.__mro__) if dataclasses.is_dataclass(base)]
    for each in dict.fromkeys((*inherited, owner)):
        attributes = re.split(r"\n\S", (inspect.getdoc(each) or "").partition("Attributes:\n")[2])[0]
        for name, said in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, flags=re.MULTILINE):
            if name in part.get("properties", {}):
                part["properties"][name]["description"] = " ".join(said.split())
