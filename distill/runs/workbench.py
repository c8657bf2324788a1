"""Training and keeping the models of one task: what is finished is never done again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.cache import CacheSummary
from distill.disk import remove, whole
from distill.engine import Engine
from distill.engine.reading import Reader, reading_for
from distill.errors import CheckpointError, MismatchError, ModelError
from distill.evaluation import added, size, task_score
from distill.losses import Labels, Total
from distill.models import Batch, EnsembleTeacher, Student, Teacher, outline, parameter_budget
from distill.models.adapter import adapter_config
from distill.models.source import is_model
from distill.models.teacher import weights_precision
from distill.recipe import MemberRecipe, TrainRecipe
from distill.recipe.paths import public_name
from distill.run_folder import Role, fit_name
from distill.runs.cache import RECORD, CacheEntry
from distill.runs.comparisons import Comparisons
from distill.runs.job import Job
from distill.runs.keys import Keys
from distill.runs.metrics_log import MetricsLog
from distill.runs.preflight import look_ahead
from distill.runs.students import Students
from distill.runs.teachers import AnyTeacher, Teachers
from distill.tasks import PLAIN_TEXT, Answer, read_predictions, write_predictions

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Fit:
    """One model on one task, and the digest of everything that decides its weights."""

    role: Role
    task: str
    seed: int
    key: str
    member: int | None = None  # of several teachers

    @property
    def name(self) -> str:
        """The fit's name in the run folder."""
        return fit_name(self.role, self.task, self.seed, self.member)


class Workbench:
    """Fits the models of one task: the teacher, then a student and a baseline for each seed.

    Attributes:
        job: what to do, with what.
        teachers: the task's.
        students: makes the task's.
        comparisons: of students with a teacher that has other tokens.
    """

    def __init__(self, job: Job):
        self.job = job
        self.keys = Keys(job)
        self.teachers = Teachers(job, self.keys)
        self.students = Students(job, self.teachers)
        self.comparisons = Comparisons(job, self.teachers)
        self._scores: dict[Role, list[float]] = {}
        # Before a teacher is trained for an hour.
        for part in job.parts:
            weights_precision(part.precision, job.accelerator.device)
        if job.recipe.student.adapter is not None:
            config = adapter_config(job.recipe.student.adapter, job.reading.head)
            if job.recipe.onnx and config.is_prompt_learning:
                raise ModelError(
                    f"onnx: {job.recipe.student.adapter['peft_type']} adds virtual tokens, which cannot be merged and are "
                    "not exported; leave onnx out, or use an adapter without them, such as LORA"
                )

    def fit_teacher(self) -> None:
        """Fine-tune the teacher, or each of several, or take what the recipe names as fine-tuned; store predictions."""
        for number, part in enumerate(self.job.parts):
            fit = Fit(
                "teacher",
                self.job.task.name,
                self.job.seed_of(part),
                self.keys.part(part),
                self.job.member(number),
            )
            if part.train is None:
                self._finish(fit, partial(self._take_teacher, fit, number), keep_model=False)
            else:
                self._finish(fit, partial(self._train_teacher, fit, part), keep_model=True)
        if self.job.several:
            fit = Fit("teacher", self.job.task.name, self.job.recipe.seeds[0], self.keys.teacher)
            self._finish(fit, partial(self._take_ensemble, fit), keep_model=False)

    def fit_student(self, seed: int) -> Fit:
        """Train the student with the recipe's loss."""
        loss = Total(terms=self.job.recipe.loss)
        fit = Fit("student", self.job.task.name, seed, self.keys.student(seed, loss))
        return self._finish(
            fit,
            lambda: self._train_model(
                fit,
                self.students.new(seed),
                loss,
                self.job.train_of("student"),
                self.teachers.for_loss(loss) if loss.needs_teacher else None,
            ),
            keep_model=seed == self.job.recipe.seeds[0],
        )

    def fit_baseline(self, seed: int) -> Fit:
        """Train the same student on the labels alone: same initial weights, order, steps and schedule."""
        loss = Total(terms=(Labels(),))
        fit = Fit("baseline", self.job.task.name, seed, self.keys.baseline(seed))
        return self._finish(
            fit,
            lambda: self._train_model(
                fit, self.students.new(seed), loss, self.job.train_of("baseline"), None
            ),
            keep_model=False,
        )

    def write_caches(self) -> dict[str, CacheSummary]:
        """What the teachers say of the training examples, on disk: of each teacher by its fit's name."""
        self.teachers.read_from_disk(self.students.new(self.job.recipe.seeds[0]))
        return self.teachers.caches

    def _take_teacher(self, fit: Fit, number: int) -> tuple[Teacher, dict[str, Any]]:
        self.job.progress.begin(fit.name, 1)
        name = self.job.parts[number].for_task(self.job.task.name)  # type: ignore[arg-type]
        return self.teachers.load_member(number), {
            "steps": 0,
            "tokens": 0,
            "provenance": {"model": public_name(name), "model_digest": self.job.files(number).digest},
        }

    def _take_ensemble(self, fit: Fit) -> tuple[Teacher | EnsembleTeacher, dict[str, Any]]:
        self.job.progress.begin(fit.name, 1)
        provenance = {
            "members": [part.name for part in self.job.parts],
            "member_digests": [self.job.files(number).digest for number in range(len(self.job.parts))],
        }
        return self.teachers.load_to_answer(), {"steps": 0, "tokens": 0, "provenance": provenance}

    def _train_teacher(self, fit: Fit, part: MemberRecipe) -> tuple[Student, dict[str, Any]]:
        train = self.job.train_of_part(part)
        assert train is not None  # noqa: S101 - who calls knows
        return self._train_model(fit, self.teachers.new(part), Total(terms=(Labels(),)), train, None)

    # One fit, from its key to its stored predictions.

    def _finish(
        self, fit: Fit, make: Callable[[], tuple[Reader, dict[str, Any]]], *, keep_model: bool
    ) -> Fit:
        shared = self._shared_entry(fit)
        # What one process does next must not depend on when it looks at the folder.
        found = self.job.processes.first(lambda: self._found(fit, shared, keep_model=keep_model))
        if found:
            self.job.progress.say(f"{fit.name}: {found}")
        else:
            started = time.monotonic()
            made, record = make()
            self.job.processes.first(
                lambda: self._store(fit, made, record, started, shared, keep_model=keep_model)
            )
        if self.job.accelerator.is_main_process and fit.member is None:
            answers = read_predictions(self.job.folder.predictions(fit.name, fit.task))
            score = task_score(fit.task, answers)
            self._scores.setdefault(fit.role, []).append(score)
            if self.job.trackers is not None:
                steps = self.job.folder.read_fit(fit.name)["steps"]
                self.job.trackers.log(fit.name, {"step": steps, "score": score})
        return fit

    @property
    def _scores_so_far(self) -> str:
        """Of the finished fits: "teacher 81.6, student 65.1", means of the seeds."""
        return ", ".join(f"{role} {sum(found) / len(found):.1f}" for role, found in self._scores.items())

    def _found(self, fit: Fit, shared: CacheEntry | None, *, keep_model: bool) -> str | None:
        """Where a finished fit comes from that need not be made; None if it must be."""
        found = "already done"
        if not self._is_done(fit, keep_model=keep_model):
            if shared:
                try:
                    shared.take(fit.key, self._files_of(fit, keep_model=keep_model))
                except CheckpointError as error:
                    self.job.progress.say(f"{fit.name}: cache {error}; it is made again")
            found = "taken from the cache"
            if not self._is_done(fit, keep_model=keep_model):
                return None
        self._clear(fit)
        return found

    def _store(
        self,
        fit: Fit,
        made: Reader,
        record: dict[str, Any],
        started: float,
        shared: CacheEntry | None,
        *,
        keep_model: bool,
    ) -> None:
        """Keep what was made, its answers and what is to be known about it; the record last."""
        truncated = self._answer(fit, made)
        record |= self._store_model(fit, made, keep_model=keep_model)
        if not isinstance(made, EnsembleTeacher):
            record["outline"] = outline(made.model)
        record |= {
            "key": fit.key,
            "role": fit.role,
            "task": fit.task,
            "seed": fit.seed,
            "train_examples": len(self.job.training),
            "truncated": truncated,
            "seconds": round(record.get("seconds", 0.0) + time.monotonic() - started, 1),
        }
        self.job.folder.write_fit(fit.name, record)
        if shared:
            shared.put(self._files_of(fit, keep_model=keep_model))
        self._clear(fit)

    def _clear(self, fit: Fit) -> None:
        """A finished fit needs no checkpoints; who was killed while removing them left some."""
        shutil.rmtree(self.job.folder.checkpoints(fit.name), ignore_errors=True)

    def _train_model(
        self,
        fit: Fit,
        student: Student,
        loss: Total,
        train: TrainRecipe,
        teacher: Callable[[Student], AnyTeacher] | None,
    ) -> tuple[Student, dict[str, Any]]:
        first = fit.role == "student" and fit.seed == self.job.recipe.seeds[0]
        if first:
            self._say_size(student)
        log = MetricsLog(self.job.folder.metrics, fit.name, self.job.trackers)
        engine = self.engine(fit, student, loss, train, teacher, log)
        resumed = engine.resume()
        self.job.processes.first(lambda: log.start_at(resumed))
        # Devices that share one student cannot measure it by themselves.
        if first and not resumed and self.job.recipe.preflight and not engine.sharded:
            look_ahead(self, engine)
        engine.run()
        student.merge()  # what is scored is what is exported
        # The accelerator holds on to every model and optimizer it prepared: let this fit's go.
        self.job.accelerator.free_memory()
        return student, {
            "steps": engine.step_number,
            "tokens": engine.tokens,
            "seconds": engine.seconds_before,
            "provenance": student.start,
        }

    def engine(
        self,
        fit: Fit,
        student: Student,
        loss: Total,
        train: TrainRecipe,
        teacher: Callable[[Student], Callable[[Batch], Any]] | None,
        log: MetricsLog | None,
    ) -> Engine:
        """What trains a fit's model, about to begin."""
        aligns = self.job.recipe.alignment is not None and fit.role != "teacher"
        return Engine(
            student,
            loss,
            self.comparisons.examples(student)[0] if aligns else self.job.examples_for(student),
            train,
            teacher=teacher(student) if teacher else None,
            comparison=self.comparisons.of(student, loss) if teacher and self.job.recipe.alignment else None,
            seed=fit.seed,
            checkpoints=self.job.folder.checkpoints(fit.name),
            owner=f"{fit.name}@{fit.key}",
            evaluate=lambda: self._validation_figures(student),
            log=log if self.job.processes.main else None,
            progress=self.job.progress,
            accelerator=self.job.accelerator,
            example_name=lambda index: f"training example {self.job.training[index].id}",
            beside=self._scores_so_far,
        )

    def _say_size(self, student: Student) -> None:
        """The student's parameters, before anything is trained."""
        budget = parameter_budget(student.model)
        teacher = self.job.folder.read_fit(fit_name("teacher", self.job.task.name, self.job.recipe.seeds[0]))
        ratio = budget.total / teacher["parameters"]
        self.job.progress.say(
            f"student-{self.job.task.name}: {budget.as_text()}, {ratio:.2f} of the teacher's"
        )

    def _answer(self, fit: Fit, made: Reader) -> dict[str, int]:
        """Predict and store the validation answers of the task and its diagnostics; how many inputs were cut."""
        if isinstance(made, Student):
            made.model.to(self.job.accelerator.device).eval()
        outcome, truncated = "", {}
        for data in [self.job.data, *self.job.diagnostics]:
            name = data.task.name
            said = reading_for(self.job.recipe, data.task).answer(data.validation, made)
            truncated[name] = said.truncated
            answers = said.answers
            if said.choice_R is not None:
                answers = self._agreement(fit, made, said.answers, said.choice_R)
            write_predictions(self.job.folder.predictions(fit.name, name), answers)
            if data is self.job.data:
                outcome = f"score {task_score(name, said.answers):.1f}"
        self.job.progress.end(outcome)
        return truncated

    def _agreement(self, fit: Fit, made: Reader, answers: list[Answer], choice_R: Tensor) -> list[Answer]:
        """Plain text: count the tokens on which a model's first choice is its teacher's, where both read the same."""
        from safetensors.torch import load_file, save_file

        path = self.job.folder.choices(fit_name("teacher", fit.task, self.job.recipe.seeds[0], fit.member))
        rows = torch.tensor([int(answer.logits[1]) for answer in answers])
        if fit.role == "teacher":
            with whole(path) as aside:
                save_file({"choice": choice_R, "rows": rows}, aside)
        stored = load_file(path)
        tokens = made.tokens if isinstance(made, Student) else None
        chosen_R = choice_R if tokens is None else torch.tensor(tokens)[choice_R]
        known = fit.role == "teacher" or tokens is not None or self.job.reads_like_teacher(made)
        if not known or not torch.equal(rows, stored["rows"]):
            return answers
        agreed = torch.split(chosen_R == stored["choice"], rows.tolist())
        return [
            replace(answer, logits=(*answer.logits, float(each.sum())))
            for answer, each in zip(answers, agreed, strict=True)
        ]

    def _validation_figures(self, student: Student) -> dict[str, float]:
        answers = self.job.reading.answer(self.job.data.validation, student).answers
        return {f"validation/{name}": value for name, value in self.job.task.score(answers).items()}

    # What is kept, and what is not done again.

    def _is_done(self, fit: Fit, *, keep_model: bool) -> bool:
        path = self.job.folder.fit(fit.name)
        if not path.is_file():
            return False
        if self.job.folder.read_fit(fit.name).get("key") != fit.key:
            raise MismatchError(
                f"{path}: was made with other settings, data or versions; use another --out or remove the folder"
            )
        answered = all(
            self.job.folder.predictions(fit.name, d.task.name).is_file()
            for d in [self.job.data, *self.job.diagnostics]
        )
        answered &= not self._keeps_choices(fit) or self.job.folder.choices(fit.name).is_file()
        return answered and (not keep_model or is_model(self._folder_of(fit)))

    def _shared_entry(self, fit: Fit) -> CacheEntry | None:
        """Where runs share this fit: teachers and baselines only, a student is what a run is for."""
        if self.job.recipe.cache is None or fit.role == "student":
            return None
        return CacheEntry(Path(self.job.recipe.cache) / f"{fit.role}-{fit.task}-{fit.key[:16]}")

    def _files_of(self, fit: Fit, *, keep_model: bool) -> dict[str, Path]:
        """A finished fit's files in this run, by their names in the cache; the record comes last."""
        names = [data.task.name for data in [self.job.data, *self.job.diagnostics]]
        return {
            **{f"{name}.jsonl": self.job.folder.predictions(fit.name, name) for name in names},
            **({"choices": self.job.folder.choices(fit.name)} if self._keeps_choices(fit) else {}),
            **({"model": self._folder_of(fit)} if keep_model else {}),
            RECORD: self.job.folder.fit(fit.name),
        }

    def _keeps_choices(self, fit: Fit) -> bool:
        return fit.role == "teacher" and self.job.task is PLAIN_TEXT

    def _folder_of(self, fit: Fit) -> Path:
        return self.job.folder.model(fit.role, fit.task, fit.member)

    def _store_model(self, fit: Fit, made: Reader, *, keep_model: bool) -> dict[str, int]:
        """Keep the model where that is wanted; its size either way."""
        if isinstance(made, EnsembleTeacher):
            return added(
                [size(made.member(i).model, self.job.files(i).location) for i in range(len(self.job.parts))]
            ).as_dict()
        if isinstance(made, Teacher):
            return size(made.model, self.job.source(self.job.parts[fit.member or 0]).location).as_dict()
        # A student of another seed, or the baseline, is the first seed's student in every dimension.
        folder = self._folder_of(fit) if keep_model else self.job.folder.model("student", fit.task)
        if keep_model:
            remove(folder)
            try:
                made.save(folder)
            except BaseException:
                remove(folder)
                raise
        return size(made.model, folder).as_dict()
