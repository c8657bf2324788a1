"""Imports go one way: a part of distill imports only parts that stand before it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

# Parts of one line do not import each other.
LAYERS = (
    ("errors",),
    ("disk", "memory", "signals"),
    ("manifest", "upload"),
    ("losses", "progress", "processes", "environment", "run_folder"),
    ("recipe", "alignment"),
    ("models", "tasks"),
    ("cache",),
    ("engine", "recipe_data", "independent_check"),
    ("evaluation", "evaluate", "plan"),
    ("submission",),
    ("report",),
    ("runs", "publish"),
    ("cli",),
    ("__main__",),
)
HEIGHT = {part: height for height, parts in enumerate(LAYERS) for part in parts}


def modules() -> Iterator[tuple[Path, str]]:
    """Every file of the package with its dotted name."""
    for folder, package in (("distill", "distill"), ("losses", "distill.losses")):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            inside = path.relative_to(REPOSITORY / folder).with_suffix("").parts
            yield path, ".".join([package, *(part for part in inside if part != "__init__")])


def imported(path: Path, module: str, source: str | None = None) -> Iterator[tuple[int, str]]:
    """(line, part of distill) of every import in a file, at the top, in functions and under TYPE_CHECKING."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8") if source is None else source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            home = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{home}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("distill."):
                yield node.lineno, name.split(".")[1]


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "distill"


@pytest.mark.parametrize(
    ("path", "module"), [pytest.param(*found, id=found[1]) for found in modules() if found[1] != "distill"]
)
def test_a_module_imports_only_what_stands_before_it(path: Path, module: str):
    part = part_of(module)
    assert part in HEIGHT, f"distill.{part} has no place in LAYERS; give it one"
    for line, target in imported(path, module):
        if target != part:
            assert target in HEIGHT, f"{path}:{line}: distill.{target} has no place in LAYERS; give it one"
            assert HEIGHT[target] < HEIGHT[part], (
                f"{path}:{line}: distill.{part} must not import distill.{target}"
            )


@pytest.mark.parametrize(
    ("part", "allowed"),
    [("losses", {"errors"}), ("recipe", {"errors", "losses"}), ("tasks", {"errors", "disk"})],
)
def test_the_parts_that_are_used_alone_need_little(part: str, allowed: set[str]):
    found = {
        target
        for path, module in modules()
        if part_of(module) == part
        for _, target in imported(path, module)
    }
    assert found - {part} <= allowed


def test_inside_losses_imports_are_relative_but_for_the_errors():
    for path, module in modules():
        if part_of(module) == "losses":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.ImportFrom)
                    and node.level == 0
                    and (node.module or "").startswith("distill")
                ):
                    assert node.module == "distill.errors", f"{path}:{node.lineno}: import it relatively"


def test_the_import_reader_sees_every_form():
    source = (
        "import distill.engine\nfrom distill import report\nfrom . import near\nfrom .. import cli\nfrom ..models.teacher import Teacher\n"
        "if TYPE_CHECKING:\n    from distill.tasks import Task\ndef f():\n    from distill.runs.run import run\n"
    )
    found = list(imported(Path("losses/rows.py"), "distill.losses.rows", source))
    assert found == [
        (1, "engine"),
        (2, "report"),
        (3, "losses"),
        (4, "cli"),
        (5, "models"),
        (7, "tasks"),
        (9, "runs"),
    ]
