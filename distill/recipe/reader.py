"""A YAML file to a Recipe, or every mistake in it with file:line:column."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distill.errors import RecipeError

from . import agreement, surroundings
from .data import DataRecipe
from .document import MOST_BYTES, Node, decode, parse
from .known_keys import known_keys
from .paths import leaves_working_directory
from .schema import DiscriminatedLoss, Recipe
from .shipped import recipe_text
from .student import StudentRecipe
from .teacher import TeacherRecipe
from .training import TrainRecipe
from .values import Tracker
from .wording import Mistake, Place, in_plain_words, shown, written

AFTER_THE_FILE = 10**9  # the line of an override, so that its mistakes come behind the file's


def read_recipe(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, check_surroundings: bool = True
) -> Recipe:
    """Read a recipe, and say everything that is wrong with it at once.

    Args:
        path: A YAML file, or the name of a recipe that comes with distill ("quickstart"). Paths in a recipe are
            relative to the working directory.
        overrides: "train.learning_rate=1e-4", "loss.0.weight=0.5": values that replace or add to the file's.
        check_surroundings: Also check that folders exist and packages are installed here, and that the file
            itself sends no output out of the working directory (an override may). False reads a recipe that
            was run elsewhere.

    Raises:
        RecipeError: with one line a mistake: file:line:column: key: what is wrong, what was found, what to do.
    """
    file = _printable(os.fspath(path))
    text = _text(path, file)
    root, problems = parse(text)
    lines = [
        (problem.line, problem.column, f"{file}:{problem.line}:{problem.column}: {problem.message}")
        for problem in problems
    ]
    if root is not None and not isinstance(root.content, dict):
        found = "a list" if isinstance(root.content, list) else "a single value"
        where = f"{file}:{root.line}:{root.column}"
        lines.append(
            (root.line, root.column, f"{where}: a recipe is a mapping of keys to values, found {found}")
        )
    if root is None or not isinstance(root.content, dict):
        raise RecipeError([line for _, _, line in sorted(lines)])
    root.line = root.column = 1
    wrong_overrides = [line for override in overrides for line in _apply(root, override)]
    recipe, mistakes = _validate(root, check_surroundings)
    lines += [_line(root, file, place, message) for place, message in mistakes]
    if lines or wrong_overrides or recipe is None:
        raise RecipeError([line for _, _, line in sorted(lines)] + wrong_overrides)
    return recipe


def _text(path: str | os.PathLike[str], file: str) -> str:
    try:
        try:
            with open(path, "rb") as stream:
                data = stream.read(MOST_BYTES + 1)
        except FileNotFoundError:
            data = recipe_text(os.fspath(path)).encode()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RecipeError([f"{file}: cannot be read: {reason}"]) from None
    text = decode(data)
    if not isinstance(text, str):
        raise RecipeError([f"{file}:{text.line}:{text.column}: {text.message}"])
    return text


def _printable(file: str) -> str:
    return file if file.isprintable() else ascii(file)


def _along(root: Node, place: Place) -> list[Node]:
    """The document's nodes from the root to a place, as far as the document has them."""
    nodes = [root]
    for element in place:
        content = nodes[-1].content
        if isinstance(content, dict) and element in content:
            nodes.append(content[str(element)])
        elif isinstance(content, list) and isinstance(element, int) and element < len(content):
            nodes.append(content[element])
        else:
            break
    return nodes


def _noted(root: Node, place: Place) -> bool:
    return any(node.noted for node in _along(root, place))


def _line(root: Node, file: str, place: Place, message: str) -> tuple[int, int, str]:
    """The line of a mistake, pointed at the deepest part of its place that the document has."""
    node = _along(root, place)[-1]
    where = f"--set {_printable(node.override)}" if node.override else f"{file}:{node.line}:{node.column}"
    return node.line, node.column, f"{where}: {written(place)}: {message}" if place else f"{where}: {message}"


def _apply(root: Node, override: str) -> list[str]:
    """Put an override's value into the tree; the lines of what is wrong with the override itself."""
    where = f"--set {_printable(override)}"
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        return [f"{where}: must be KEY=VALUE with a key such as train.learning_rate or loss.0.weight"]
    if not text.strip():
        return [f"{where}: has no value; write null for none"]
    value, problems = parse(text)
    if problems or value is None:
        return [f"{where}: the value {problem.message}" for problem in problems]
    _mark(value, override)
    node = root
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if node.content is None:
            node.content, node.override = {}, override
        if isinstance(node.content, dict):
            if last:
                node.content[part] = value
            elif part not in node.content:
                node.content[part] = Node({}, AFTER_THE_FILE, 1, override)
            node = node.content[part]
        elif isinstance(node.content, list):
            if not part.isascii() or not part.isdigit() or len(part) > 6 or int(part) >= len(node.content):
                here = ".".join(parts[:index])
                return [f"{where}: {here} is a list of {len(node.content)}, counted from 0, found {part!r}"]
            if last:
                node.content[int(part)] = value
            node = node.content[int(part)]
        else:
            return [f"{where}: {'.'.join(parts[:index])} is a single value and has no {part!r} inside"]
    return []


def _mark(node: Node, override: str) -> None:
    node.override = override
    node.line, node.column = AFTER_THE_FILE, 1
    inside: Iterable[Node] = ()
    if isinstance(node.content, dict):
        inside = node.content.values()
    elif isinstance(node.content, list):
        inside = node.content
    for child in inside:
        _mark(child, override)


@cache
def _adapter(of: Any) -> TypeAdapter[Any]:
    return TypeAdapter(of)


def _checked(of: Any, document: Any) -> Any:
    # As JSON: there, strict refuses "1" for 1 and true for 1 but takes a mapping for a dataclass.
    return _adapter(of).validate_json(json.dumps(document), strict=True)


@dataclass(frozen=True)
class _Sections:
    """The parts of a recipe that are right by themselves; None where one is not."""

    data: DataRecipe | None
    teacher: TeacherRecipe | None
    student: StudentRecipe | None
    train: TrainRecipe | None
    loss: tuple[Any, ...] | None
    report_to: tuple[Tracker, ...] | None
    onnx: bool | None


def _validate(root: Node, check_surroundings: bool) -> tuple[Recipe | None, list[Mistake]]:
    document = root.plain()
    recipe: Recipe | None = None
    mistakes: list[Mistake] = []
    try:
        recipe = _checked(Recipe, document)
    except ValidationError as error:
        mistakes = in_plain_words(error, document, lambda place: known_keys(place, document))
    if recipe is not None:
        sections = _Sections(
            recipe.data,
            recipe.teacher,
            recipe.student,
            recipe.train,
            recipe.loss,
            recipe.report_to,
            recipe.onnx,
        )
    else:
        sections = _sections(document)
        mistakes += _whole_mistakes(sections)
    if check_surroundings:
        mistakes += _surroundings_mistakes(sections)
        mistakes += _output_mistakes(root)
    return recipe, [mistake for mistake in dict.fromkeys(mistakes) if not _noted(root, mistake[0])]


def _sections(document: Any) -> _Sections:
    def section(name: str, of: Any, absent: Any) -> Any:
        if name not in document:
            return absent
        try:
            return _checked(of, document[name])
        except ValidationError:
            return None

    return _Sections(
        data=section("data", DataRecipe, DataRecipe()),
        teacher=section("teacher", TeacherRecipe, None),
        student=section("student", StudentRecipe, None),
        train=section("train", TrainRecipe, TrainRecipe()),
        loss=section("loss", tuple[DiscriminatedLoss, ...], None),
        report_to=section("report_to", tuple[Tracker, ...], ()),
        onnx=section("onnx", bool, False),
    )


def _whole_mistakes(sections: _Sections) -> list[Mistake]:
    """What Recipe itself checks across sections, which it cannot while one of them is wrong."""
    mistakes: list[Mistake] = []
    if sections.data is not None and sections.teacher is not None:
        mistakes += agreement.teacher_mistakes(sections.teacher, sections.data)
    if sections.teacher is not None and sections.loss is not None:
        mistakes += agreement.ensemble_mistakes(sections.teacher, sections.loss)
        mistakes += agreement.cache_mistakes(sections.teacher, sections.loss)
    if sections.teacher is not None and sections.student is not None:
        mistakes += agreement.start_mistakes(sections.teacher, sections.student)
    if sections.data is not None and sections.loss is not None and sections.train is not None:
        mistakes += agreement.group_mistakes(sections.loss, sections.train, sections.data)
    return mistakes


def _surroundings_mistakes(sections: _Sections) -> list[Mistake]:
    mistakes: list[Mistake] = []
    if sections.data is not None:
        mistakes += surroundings.data_mistakes(sections.data)
    if sections.teacher is not None:
        mistakes += surroundings.teacher_mistakes(sections.teacher, sections.data)
    if sections.student is not None:
        mistakes += surroundings.student_mistakes(sections.student)
        if sections.teacher is not None:
            mistakes += surroundings.shape_mistakes(sections.student, sections.teacher, sections.data)
    mistakes += surroundings.tracker_mistakes(sections.report_to or ())
    mistakes += surroundings.onnx_mistakes(sections.onnx or False)
    return mistakes


def _output_mistakes(root: Node) -> list[Mistake]:
    mistakes: list[Mistake] = []
    for key in ("output", "cache"):
        node = root.content.get(key) if isinstance(root.content, dict) else None
        if node is None or node.override or not isinstance(node.content, str):
            continue
        if leaves_working_directory(node.content):
            found = f"must stay in the working directory when a file says it, found {shown(node.content)}"
            mistakes.append(((key,), f"{found}; give it as --set {key}=..."))
    return mistakes
