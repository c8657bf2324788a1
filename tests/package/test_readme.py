"""What the README shows works as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text()
SECURITY = (ROOT / "SECURITY.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def run_snippet(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_whole_job_from_a_script(tmp_path):
    (code,) = (snippet for snippet in SNIPPETS if "distill.run(" in snippet)
    assert len([line for line in code.splitlines() if line.strip()]) <= 14
    assert code.count("train_examples=300") == 1
    # As it stands there but for the number of examples: the quickstart trains on all of them, this shows that it runs.
    said = run_snippet(
        code.replace("train_examples=300", "train_examples=32, validation_examples=16"), tmp_path
    )
    assert "against the same student trained without" in said or "The teacher" in said
    assert (tmp_path / "runs" / "rte-kl" / "report.md").is_file()


def test_the_losses_alone_in_a_loop_of_ones_own(tmp_path):
    (code,) = (snippet for snippet in SNIPPETS if "rows.mean" in snippet)
    run_snippet(
        "import sys\n" + code + "\nassert not {'transformers', 'datasets'} & sys.modules.keys()\n", tmp_path
    )


def test_the_recipe_shown_is_a_recipe(tmp_path):
    from distill.recipe import read_recipe

    (text,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    path = tmp_path / "shown.yaml"
    path.write_text(text)
    shown = read_recipe(path, check_surroundings=False)
    shipped = read_recipe("cb-sinkhorn", check_surroundings=False)
    assert (shown.data, shown.teacher, shown.student, shown.loss, shown.train, shown.seeds) == (
        shipped.data,
        shipped.teacher,
        shipped.student,
        shipped.loss,
        shipped.train,
        shipped.seeds,
    )


def test_only_commands_that_exist_are_shown():
    from typer.main import get_command

    from distill.cli import app

    shown = set(re.findall(r"`distill ([a-z]+)", README)) | set(re.findall(r"&& distill ([a-z]+)", README))
    assert shown == set(get_command(app).commands)


def test_every_runtime_dependency_has_its_line():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = README.split("## Dependencies")[1].split("##")[0]
    for requirement in project["dependencies"]:
        name = re.match(r"[a-z0-9_-]+", requirement)
        assert name is not None
        assert re.search(rf"\b{name[0]}\b", table), name[0]


@pytest.mark.parametrize(
    "link", re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"`(tests/[a-z_/.]+)`", README + SECURITY)
)
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


def test_the_table_of_recipes_has_every_recipe():
    from distill.recipe import shipped_recipes

    text = (ROOT / "recipes" / "README.md").read_text()
    assert set(re.findall(r"\[[a-z-]+\]\(([a-z-]+)\.yaml\)", text)) == set(shipped_recipes())


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200
