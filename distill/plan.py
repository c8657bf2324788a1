"""What a recipe would do, without doing it: examples, steps, roles, parameters. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distill.recipe import FromTeacher, MemberRecipe, Recipe
from distill.recipe.budget import Budget, cache_bytes_of_row, planned_budgets, planned_shape
from distill.tasks import TASKS


@dataclass(frozen=True)
class Plan:
    """The fits a recipe leads to.

    Attributes:
        recipe: what was planned.
        tasks: per task the examples and the optimizer steps of teacher and student; None where the data is on
            the hub and was not looked at.
        parameters: of teacher and student, without a task's classifier; None where no file here tells.
        shape: the student's, where `target_parameters` and the files here lead to one.
    """

    recipe: Recipe
    tasks: dict[str, dict[str, int | None]]
    parameters: dict[str, Budget | None]
    shape: FromTeacher | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        from distill.recipe import recipe_sha256

        return {
            "name": self.recipe.name,
            "recipe_sha256": recipe_sha256(self.recipe),
            "folder": self.recipe.folder,
            "source": self.recipe.data.source,
            "fits": self._fits,
            "parameters": {
                role: None if budget is None else budget.as_dict() for role, budget in self.parameters.items()
            },
            "parameters_are_upper_bound": self._trims_vocabulary,
            "shape": None if self.shape is None else self.shape.shape_as_dict(),
            "cache_bytes_per_row": cache_bytes_of_row(self.recipe),
            "tasks": self.tasks,
        }

    def as_text(self) -> str:
        """A few lines and a table."""
        recipe = self.recipe
        loss = " + ".join(f"{term.weight:g} × {term.kind}" for term in recipe.loss)
        roles = (
            "teacher, student and baseline"
            if recipe.baseline
            else "teacher and student (no baseline, no verdict)"
        )
        lines = [
            f"{recipe.name}: the recipe is fine",
            f"  data     {recipe.data.source}{' ' + recipe.data.path if recipe.data.path else ''}",
            *(f"  teacher  {part.name}, {_how(part)}" for part in recipe.teacher.parts),
            *self._sizes,
            *self._cache,
            f"  loss     {loss}",
            f"  fits     {self._fits}: {roles} on {len(self.tasks)} tasks, seeds {', '.join(map(str, recipe.seeds))}",
            f"  folder   {recipe.folder}",
            "",
            "  task      train   dev   teacher steps   student steps",
        ]
        for task, facts in self.tasks.items():
            cells = [facts["train"], facts["validation"], facts["teacher_steps"], facts["student_steps"]]
            shown = ["?" if cell is None else f"{cell:,}" for cell in cells]
            lines.append(
                f"  {TASKS[task].title:<8} {shown[0]:>6} {shown[1]:>5} {shown[2]:>15} {shown[3]:>15}"
            )
        return "\n".join(lines)

    @property
    def _trims_vocabulary(self) -> bool:
        cut = self.recipe.student.from_teacher
        if cut is None or cut.vocabulary == "teacher":
            return False
        return cut.vocabulary == "corpus" or cut.vocabulary.train is None

    @property
    def _sizes(self) -> list[str]:
        """A line for each model whose size is known."""
        lines = []
        teacher, student = self.parameters["teacher"], self.parameters["student"]
        if teacher is not None:
            lines.append(f"           {teacher.as_text()}")
        if student is not None:
            bound = "at most " if self._trims_vocabulary else ""
            ratio = "" if teacher is None else f", {student.total / teacher.total:.2f} of the teacher's"
            trimmed = "; the training texts decide how many tokens it keeps" if bound else ""
            lines.append(f"  student  {bound}{student.as_text()}{ratio}{trimmed}")
        if self.shape is not None:
            lines.append(f"           {self.shape.shape_as_text()}")
        elif (cut := self.recipe.student.from_teacher) is not None and cut.target is not None:
            lines.append(f"  student  at most {cut.target / 1e6:.2f} M parameters; the run finds the shape")
        return lines

    @property
    def _cache(self) -> list[str]:
        """What the teachers' cache will weigh, as far as it is known before texts are cut into tokens."""
        cache = self.recipe.teacher.cache
        if cache is None:
            return []
        weight = cache_bytes_of_row(self.recipe)
        shown = "size not known: the teacher's vocabulary is not on this machine"
        if weight is not None:
            bound = "at most " if self._trims_vocabulary and cache.keep == "full" else ""
            shown = f"{bound}{weight:,} bytes a token that is learnt"
            text = self.tasks.get("text", {}).get("train")
            if text is not None and self.recipe.architecture == "decoder":
                most = text * self.recipe.data.max_length * weight
                shown += f", at most {_size(most)}"
            if len(self.recipe.teacher.parts) > 1:
                shown += f", for each of {len(self.recipe.teacher.parts)} teachers"
        return [f"  cache    {cache.keep}, {shown}"]

    @property
    def _fits(self) -> int:
        seeds = len(self.recipe.seeds)
        return len(self.tasks) * (len(self.recipe.teacher.parts) + seeds * (2 if self.recipe.baseline else 1))


def _size(count: int) -> str:
    return f"{count / 1e9:,.3g} GB" if count >= 1e9 else f"{count / 1e6:,.3g} MB"


def _how(part: MemberRecipe) -> str:
    if part.config is not None:
        return "trained here"
    return "fine-tuned here" if part.train else "already fine-tuned"


def plan(recipe: Recipe) -> Plan:
    """Count examples and steps. Data on the hub is not downloaded for this.

    Raises:
        DataError: the data of a folder is missing or malformed.
    """
    from distill.engine.batches import total_steps
    from distill.recipe_data import load_recipe_data

    tasks: dict[str, dict[str, int | None]] = {}
    for name in recipe.data.tasks:
        if recipe.data.source == "hub":
            tasks[name] = dict.fromkeys(("train", "validation", "teacher_steps", "student_steps"))
            continue
        data = load_recipe_data(recipe.data, name)
        training = data.task.training_examples(
            data.train, negatives=recipe.data.negatives, seed=recipe.data.seed
        )
        tasks[name] = {
            "train": len(training),
            "validation": len(data.validation),
            "teacher_steps": sum(
                total_steps(part.train.for_task(name), len(training))
                for part in recipe.teacher.parts
                if part.train is not None
            ),
            "student_steps": total_steps(recipe.train.for_task(name), len(training)),
        }
    return Plan(recipe, tasks, planned_budgets(recipe), planned_shape(recipe))
