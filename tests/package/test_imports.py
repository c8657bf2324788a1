"""What an import loads, what it costs, and that a user's own files never get in the way."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "ot",
    "geomloss",
    "matplotlib",
    "scipy",
    "sklearn",
    "pandas",
    "triton",
}


def loaded_by(code: str, folder: Path) -> tuple[float, set[str]]:
    """Seconds of the process that the code took, and the modules loaded after it."""
    program = (
        "import json, sys, time\n"
        "start = time.process_time()\n"
        f"{code}\n"
        "seconds = time.process_time() - start\n"
        "print(json.dumps([seconds, sorted(sys.modules)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    seconds, modules = json.loads(done.stdout)
    return seconds, set(modules)


def test_importing_distill_is_quick_and_loads_nothing_heavy(tmp_path: Path):
    seconds, modules = min(
        (loaded_by("import distill", tmp_path) for _ in range(3)), key=lambda found: found[0]
    )
    assert not HEAVY & modules
    assert seconds < 0.3


@pytest.mark.parametrize(
    "code",
    [
        "import distill.losses",
        "from distill.losses import *",
        "import distill.recipe; distill.recipe.read_recipe('quickstart')",
        "import distill.tasks",
        "import distill.errors",
        "import distill.cli",
    ],
)
def test_what_needs_no_model_loads_nothing_heavy(tmp_path: Path, code: str):
    _, modules = loaded_by(code, tmp_path)
    assert not HEAVY & modules


def test_a_users_own_losses_recipes_and_tasks_beside_a_script_are_left_alone(tmp_path: Path):
    for name in (
        "losses",
        "recipes",
        "benchmarks",
        "tasks",
        "models",
        "engine",
        "report",
        "recipe",
        "alignment",
        "errors",
    ):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('loaded the user\\'s {name}.py')\n")
    script = tmp_path / "train.py"
    script.write_text(
        "import json, sys\n"
        "assert sys.path[0] == json.loads(sys.argv[1])\n"
        "import distill, distill.losses, distill.recipes, distill.tasks, distill.recipe\n"
        "from distill.losses import ForwardKL, Labels, Sinkhorn\n"
        "recipe = distill.recipe.read_recipe('quickstart')\n"
        "hostile = [name for name, module in sys.modules.items() if (getattr(module, '__file__', None) or '').startswith(sys.path[0])]\n"
        "print(recipe.name, [name for name in hostile if name != '__main__'])\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(str(tmp_path))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "quickstart []"


def test_the_hostile_files_would_be_loaded_by_a_top_level_package_of_that_name(tmp_path: Path):
    (tmp_path / "losses.py").write_text("raise SystemExit('loaded the user\\'s losses.py')\n")
    (tmp_path / "train.py").write_text("import losses\n")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "train.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "loaded the user's losses.py" in done.stderr


def test_every_public_name_of_distill_exists(tmp_path: Path):
    code = "import distill\nmissing = [name for name in distill.__all__ if not hasattr(distill, name)]\nassert not missing, missing"
    loaded_by(code, tmp_path)
