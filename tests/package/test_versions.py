"""pyproject.toml, constraints.txt and constraints-oldest.txt agree, and name all that is imported."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What a user's pip reads; the rest of [dev] only runs the tests.
REQUIREMENTS = [
    Requirement(each)
    for each in [
        *PROJECT["dependencies"],
        *PROJECT["optional-dependencies"]["peft"],
        *PROJECT["optional-dependencies"]["onnx"],
    ]
]
# Imported, and by whom it is required: its version is theirs to choose.
COMES_WITH = {
    "tokenizers": "transformers",
    "typing_extensions": "pydantic",
    "pydantic_core": "pydantic",
    "markupsafe": "jinja2",
    "triton": "torch",
}
# Imported where it is installed, by whoever asks for it: the extra that brings it. The developers' has it not.
OPTIONAL = {"lm_eval": "lm-eval"}


def pins(name: str) -> dict[str, Version]:
    lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
    found = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in found}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda each: each.name)
def test_a_lower_bound_is_the_version_that_the_oldest_set_tests(requirement: Requirement):
    (bound,) = (each.version for each in requirement.specifier if each.operator == ">=")
    assert pins("constraints-oldest.txt")[canonicalize_name(requirement.name)] == Version(bound)


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda each: each.name)
def test_what_ci_installs_and_what_is_installed_is_admitted(requirement: Requirement):
    assert pins("constraints.txt")[canonicalize_name(requirement.name)] in requirement.specifier
    try:
        installed = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{requirement.name} is not installed here")
    assert installed.partition("+")[0] in requirement.specifier


def test_every_package_that_is_imported_is_required():
    imported = set()
    for path in (*(REPOSITORY / "distill").rglob("*.py"), *(REPOSITORY / "losses").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {each.name.partition(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module.partition(".")[0])
    imported -= sys.stdlib_module_names | {"distill", "losses"}
    required = {canonicalize_name(each.name) for each in REQUIREMENTS}
    assert {"torch", "ot", "yaml", "peft"} <= imported
    owners = importlib.metadata.packages_distributions()
    for name, extra in OPTIONAL.items():
        assert name in imported, f"{name} is imported no more"
        (needed,) = PROJECT["optional-dependencies"][extra]
        assert canonicalize_name(Requirement(needed).name) == canonicalize_name(name)
    for name in imported - COMES_WITH.keys() - OPTIONAL.keys():
        found = owners.get(name, [name])  # an extra that is not installed here
        assert {canonicalize_name(each) for each in found} & required, f"{name} is imported"
    for name, owner in COMES_WITH.items():
        assert name in imported, f"{name} is imported no more"
        assert canonicalize_name(owner) in required
        needs = importlib.metadata.requires(owner) or []
        # A CPU build of torch needs no Triton, nor do the losses.
        assert name == "triton" or any(
            canonicalize_name(re.split(r"[^\w.-]", each)[0]) == canonicalize_name(name) for each in needs
        )
