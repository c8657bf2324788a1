"""What is published of a run: one student, what was measured of it, and the models it comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from distill.engine.reading import reading_for
from distill.errors import PublishError
from distill.models.loading import AUTO_CLASSES
from distill.publish.licenses import Ancestor, license_of
from distill.recipe import Recipe, read_recipe
from distill.recipe.paths import leaves_working_directory, public_name
from distill.report import read_report
from distill.run_folder import RunFolder, fit_name
from distill.tasks import TASKS, Task

if TYPE_CHECKING:
    from distill.models.loading import HeadKind


@dataclass(frozen=True)
class Subject:
    """The student of one task of a finished run: the first seed's, which is the one that a run keeps.

    Attributes:
        folder: the run's.
        recipe: the run's.
        report: the run's, without the folders of this machine.
        task: whose student it is.
    """

    folder: RunFolder
    recipe: Recipe
    report: dict[str, Any]
    task: Task

    @classmethod
    def of_run(cls, folder: RunFolder, task: str | None) -> Subject:
        """The student of a run that is meant.

        Raises:
            PublishError: the run has several tasks and none is named, or no such task.
            DistillError: the run is not finished.
        """
        report = read_report(folder.path).data
        recipe = read_recipe(folder.recipe, check_surroundings=False)
        tasks = list(recipe.data.tasks)
        if task is None and len(tasks) > 1:
            raise PublishError(
                f"{folder.path}: holds a student for each of {', '.join(tasks)}; say which with --task "
                "(one repository holds one model)"
            )
        chosen = task or tasks[0]
        if chosen not in tasks:
            raise PublishError(f"--task {chosen}: the run's tasks are {', '.join(tasks)}")
        return cls(folder, recipe, without_folders(report), TASKS[chosen])

    @property
    def seed(self) -> int:
        """Of the student that is published."""
        return self.recipe.seeds[0]

    @property
    def head(self) -> HeadKind:
        """The head of its model."""
        return reading_for(self.recipe, self.task).head

    @property
    def auto_class(self) -> str:
        """The class of transformers that loads it."""
        return AUTO_CLASSES[self.head]

    @cached_property
    def fits(self) -> dict[str, dict[str, Any]]:
        """What the run wrote down of the student, the teacher and the baseline of this task."""
        roles = ("student", "teacher", *(("baseline",) if self.recipe.baseline else ()))
        return {role: self.folder.read_fit(fit_name(role, self.task.name, self.seed)) for role in roles}

    @property
    def start(self) -> Mapping[str, Any]:
        """Where its weights came from."""
        found: Mapping[str, Any] = without_folders(self.fits["student"]["provenance"])
        return found

    @cached_property
    def teachers(self) -> tuple[Ancestor, ...]:
        """The models it learnt from; those made from a configuration have no ancestor of their own."""
        known = self.fits["teacher"]["provenance"]
        parts = self.recipe.teacher.parts
        digests = known.get("member_digests", [known.get("model_digest", "")] * len(parts))
        found = []
        for number, part in enumerate(parts):
            if part.model is None:
                continue
            own = fit_name("teacher", self.task.name, self.seed, number)
            trained = self.folder.fit(own).is_file()
            digest = (
                self.folder.read_fit(own)["provenance"].get("model_digest", "")
                if trained
                else digests[number]
            )
            found.append(_ancestor(public_name(part.for_task(self.task.name)), digest))  # type: ignore[arg-type]
        return tuple(found)

    @cached_property
    def began(self) -> Ancestor | None:
        """The model whose weights it started from, or a part of them; None where it started from random ones."""
        if "teacher" in self.start:  # cut out of it, as it was or as this run fine-tuned it
            return self.teachers[0] if self.recipe.teacher.parts[0].model is not None else None
        if "model" in self.start:
            return _ancestor(str(self.start["model"]), str(self.start.get("model_digest", "")))
        return None

    def ancestors(self, stated: Mapping[str, str], *, network: bool) -> tuple[Ancestor, ...]:
        """Its teachers and the model it started from, each once, with their licences.

        Args:
            stated: licences by the model's name, where its files do not say.
            network: whether the hub may be asked.

        Raises:
            PublishError: a licence is stated that its card contradicts, or of a model that is none of these.
            HubError: the hub cannot be reached.
        """
        found: dict[str, Ancestor] = {}
        for each in (*self.teachers, *((self.began,) if self.began else ())):
            found.setdefault(each.name, each)
        for name in stated:
            if name not in found:
                raise PublishError(
                    f"--license-of {name}: is none of the models that the student comes from: {', '.join(found) or 'none'}"
                )
        with_licenses = []
        for name, each in found.items():
            said = license_of(each, network=network)
            if said is not None and stated.get(name, said) != said:
                raise PublishError(
                    f"--license-of {name}={stated[name]}: its own files say {said}; leave it out"
                )
            with_licenses.append(replace(each, license=said or stated.get(name)))
        return tuple(with_licenses)


def without_folders(value: Any) -> Any:
    """Plain values whose texts that are folders of this machine are cut down to the last part."""
    if isinstance(value, Mapping):
        return {key: without_folders(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(inside) for inside in value]
    return public_name(value) if isinstance(value, str) and leaves_working_directory(value) else value


def _ancestor(name: str, digest: str) -> Ancestor:
    found = re.fullmatch(r"hub:(.+)@([0-9a-f]{40})", digest)
    return Ancestor(name, found[1], found[2]) if found else Ancestor(name)
