"""Checks the fields of a recipe's dataclasses, in the same words from Python as from a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

# pydantic refuses typing.TypedDict before Python 3.12; pydantic itself depends on typing_extensions.
from typing_extensions import TypedDict

from .wording import FieldMistakes, in_plain_words


def fields_as_dict_type(owner: Any, *, without: tuple[str, ...] = (), total: bool = True) -> Any:
    """The fields of a dataclass as a TypedDict, for pydantic."""
    hints = get_type_hints(owner, include_extras=True)
    names = [field.name for field in dataclasses.fields(owner) if field.name not in without]
    make: Any = TypedDict  # mypy knows only TypedDicts whose keys stand in the source
    dict_type = make(f"{owner.__name__}Fields", {name: hints[name] for name in names}, total=total)
    dict_type.__pydantic_config__ = {"extra": "forbid"}
    return dict_type


@cache
def _adapter(owner: Any) -> TypeAdapter[dict[str, object]]:
    return TypeAdapter(fields_as_dict_type(owner))


def check_fields(instance: Any) -> None:
    """Check every field of a frozen dataclass against its annotation; lists become tuples, 3 becomes 3.0.

    Raises:
        FieldMistakes: all fields that are not what their annotation says.
    """
    values = {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    owner: Any = type(instance)
    try:
        checked = _adapter(owner).validate_python(values, strict=True)
    except ValidationError as error:
        raise FieldMistakes(in_plain_words(error, values)) from None
    for name, value in checked.items():
        object.__setattr__(instance, name, dict(value) if isinstance(value, Mapping) else value)
