"""One row of an official jsonl file, read field by field, with errors that say where and what."""

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from distill.errors import DataError


def parsed(where: str, line: str) -> Any:
    """A line of JSON.

    Raises:
        DataError: it is not JSON, or nested more deeply or with longer numbers than any row.
    """
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: JSON that is no row ({str(error).partition(';')[0]})") from error


class Row:
    """A JSON object with typed access to its fields.

    Args:
        where: what the row is called in an error, such as "CB row 12".
        fields: the parsed JSON object.
        number: the row's position in its file, counted from 0.

    Raises:
        DataError: `fields` is not an object.
    """

    def __init__(self, where: str, fields: object, number: int = 0):
        self.where = where
        self.number = number
        if not isinstance(fields, Mapping):
            raise DataError(f"{where}: expected a JSON object with named fields, found {shown(fields)}")
        self.fields: Mapping[str, Any] = fields

    def fail(self, field: str, wanted: str) -> NoReturn:
        """Raise the error of a field that is missing or not what the task expects."""
        found = shown(self.fields[field]) if field in self.fields else "nothing (the field is missing)"
        raise DataError(f"{self.where}: field {field!r}: expected {wanted}, found {found}")

    def text(self, field: str) -> str:
        """A string field."""
        value = self.fields.get(field)
        if not isinstance(value, str):
            self.fail(field, "a string")
        return value

    def integer(self, field: str) -> int:
        """A whole number. AX-b writes its idx as a string of digits, so those are read as well."""
        value = self.fields.get(field)
        if isinstance(value, str) and value.isdecimal():
            return int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            self.fail(field, "a whole number")
        return value

    def row(self, field: str) -> "Row":
        """A nested object."""
        value = self.fields.get(field)
        if not isinstance(value, Mapping):
            self.fail(field, "an object")
        return Row(f"{self.where}, {field}", value)

    def rows(self, field: str) -> list["Row"]:
        """A list of nested objects."""
        value = self.fields.get(field)
        if not isinstance(value, list):
            self.fail(field, "a list of objects")
        return [Row(f"{self.where}, {field}[{number}]", item, number) for number, item in enumerate(value)]

    def label(self, values: Mapping[object, int]) -> int | None:
        """The class of a labelled row: None where the file has no label (absent or null).

        Args:
            values: what the official file may write, and the class each stands for. Python takes False and
                0 for equal, so the type is compared as well.
        """
        found = self.fields.get("label")
        if found is None:
            return None
        labels = [label for value, label in values.items() if type(value) is type(found) and value == found]
        if not labels:
            self.fail("label", "one of " + ", ".join(shown(value) for value in values))
        return labels[0]


def shown(value: object) -> str:
    """A value as it appears in an error: short, with its type where the type is the likely mistake."""
    text = repr(value)
    return (
        f"{text[:57]}... ({type(value).__name__})" if len(text) > 60 else f"{text} ({type(value).__name__})"
    )
