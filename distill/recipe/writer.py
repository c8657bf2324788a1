"""A Recipe to YAML that reads back as the same recipe, and to a digest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import yaml

from .document import FLOAT
from .paths import public_name
from .schema import Recipe


def write_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; read_recipe of it gives an equal recipe."""
    return _dumped(_plain(recipe))


def public_recipe(recipe: Recipe) -> str:
    """As `write_recipe` writes it, for reports: of folders elsewhere on this machine only the last part."""

    def public(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: public(inside) for key, inside in value.items()}
        if isinstance(value, list):
            return [public(inside) for inside in value]
        return public_name(value) if isinstance(value, str) else value

    return _dumped(public(_plain(recipe)))


def recipe_sha256(recipe: Recipe) -> str:
    """The SHA-256, in hex, of what the recipe does: all but output, cache, preflight, report_to, onnx and description."""
    plain = _plain(recipe)
    for key in ("output", "cache", "preflight", "report_to", "onnx", "description"):
        plain.pop(key, None)
    text = json.dumps(
        _canonical(plain), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _dumped(plain: Any) -> str:
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _plain(value: Any) -> Any:
    """Dataclasses as mappings with a loss's kind first; fields that are null by default left out when null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = sorted(dataclasses.fields(value), key=lambda field: field.name != "kind")
        return {
            field.name: _plain(getattr(value, field.name))
            for field in fields
            if not (field.default is None and getattr(value, field.name) is None)
        }
    if isinstance(value, Mapping):
        return {key: _plain(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inside) for inside in value]
    return value


def _canonical(value: Any) -> Any:
    """2.0 as 2: from Python a field may hold either, and both mean the same."""
    if isinstance(value, dict):
        return {key: _canonical(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [_canonical(inside) for inside in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Dumper(yaml.SafeDumper):
    """Lists of single values on one line, no aliases, floats as Python writes them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    single = not any(isinstance(inside, dict | list) for inside in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=single)


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:float", repr(value))


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(float, _represent_float)
# The reader takes 1e-4 for a number, YAML 1.1 does not: without this, the text "1e-4" would lose its quotes.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))
