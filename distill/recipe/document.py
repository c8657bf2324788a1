"""YAML text to a tree of plain values that know their line and column.

A strict part of YAML: mappings, lists, text, numbers, true, false and null. What YAML 1.1 turns into something
else than it looks like (yes, 12:30:45, 0x10, 2026-01-01, .nan) stays text, and 1e-4 is a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from .wording import shown, written

MOST_BYTES = 256 * 1024
MOST_DEPTH = 32
# Far above any recipe; they keep the slowest file under half a second.
MOST_VALUES = 5_000
MOST_LINES = 10_000

INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
FLOAT = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
CONSTANTS = {"": None, "~": None, "null": None, "true": True, "false": False}

# Also U+0085, U+2028 and U+2029: line breaks to YAML 1.1 but not to an editor, so columns would lie.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
CONTROL_IN_VALUE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")

SYNTAX = (
    (
        r"found character '\\t' that cannot start any token",
        "has a tab where spaces are wanted; indent with spaces",
    ),
    (
        r"mapping values are not allowed here",
        "has a second ': ' in one line, or a key indented deeper than its mapping",
    ),
    (r"could not find expected ':'", "has a key without ': ' and a value"),
    (r"found unexpected end of stream", "has a quote or bracket that is never closed"),
    (r"expected ',' or '\]'.*", "has a list [...] that is never closed, or lacks a comma"),
    (r"expected ',' or '}'.*", "has a mapping {...} that is never closed, or lacks a comma"),
    (r"expected <block end>, but found ':'", "has a ':' without a key before it"),
    (r"expected <block end>, but found.*", "is indented unlike the lines before it"),
    (
        r"expected '<document start>', but found.*",
        "has more after the end of its value; check indentation and brackets",
    ),
    (
        r"expected (alphabetic or numeric character|URI|a digit|' ').*|.*(anchor|alias|tag|directive).*",
        "has a tag, anchor, alias or other sign that a recipe has no use for; put the text in quotes",
    ),
    (
        r"found character '.*' that cannot start any token",
        "has text that starts with a sign; put it in quotes",
    ),
    (r"found unknown escape character.*", "has an unknown escape after a backslash; use single quotes"),
)


@dataclass(slots=True)
class Node:
    """A value of the document, and where a mistake in it is to be pointed at (an entry: at its key)."""

    content: bool | int | float | str | dict[str, Node] | list[Node] | None
    line: int
    column: int
    override: str = ""  # "train.max_steps=5" where the value came from --set
    noted: bool = False  # something is wrong with the text of the value, and that is said

    def plain(self) -> Any:
        """The value without positions."""
        if isinstance(self.content, dict):
            return {key: node.plain() for key, node in self.content.items()}
        if isinstance(self.content, list):
            return [node.plain() for node in self.content]
        return self.content


@dataclass(frozen=True, slots=True)
class Problem:
    """A mistake in the text itself."""

    line: int
    column: int
    message: str


def decode(data: bytes) -> str | Problem:
    """The text of a file, without a byte order mark."""
    if len(data) > MOST_BYTES:
        return Problem(1, 1, f"is larger than {MOST_BYTES // 1024} kB, too large for a recipe")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", errors="replace")
        line, column = _position(before, len(before))
        return Problem(
            line, column, f"is not UTF-8 text, found the byte 0x{data[error.start]:02x}; save it as UTF-8"
        )


def _position(text: str, index: int) -> tuple[int, int]:
    lines = re.split(r"\r\n|\r|\n", text[:index])
    return len(lines), len(lines[-1]) + 1


def parse(text: str) -> tuple[Node | None, list[Problem]]:
    """The document's tree, or None where the text cannot be read, and all that is wrong with the text."""
    if control := CONTROL.search(text):
        line, column = _position(text, control.start())
        return None, [
            Problem(line, column, f"has the control character U+{ord(control.group()):04X}; take it out")
        ]
    if max(text.count("\n"), text.count("\r")) > MOST_LINES:
        return None, [Problem(MOST_LINES, 1, f"has more than {MOST_LINES:,} lines, too much for a recipe")]
    builder = _Builder(text)
    try:
        root = builder.document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if mark is not None and error.context_mark is not None and mark.index >= len(text.rstrip()):
            mark = error.context_mark  # never closed: where it opens, not the end of the file
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
        builder.problems.append(Problem(line, column, _syntax(error)))
        root = None
    except (yaml.YAMLError, ValueError) as error:  # an escape such as "\UFFFFFFFF" has no mark
        builder.problems.append(Problem(1, 1, f"is not YAML: {' '.join(str(error).split())[:200]}"))
        root = None
    except _TooMuch as error:
        builder.problems.append(
            Problem(error.mark.line + 1, error.mark.column + 1, f"{error}, too much for a recipe")
        )
        root = None
    return root, builder.problems


def _syntax(error: yaml.MarkedYAMLError) -> str:
    problem = " ".join((error.problem or "cannot be read").split())
    for pattern, words in SYNTAX:
        if re.fullmatch(pattern, problem):
            return words
    return f"is not YAML: {problem[:200]}"


class _TooMuch(Exception):
    """Reading on would only cost time."""

    def __init__(self, message: str, mark: yaml.Mark):
        self.mark = mark
        super().__init__(message)


class _Loader(yaml.SafeLoader):
    def fetch_flow_collection_start(self, token: Any) -> None:
        """Stop at too many open brackets here: the scanner looks far ahead, at a square cost in open brackets."""
        if self.flow_level >= MOST_DEPTH:
            raise _TooMuch(f"is more than {MOST_DEPTH} levels deep", self.get_mark())
        super().fetch_flow_collection_start(token)


class _Builder:
    def __init__(self, text: str):
        self.problems: list[Problem] = []
        self.values = 0
        self.noted = False
        self.events: Iterator[Any] = iter(yaml.parse(text, Loader=_Loader))

    def note(self, event: Any, message: str) -> None:
        self.noted = True
        self.problems.append(Problem(event.start_mark.line + 1, event.start_mark.column + 1, message))

    def document(self) -> Node | None:
        next(self.events)  # stream start
        event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            self.problems.append(
                Problem(1, 1, "is empty; a recipe needs at least name, teacher, student and loss")
            )
            return None
        if event.version or event.tags:
            self.note(event, "starts with a YAML directive (%); take it out")
        root = self.node(next(self.events), 1)
        next(self.events)  # document end
        if not isinstance(event := next(self.events), yaml.StreamEndEvent):
            self.note(event, "starts a second document; a recipe is one")
        return root

    def node(self, event: Any, depth: int) -> Node:
        self.values += 1
        if depth > MOST_DEPTH:
            raise _TooMuch(f"is more than {MOST_DEPTH} levels deep", event.start_mark)
        if self.values > MOST_VALUES:
            raise _TooMuch(f"has more than {MOST_VALUES:,} values", event.start_mark)
        node = Node(None, event.start_mark.line + 1, event.start_mark.column + 1)
        self.noted = False
        if isinstance(event, yaml.AliasEvent):
            self.note(event, f"has the alias *{event.anchor}; write the value itself")
            node.noted = True
            return node
        if event.anchor is not None:
            self.note(event, f"has the anchor &{event.anchor}; a recipe has none")
        if event.tag is not None:
            self.note(event, f"has the tag {shown(event.tag).removeprefix('the text ')}; a recipe has none")
        if isinstance(event, yaml.ScalarEvent):
            node.content = self.scalar(event)
        node.noted = self.noted
        if isinstance(event, yaml.ScalarEvent):
            return node
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
                items.append(self.node(event, depth + 1))
            node.content = items
        else:
            node.content = self.mapping(depth)
        return node

    def mapping(self, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.node(event, depth + 1)
            value = self.node(next(self.events), depth + 1)
            if not isinstance(event, yaml.ScalarEvent):
                self.note(event, "has a list, mapping or alias for a key; a key is a word")
                continue
            name = event.value
            if CONTROL_IN_VALUE.search(name):
                continue  # noted when the key was read
            if name in entries:
                first = entries[name]
                self.note(
                    event, f"{written((name,))}: stands there twice, first in line {first.line}; keep one"
                )
                continue
            value.line, value.column = key.line, key.column
            entries[name] = value
        return entries

    def scalar(self, event: yaml.ScalarEvent) -> bool | int | float | str | None:
        text = event.value
        if control := CONTROL_IN_VALUE.search(text):
            code = f"U+{ord(control.group()):04X}"
            self.note(event, f"has the control character {code} in a value; take it out")
            return None
        if event.style is not None or not event.implicit[0]:
            return text
        if text in CONSTANTS:
            return CONSTANTS[text]
        if INTEGER.fullmatch(text):
            if len(text) > 20:
                self.note(event, f"has a whole number of {len(text)} digits, too large for any field")
                return None
            return int(text)
        if FLOAT.fullmatch(text):
            number = float(text)
            if math.isinf(number):
                self.note(
                    event, f"has the number {shown(text).removeprefix('the text ')}, too large for any field"
                )
                return 0.0
            return number
        return text
