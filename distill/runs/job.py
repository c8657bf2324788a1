"""One task of a run: the recipe as it reads for that task, its data, and who works on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from distill.engine.reading import Reading, reading_for
from distill.losses import Ensemble
from distill.models import DataSet, ModelSource, Student, Teacher
from distill.models.loading import load_tokenizer
from distill.models.source import find_trusted
from distill.processes import Processes
from distill.recipe import MemberRecipe, Recipe, TrainRecipe
from distill.run_folder import Role, RunFolder
from distill.runs.corpus import Corpus, name_of
from distill.runs.facts import teacher_files
from distill.tasks import Example, Task, TaskData

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distill.progress import Progress
    from distill.runs.trackers import Trackers


@dataclass
class Job:
    """What is done on one task of a run.

    Attributes:
        recipe: what to do.
        folder: where finished fits, predictions and models are kept.
        data: the task's examples.
        diagnostics: evaluation-only data answered by the same model (AX-b and AX-g by the RTE model).
        corpus: the training examples of all tasks of the run.
        accelerator: devices and processes.
        progress: told what is going on.
        trusted: the repositories whose own code may be run, each with its commit.
        trackers: what else is told the figures of training.
    """

    recipe: Recipe
    folder: RunFolder
    data: TaskData
    diagnostics: list[TaskData]
    corpus: Corpus
    accelerator: Accelerator
    progress: Progress
    trusted: Mapping[str, str] = field(default_factory=dict)
    trackers: Trackers | None = None
    _examples: dict[str, DataSet] = field(default_factory=dict, init=False)

    @cached_property
    def processes(self) -> Processes:
        """Who else works on the run."""
        return Processes(self.accelerator)

    @property
    def task(self) -> Task:
        """The task itself."""
        return self.data.task

    @cached_property
    def training(self) -> list[Example]:
        """The training examples as a model is given them."""
        wanted = self.recipe.data
        return self.task.training_examples(self.data.train, negatives=wanted.negatives, seed=wanted.seed)

    @cached_property
    def reading(self) -> Reading:
        """How the task is put before a model."""
        return reading_for(self.recipe, self.task)

    def examples_for(self, reader: Student | Teacher) -> DataSet:
        """The training examples in a model's tokens, made once for all models that have these tokens."""
        key = name_of(reader.tokenizer)
        if key not in self._examples:
            self._examples[key] = self.reading.examples(self.training, reader, seed=self.recipe.data.seed)
        return self._examples[key]

    # The recipe as it reads for this task.

    def train_of(self, role: Role) -> TrainRecipe:
        """How a student or a baseline is trained; a baseline never on its own texts, which have no labels."""
        train = self.recipe.train.for_task(self.task.name)  # type: ignore[arg-type]
        return train if role == "student" else replace(train, on_policy=None)

    def train_of_part(self, part: MemberRecipe) -> TrainRecipe | None:
        """How a teacher is fine-tuned; None if it is already."""
        return None if part.train is None else part.train.for_task(self.task.name)  # type: ignore[arg-type]

    @property
    def parts(self) -> tuple[MemberRecipe, ...]:
        """The teachers."""
        return self.recipe.teacher.parts

    @property
    def several(self) -> bool:
        """Whether there is more than one teacher."""
        return len(self.parts) > 1

    @property
    def mean(self) -> Ensemble:
        """How several teachers become one, at the temperature of the terms that will read it."""
        temperatures = {getattr(term, "temperature", 1.0) for term in self.recipe.loss if term.needs_teacher}
        wanted = self.recipe.teacher
        return Ensemble(of=wanted.mean, weights=wanted.weights, temperature=next(iter(temperatures), 1.0))

    def member(self, number: int) -> int | None:
        """A teacher's number in the names of its files: none if there is only one."""
        return number if self.several else None

    def seed_of(self, part: MemberRecipe) -> int:
        """The seed of a teacher's new weights and of the order of its training."""
        return self.recipe.seeds[0] if part.seed is None else part.seed

    def find(self, model: str, revision: str | None = None) -> ModelSource:
        """The files of a model that the recipe names."""
        return find_trusted(model, revision, self.trusted)

    def source(self, part: MemberRecipe) -> ModelSource:
        """The files of a teacher as the recipe names it."""
        return self.find(part.for_task(self.task.name), part.revision)  # type: ignore[arg-type]

    def files(self, number: int) -> ModelSource:
        """The files of a teacher that knows the task."""
        return teacher_files(self.recipe, self.folder, self.task.name, number, self.trusted)  # type: ignore[arg-type]

    def reads_like_teacher(self, reader: Any) -> bool:
        """Whether a model has the (first) teacher's tokens, under the same ids."""
        return name_of(load_tokenizer(self.files(0))) == name_of(reader.tokenizer)
