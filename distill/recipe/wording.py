"""pydantic's errors in a recipe's plain words: what is wrong, what was found, what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .patterns import IN_WORDS

if TYPE_CHECKING:
    from pydantic import ValidationError

Place = tuple[str | int, ...]
Mistake = tuple[Place, str]

WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "none_required": "null",
    "tuple_type": "a list",
    "mapping_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
    "dataclass_type": "a mapping of keys to values",
    "dataclass_exact_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
}
LIMITS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}


class FieldMistakes(ValueError):
    """What is wrong with a dataclass's fields: (path of the field below the dataclass, message) each."""

    def __init__(self, mistakes: list[Mistake]):
        self.mistakes = mistakes
        super().__init__(
            "; ".join(f"{written(place)}: {message}" if place else message for place, message in mistakes)
        )


class _Found(NamedTuple):
    place: Place
    chosen: bool  # False: pydantic tried one branch of a union that is not told apart by its kind
    error: Mapping[str, Any]


def in_plain_words(
    error: ValidationError, document: object, known_keys: Callable[[Place], Iterable[str]] = lambda place: ()
) -> list[Mistake]:
    """One (place in the document, message) a mistake.

    Args:
        error: What pydantic found.
        document: What pydantic was given; tells the document's keys in pydantic's locations from its own words.
        known_keys: The keys that may stand in the mapping at a place, to suggest the nearest.
    """
    found = [_locate(entry, document) for entry in error.errors(include_url=False)]
    mistakes: list[Mistake] = []
    for place, chosen, entry in found:
        if not chosen:
            rivals = [other for other in found if not other.chosen and other.place[: len(place)] == place]
            if _wrong_type(entry):
                if any(len(other.place) > len(place) or not _wrong_type(other.error) for other in rivals):
                    continue  # another branch takes this type of value and says what is wrong with it
                wanted = dict.fromkeys(_wanted(other.error) for other in rivals)
                if "a number" in wanted:
                    wanted.pop("a whole number", None)
                value = _value(document, place)
                words = [word for other in rivals for word in _choices(other.error)]
                hint = nearest(value, words) if isinstance(value, str) else ""
                mistakes.append((place, f"must be {' or '.join(wanted)}, found {shown(value)}{hint}"))
                continue
        mistakes += _in_words(place, entry, document, known_keys)
    return list(dict.fromkeys(mistakes))


def _locate(error: Any, document: object) -> _Found:
    place: list[str | int] = []
    chosen = True
    node: Any = document
    tags_passed: set[Place] = set()
    location = error["loc"]
    for index, element in enumerate(location):
        last = index == len(location) - 1
        inside_item = bool(place) and isinstance(place[-1], int) and isinstance(node, Mapping)
        is_tag = (
            inside_item
            and tuple(place) not in tags_passed
            and _holds(node, "kind")
            and node["kind"] == element
        )
        if is_tag:
            tags_passed.add(tuple(place))
        elif _holds(node, element):
            node = node[element]
            place.append(element)
        elif last and error["type"] == "missing":
            place.append(element)
        elif element != "[key]":
            chosen = False
    return _Found(tuple(place), chosen, error)


def _holds(node: object, element: str | int) -> bool:
    if isinstance(node, list | tuple):
        return isinstance(element, int) and element < len(node)
    return isinstance(node, Mapping) and element in node


def _value(document: object, place: Place) -> object:
    node: Any = document
    for element in place:
        node = node[element]
    return node


def _wrong_type(error: Mapping[str, Any]) -> bool:
    return error["type"] in WANTED or error["type"] == "literal_error"


def _choices(error: Mapping[str, Any]) -> list[str]:
    return _quoted(error["ctx"]["expected"]) if error["type"] == "literal_error" else []


def _wanted(error: Mapping[str, Any]) -> str:
    return str(error["ctx"]["expected"]) if error["type"] == "literal_error" else WANTED[error["type"]]


def _in_words(
    place: Place, error: Mapping[str, Any], document: object, known_keys: Callable[[Place], Iterable[str]]
) -> list[Mistake]:
    kind, context, value = error["type"], error.get("ctx", {}), error.get("input")
    if error["loc"] and error["loc"][-1] == "[key]":
        if kind == "string_pattern_mismatch":
            return [(place, f"must be {IN_WORDS[context['pattern']]}")]
        choices = _quoted(context.get("expected", ""))
        return [(place, f"is not a key here; the keys are {', '.join(choices)}{nearest(place[-1], choices)}")]
    if kind == "missing":
        return [(place, "is missing and has no default; add it")]
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        known = list(known_keys(place[:-1]))
        hint = nearest(place[-1], known) or (f"; the keys are {', '.join(known)}" if known else "")
        return [(place, f"is not a key here{hint}")]
    if kind == "union_tag_not_found":
        if not isinstance(value, Mapping):
            return [(place, f"must be a mapping with a kind, found {shown(value)}")]
        return [((*place, "kind"), "is missing and has no default; add it")]
    if kind == "union_tag_invalid":
        choices = _quoted(context["expected_tags"])
        tag = value.get("kind") if isinstance(value, Mapping) else context["tag"]
        hint = nearest(tag, choices)
        return [((*place, "kind"), f"must be one of {', '.join(choices)}, found {shown(tag)}{hint}")]
    if kind == "too_short" and value:
        return []  # pydantic counts the right entries only; the wrong ones have their own lines
    if kind == "value_error":
        return _raised(place, context["error"], value)
    return [
        (place, f"must be {_condition(kind, context)}, found {shown(value)}{_hint(kind, context, value)}")
    ]


def _condition(kind: str, context: Mapping[str, Any]) -> str:
    if kind in LIMITS:
        key, words = LIMITS[kind]
        return f"{words} {context[key]:g}" if isinstance(context[key], float) else f"{words} {context[key]}"
    if kind in WANTED:
        return WANTED[kind]
    if kind == "literal_error":
        return f"one of {', '.join(_quoted(context['expected']))}"
    if kind == "string_pattern_mismatch":
        return IN_WORDS[context["pattern"]]
    if kind in ("too_short", "string_too_short"):
        return "given something (it may not be empty)"
    if kind in ("too_long", "string_too_long"):
        return f"no longer than {context['max_length']}"
    if kind == "finite_number":
        return "a finite number"
    if kind == "string_unicode":
        return "text that can be written as UTF-8"
    return f"different ({kind.replace('_', ' ')})"


def _hint(kind: str, context: Mapping[str, Any], value: object) -> str:
    if kind == "literal_error":
        return nearest(value, _quoted(context["expected"]))
    if kind == "bool_type" and isinstance(value, str) and value.lower() in ("yes", "on", "true", "y"):
        return "; write true"
    if kind == "bool_type" and isinstance(value, str) and value.lower() in ("no", "off", "false", "n"):
        return "; write false"
    if kind == "tuple_type":
        return "; write [...]"
    if kind == "string_type" and isinstance(value, int | float):
        return "; put it in quotes"
    return ""


def _raised(place: Place, error: Exception, value: object) -> list[Mistake]:
    """A check of ours or of a loss; a loss's message starts with the field's name."""
    if isinstance(error, FieldMistakes):
        return [((*place, *below), message) for below, message in error.mistakes]
    message = " ".join(str(error).split())
    field, _, rest = message.partition(" ")
    if isinstance(value, Mapping) and field in value and rest:
        return [((*place, field), rest)]
    return [(place, message)]


def _quoted(words: str) -> list[str]:
    return re.findall(r"'([^']*)'", words)


def written(place: Place) -> str:
    """A place as it is written in messages and in --set: train.per_task.cb.learning_rate, loss.0.weight."""
    return ".".join(_cut(part if part.isprintable() and part else ascii(part)) for part in map(str, place))


def shown(value: object) -> str:
    """A value as a user wrote it, short enough for one line."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        value = value[:80]
        return f"the text {_cut(repr(value) if value.isprintable() else ascii(value))}"
    if isinstance(value, int | float):
        return _cut(repr(value))
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, Sequence):
        return f"a list of {len(value)}" if value else "an empty list"
    return _cut(type(value).__name__)


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def nearest(word: object, known: Iterable[str]) -> str:
    """The hint "; did you mean ...?" when one of the known words is close, else nothing."""
    close = difflib.get_close_matches(str(word)[:100].lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
