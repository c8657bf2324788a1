"""The wheel holds the package, whole and alone, and works from anywhere."""

import json
import os
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def expected_files() -> set[str]:
    """Every module and data file of the checkout, under the name it installs as."""
    found = {"distill/py.typed"}
    for folder, package in (
        ("distill", "distill"),
        ("losses", "distill/losses"),
        ("recipes", "distill/recipes"),
    ):
        patterns = [
            "*.py",
            *{
                "distill": ["*.html"],
                "losses": ["README.md", "*.cpp", "*.h"],
                "recipes": ["*.yaml", "*.json", "README.md"],
            }.get(folder, []),
        ]
        for pattern in patterns:
            for path in (REPOSITORY / folder).rglob(pattern):
                found.add(f"{package}/{path.relative_to(REPOSITORY / folder).as_posix()}")
    return found


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    missing, surplus = expected_files() - names, names - expected_files()
    assert not missing, f"not in the wheel; add its package to [tool.setuptools] packages: {sorted(missing)}"
    assert not surplus, f"in the wheel, but not part of the package: {sorted(surplus)}"
    assert wheel.stat().st_size < 2_000_000


def test_the_wheel_says_what_it_is(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        info = {name.split("/", 1)[1]: name for name in archive.namelist() if ".dist-info/" in name}
        metadata = HeaderParser().parsestr(archive.read(info["METADATA"]).decode())
        entry_points = archive.read(info["entry_points.txt"]).decode()
        license_text = archive.read(info["licenses/LICENSE"]).decode()
    assert metadata["Name"] == "distill"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "distill = distill.cli:main" in entry_points
    assert license_text.lstrip().startswith("Apache License")
    assert "END OF TERMS AND CONDITIONS" in license_text


def run_python(folder: Path, code: str, *, site: Path | None = None) -> str:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    if site is not None:
        environment["PYTHONPATH"] = str(site)
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_unpacked_wheel_works_from_another_folder(unpacked: Path, tmp_path: Path):
    code = (
        "import json, distill, distill.losses, distill.recipes, distill.cli\n"
        "from distill.recipe import read_recipe, shipped_recipes\n"
        "loss = 0.5 * distill.losses.Labels() + 0.5 * distill.losses.ForwardKL()\n"
        "files = [distill.__file__, distill.losses.__file__, distill.recipes.__file__, distill.cli.__file__]\n"
        "print(json.dumps([files, [read_recipe(name, check_surroundings=False).name for name in shipped_recipes()], len(tuple(loss))]))\n"
    )
    files, names, terms = json.loads(run_python(tmp_path, code, site=unpacked))
    assert [Path(file).relative_to(unpacked).parts[0] for file in files] == ["distill"] * 4
    assert "quickstart" in names
    assert terms == 2


def test_the_command_in_the_unpacked_wheel_checks_a_recipe(unpacked: Path, tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "distill", "check", "quickstart"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
