"""Which keys may stand at a place of a recipe, read from the dataclasses themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from .schema import Recipe
from .training import NOT_PER_TASK, TrainRecipe
from .wording import Place


def known_keys(place: Place, document: Any) -> list[str]:
    """The keys that may stand in the mapping at a place of a recipe's document; none where any may."""
    hint: Any = Recipe
    inside_per_task = "per_task" in place
    for element in () if inside_per_task else place:
        hint = _choose(hint, document)
        if dataclasses.is_dataclass(hint):
            hint = get_type_hints(hint, include_extras=False).get(str(element))
        elif get_origin(hint) is tuple:
            hint = get_args(hint)[0]
        else:
            return []
        document = document[element]
    if inside_per_task:
        hint = TrainRecipe
    hint = _choose(hint, document)
    if not dataclasses.is_dataclass(hint):
        return []
    return [
        field.name
        for field in dataclasses.fields(hint)
        if not (inside_per_task and field.name in NOT_PER_TASK)
    ]


def _choose(hint: Any, document: Any) -> Any:
    """The one type of a union that the document's value is meant to be."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    members = [member for member in get_args(hint) if member is not type(None)]
    if get_origin(hint) is tuple or not members or get_origin(hint) in (Mapping, Literal):
        return hint
    if len(members) == 1:
        return _choose(members[0], document)
    kind = document.get("kind") if isinstance(document, Mapping) else None
    for member in members:
        if dataclasses.is_dataclass(member) and getattr(member, "kind", None) == kind:
            return member
    if isinstance(document, Mapping):
        members = [member for member in members if dataclasses.is_dataclass(member)] or members
    return members[0] if not isinstance(document, list) else members[-1]
