"""What an unfinished run has found by now: which fits are done, their scores, and where the one under way is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.disk import refuse_links_out
from distill.evaluation import task_score
from distill.recipe import Recipe, read_recipe
from distill.run_folder import Role, RunFolder, fit_name, read_json
from distill.tasks import TASKS, mean_score, read_predictions


def so_far(folder: str | Path) -> dict[str, Any] | None:
    """The state of an unfinished run; None where nothing is missing for a report. Writes nothing.

    Returns:
        `{"name", "unfinished": True, "fits": {"done", "of"}, "tasks", "rows"}`. Of each task its majority score where it
        is known. A row a fit, in the order of the run: name, role, task, seed, done; of a finished one score, metrics (as
        shares), steps and seconds; of both the last figures of training that were logged.

    Raises:
        RecipeError: the folder holds no run.
        DistillError: one of its files is damaged.
    """
    run = RunFolder(folder)
    recipe = read_recipe(run.recipe, check_surroundings=False)
    refuse_links_out(run.path)
    # Of each fit the last.
    logged = {entry.pop("fit"): entry for entry in run.read_metrics() if "fit" in entry and "loss" in entry}
    rows = []
    for name, role, task, seed in _fits(recipe):
        row: dict[str, Any] = {"fit": name, "role": role, "task": task, "seed": seed, "done": False}
        if run.fit(name).is_file() and run.predictions(name, task).is_file():
            record = run.read_fit(name)
            answers = read_predictions(run.predictions(name, task))
            row |= {
                "done": True,
                "score": task_score(task, answers),
                "metrics": TASKS[task].score(answers),
                "steps": record["steps"],
                "seconds": record["seconds"],
            }
        if name in logged:
            row["figures"] = logged[name]
        rows.append(row)
    done = sum(row["done"] for row in rows)
    if done == len(rows) and run.measurements.is_file():
        return None
    facts = read_json(run.data)["tasks"] if run.data.is_file() else {}
    return {
        "name": recipe.name,
        "unfinished": True,
        "fits": {"done": done, "of": len(rows)},
        "tasks": {
            task: {"majority": mean_score({task: facts[task]["majority"]})} if task in facts else {}
            for task in recipe.data.tasks
        },
        "rows": rows,
    }


def _fits(recipe: Recipe) -> list[tuple[str, Role, str, int]]:
    """Every fit of a run, in its order."""
    found: list[tuple[str, Role, str, int]] = []
    parts, first = recipe.teacher.parts, recipe.seeds[0]
    for task in recipe.data.tasks:
        if len(parts) > 1:
            for number, part in enumerate(parts):
                seed = first if part.seed is None else part.seed
                found.append((fit_name("teacher", task, seed, number), "teacher", task, seed))
        found.append((fit_name("teacher", task, first), "teacher", task, first))
        for seed in recipe.seeds:
            found.append((fit_name("student", task, seed), "student", task, seed))
            if recipe.baseline:
                found.append((fit_name("baseline", task, seed), "baseline", task, seed))
    return found
