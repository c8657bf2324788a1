"""Training and keeping the models of one run: what is finished is never done again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.engine import Engine, predict
from distill.engine.reading import Reading, reading_of
from distill.errors import CheckpointError, ModelError
from distill.evaluation import size, task_score
from distill.losses import Labels, Total
from distill.models import (
    Activity,
    DataSet,
    ModelSource,
    RememberedTeacher,
    Student,
    Teacher,
    find_model,
    measure_activity,
    parameter_budget,
)
from distill.models.loading import load_model, load_tokenizer
from distill.models.width import check_width
from distill.recipe import Recipe, TrainRecipe
from distill.run_folder import Role, RunFolder, fit_name, read_json, write_json
from distill.runs.cache import RECORD, CacheEntry
from distill.runs.corpus import Corpus, name_of
from distill.runs.metrics_log import MetricsLog
from distill.tasks import Answer, Task, TaskData, write_predictions

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from distill.progress import Progress


CALIBRATION_EXAMPLES = 1024  # as many as Minitron takes


@dataclass(frozen=True)
class Fit:
    """One model on one task, and the digest of everything that decides its weights."""

    role: Role
    task: str
    seed: int
    key: str

    @property
    def name(self) -> str:
        """The fit's name in the run folder."""
        return fit_name(self.role, self.task, self.seed)


class Workbench:
    """Fits the models of one task: the teacher, then a student and a baseline for each seed.

    Args:
        recipe: what to do.
        folder: where finished fits, predictions and models are kept.
        data: the task's examples.
        diagnostics: evaluation-only data answered by the same model (AX-b and AX-g by the RTE model).
        corpus: the training examples of all tasks of the run.
        accelerator: devices and processes.
        progress: told what is going on.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        data: TaskData,
        diagnostics: list[TaskData],
        corpus: Corpus,
        accelerator: Accelerator,
        progress: Progress,
    ):
        self.recipe = recipe
        self.folder = folder
        self.data = data
        self.diagnostics = diagnostics
        self.corpus = corpus
        self.accelerator = accelerator
        self.progress = progress
        self.task: Task = data.task
        self.training = self.task.training_examples(
            data.train, negatives=recipe.data.negatives, seed=recipe.data.seed
        )
        self.reading = self._reading_of(self.task)
        self._features: dict[str, DataSet] = {}
        self._remembered: RememberedTeacher | None = None
        self._running: Teacher | None = None
        self._activity: Activity | None = None

    def fit_teacher(self) -> Fit:
        """Fine-tune the teacher, or take the fine-tuned one the recipe names, and store its predictions."""
        train = self._train(self.recipe.teacher.train)
        fit = Fit("teacher", self.task.name, self.recipe.seeds[0], self._teacher_key)
        if train is None:
            return self._finish(fit, lambda: self._take_teacher(fit), keep_model=False)
        return self._finish(
            fit,
            lambda: self._train_model(fit, self._new_teacher_model(), Total(terms=(Labels(),)), train, None),
            keep_model=True,
        )

    def fit_student(self, seed: int) -> Fit:
        """Train the student with the recipe's loss."""
        loss = Total(terms=self.recipe.loss)
        key = self._key("student", seed, [asdict(term) for term in loss.terms], self._teacher_key)
        fit = Fit("student", self.task.name, seed, key)
        return self._finish(
            fit,
            lambda: self._train_model(
                fit,
                self._new_student(seed),
                loss,
                self._train_of("student"),
                self._teacher_for(loss) if loss.needs_teacher else None,
            ),
            keep_model=seed == self.recipe.seeds[0],
        )

    def fit_baseline(self, seed: int) -> Fit:
        """Train the same student on the labels alone: same initial weights, order, steps and schedule.

        Never on its own texts, which have no labels: its steps are all on the data.
        """
        loss = Total(terms=(Labels(),))
        fit = Fit("baseline", self.task.name, seed, self._key("baseline", seed, "labels", None))
        return self._finish(
            fit,
            lambda: self._train_model(fit, self._new_student(seed), loss, self._train_of("baseline"), None),
            keep_model=False,
        )

    # One fit, from its key to its stored predictions.

    def _finish(
        self, fit: Fit, make: Callable[[], tuple[Student | Teacher, dict[str, Any]]], *, keep_model: bool
    ) -> Fit:
        if self._is_done(fit, keep_model=keep_model):
            self.progress.say(f"{fit.name}: already done")
            return fit
        shared = self._shared_entry(fit)
        if shared and self.accelerator.is_main_process:
            shared.take(fit.key, self._files_of(fit, keep_model=keep_model))
        self.accelerator.wait_for_everyone()
        if self._is_done(fit, keep_model=keep_model):
            self.progress.say(f"{fit.name}: taken from the cache")
            return fit
        started = time.monotonic()
        made, record = make()
        truncated = self._answer(fit, made)
        if self.accelerator.is_main_process:
            record |= self._store_model(fit, made, keep_model=keep_model)
            record |= {
                "key": fit.key,
                "role": fit.role,
                "task": fit.task,
                "seed": fit.seed,
                "train_examples": len(self.training),
                "truncated": truncated,
                "seconds": round(time.monotonic() - started, 1),
            }
            write_json(self.folder.fit(fit.name), record)
            if shared:
                shared.put(self._files_of(fit, keep_model=keep_model))
            shutil.rmtree(self.folder.checkpoints(fit.name), ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return fit

    def _train_model(
        self,
        fit: Fit,
        student: Student,
        loss: Total,
        train: TrainRecipe,
        teacher: Callable[[Student], RememberedTeacher | Teacher] | None,
    ) -> tuple[Student, dict[str, Any]]:
        if fit.role == "student" and fit.seed == self.recipe.seeds[0]:
            self._say_size(student)
        log = MetricsLog(self.folder.metrics, fit.name)
        engine = Engine(
            student,
            loss,
            self._training_for(student),
            train,
            teacher=teacher(student) if teacher else None,
            seed=fit.seed,
            checkpoints=self.folder.checkpoints(fit.name),
            owner=f"{fit.name}@{fit.key}",
            evaluate=lambda: self._validation_figures(student),
            log=log if self.accelerator.is_main_process else None,
            progress=self.progress,
            accelerator=self.accelerator,
        )
        resumed = engine.resume()
        if self.accelerator.is_main_process:
            log.start_at(resumed)
        engine.run()
        # The accelerator holds on to every model and optimizer it prepared: let this fit's go.
        self.accelerator.free_memory()
        return student, {
            "steps": engine.step_number,
            "tokens": engine.tokens,
            "provenance": student.start,
        }

    def _say_size(self, student: Student) -> None:
        """The student's parameters, before anything is trained."""
        budget = parameter_budget(student.model)
        teacher = read_json(self.folder.fit(fit_name("teacher", self.task.name, self.recipe.seeds[0])))
        ratio = budget.total / teacher["parameters"]
        self.progress.say(f"student-{self.task.name}: {budget.as_text()}, {ratio:.2f} of the teacher's")

    def _answer(self, fit: Fit, made: Student | Teacher) -> dict[str, int]:
        """Predict and store the validation answers of the task and its diagnostics; how many inputs were cut."""
        made.model.to(self.accelerator.device).eval()
        outcome, truncated = "", {}
        for data in [self.data, *self.diagnostics]:
            name = data.task.name
            said = self._reading_of(data.task).answer(data.validation, made)
            truncated[name] = said.truncated
            if self.accelerator.is_main_process:
                answers = said.answers
                if said.choice_R is not None:
                    answers = self._agreement(fit, made, said.answers, said.choice_R)
                write_predictions(self.folder.predictions(fit.name, name), answers)
            if data is self.data:
                outcome = f"score {task_score(name, said.answers):.1f}"
        self.progress.end(outcome)
        return truncated

    def _agreement(
        self, fit: Fit, made: Student | Teacher, answers: list[Answer], choice_R: Tensor
    ) -> list[Answer]:
        """Plain text: count the tokens on which a model's first choice is its teacher's, where both read the same."""
        from safetensors.torch import load_file, save_file

        path = self.folder.choices(fit_name("teacher", fit.task, self.recipe.seeds[0]))
        rows = torch.tensor([int(answer.logits[1]) for answer in answers])
        if fit.role == "teacher":
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"choice": choice_R, "rows": rows}, path)
        stored = load_file(path)
        tokens = made.tokens if isinstance(made, Student) else None
        chosen_R = choice_R if tokens is None else torch.tensor(tokens)[choice_R]
        known = tokens is not None or self._reads_like_teacher(made)
        if not known or not torch.equal(rows, stored["rows"]):
            return answers
        agreed = torch.split(chosen_R == stored["choice"], rows.tolist())
        return [
            replace(answer, logits=(*answer.logits, float(each.sum())))
            for answer, each in zip(answers, agreed, strict=True)
        ]

    def _reads_like_teacher(self, made: Student | Teacher) -> bool:
        """Whether a model has the teacher's tokens, under the same ids."""
        theirs = load_tokenizer(self._teacher_source)
        return name_of(theirs) == name_of(made.tokenizer)

    def _validation_figures(self, student: Student) -> dict[str, float]:
        answers = self.reading.answer(self.data.validation, student).answers
        return {f"validation/{name}": value for name, value in self.task.score(answers).items()}

    # What is kept, and what is not done again.

    def _is_done(self, fit: Fit, *, keep_model: bool) -> bool:
        path = self.folder.fit(fit.name)
        if not path.is_file():
            return False
        if read_json(path).get("key") != fit.key:
            raise CheckpointError(
                f"{path}: was made with other settings, data or versions; use another --out or remove the folder"
            )
        answered = all(
            self.folder.predictions(fit.name, d.task.name).is_file() for d in [self.data, *self.diagnostics]
        )
        answered &= not self._keeps_choices(fit) or self.folder.choices(fit.name).is_file()
        return answered and (
            not keep_model or (self.folder.model(fit.role, fit.task) / "config.json").is_file()
        )

    def _shared_entry(self, fit: Fit) -> CacheEntry | None:
        """Where runs share this fit: teachers and baselines only, a student is what a run is for."""
        if self.recipe.cache is None or fit.role == "student":
            return None
        return CacheEntry(Path(self.recipe.cache) / f"{fit.role}-{fit.task}-{fit.key[:16]}")

    def _files_of(self, fit: Fit, *, keep_model: bool) -> dict[str, Path]:
        """A finished fit's files in this run, by their names in the cache; the record comes last."""
        names = [data.task.name for data in [self.data, *self.diagnostics]]
        return {
            **{f"{name}.jsonl": self.folder.predictions(fit.name, name) for name in names},
            **({"choices": self.folder.choices(fit.name)} if self._keeps_choices(fit) else {}),
            **({"model": self.folder.model(fit.role, fit.task)} if keep_model else {}),
            RECORD: self.folder.fit(fit.name),
        }

    def _keeps_choices(self, fit: Fit) -> bool:
        return fit.role == "teacher" and fit.task == "text"

    def _store_model(self, fit: Fit, made: Student | Teacher, *, keep_model: bool) -> dict[str, int]:
        """Keep the model where that is wanted; its size either way."""
        if isinstance(made, Teacher):
            return size(made.model, self._teacher_source.location).as_dict()
        # A student of another seed, or the baseline, is the first seed's student in every dimension.
        folder = self.folder.model(fit.role if keep_model else "student", fit.task)
        if keep_model:
            shutil.rmtree(folder, ignore_errors=True)
            made.save(folder)
        return size(made.model, folder).as_dict()

    # Models.

    @property
    def _teacher_name(self) -> str:
        return self.recipe.teacher.for_task(self.task.name)  # type: ignore[arg-type]

    @cached_property
    def _teacher_source(self) -> ModelSource:
        return find_model(self._teacher_name, self.recipe.teacher.revision)

    def _take_teacher(self, fit: Fit) -> tuple[Teacher, dict[str, Any]]:
        self.progress.begin(fit.name, 1)
        return self._load_teacher(), {"steps": 0, "tokens": 0, "provenance": {"model": self._teacher_name}}

    def _load_teacher(self) -> Teacher:
        fine_tuned_here = self.recipe.teacher.train is not None
        name = str(self.folder.model("teacher", self.task.name)) if fine_tuned_here else self._teacher_name
        revision = None if fine_tuned_here else self.recipe.teacher.revision
        teacher = Teacher.load(name, kind=self.reading.head, labels=self.task.labels, revision=revision)
        teacher.model.to(self.accelerator.device)
        return teacher

    def _new_teacher_model(self) -> Student:
        return Student.load(
            self._teacher_source, kind=self.reading.head, labels=self.task.labels, seed=self.recipe.seeds[0]
        )

    def _new_student(self, seed: int) -> Student:
        wanted, kind, labels = self.recipe.student, self.reading.head, self.task.labels
        if wanted.from_teacher is not None:
            source = self._teacher_source
            if wanted.from_teacher.weights == "fine_tuned" and self.recipe.teacher.train is not None:
                source = find_model(str(self.folder.model("teacher", self.task.name)))
            used = self.corpus.tokens(load_tokenizer(source)) if self._trims_vocabulary else None
            return Student.from_teacher(
                source,
                layers=wanted.from_teacher.layers,
                hidden=wanted.from_teacher.hidden,
                intermediate=wanted.from_teacher.intermediate,
                activity=self._activity_of(source) if wanted.from_teacher.is_narrower else None,
                kind=kind,
                labels=labels,
                seed=seed,
                used_tokens=used,
            )
        if wanted.model is not None:
            return Student.load(
                find_model(wanted.model, wanted.revision), kind=kind, labels=labels, seed=seed
            )
        if wanted.config is None:
            raise ModelError("student: give from_teacher, model or config")
        source = find_model(wanted.tokenizer) if wanted.tokenizer else self._teacher_source
        return Student.from_config(wanted.config, load_tokenizer(source), kind=kind, labels=labels, seed=seed)

    def _activity_of(self, source: ModelSource) -> Activity | None:
        """What the channels, heads and neurons of the teacher's files do on training examples, measured once."""
        wanted = self.recipe.student.from_teacher
        if wanted is None or wanted.keep == "first":
            return None
        if self._activity is None:
            model = load_model(source, kind=self.reading.head, labels=self.task.labels, seed=0)
            check_width(model, wanted.hidden, wanted.intermediate)  # before the work, not after it
            features = self._training_for(Student(model, load_tokenizer(source)))
            step = -(-len(features) // CALIBRATION_EXAMPLES)
            chosen = sorted(range(0, len(features), step), key=lambda index: features.lengths[index])
            size = self.recipe.train.per_device_eval_batch_size
            batches = (features.batch(chosen[start : start + size]) for start in range(0, len(chosen), size))
            self._activity = measure_activity(model.to(self.accelerator.device), batches)
        return self._activity

    @property
    def _trims_vocabulary(self) -> bool:
        wanted = self.recipe.student.from_teacher
        return wanted is not None and wanted.vocabulary == "corpus"

    def _teacher_for(self, loss: Total) -> Callable[[Student], RememberedTeacher | Teacher]:
        speaks = self.reading.head not in ("classification", "multiple_choice")
        return self._running_teacher if loss.reads_activations or speaks else self._remembering_teacher

    def _running_teacher(self, student: Student) -> Teacher:
        """The teacher itself, for losses that compare it with the student token by token.

        Raises:
            ModelError: the two do not read the same tokens.
        """
        if self._running is None:
            self._running = self._load_teacher()
        if name_of(self._running.tokenizer) == name_of(student.tokenizer):
            return self._running
        if student.tokens is not None:
            # The training examples hold kept tokens only, so that both tokenizers cut them into the same pieces.
            theirs, ours = self._running.tokenizer.get_vocab(), student.tokenizer.get_vocab()
            if all(theirs.get(name) == student.tokens[token] for name, token in ours.items()):
                return self._running.reading(student.tokens)
        raise ModelError(
            "loss: a term compares student and teacher token by token, but they have different tokenizers; "
            "give the student the teacher's"
        )

    def _remembering_teacher(self, student: Student) -> RememberedTeacher:
        """The teacher's logits on the training examples, computed once for all seeds."""
        if self._remembered is None:
            teacher = self._load_teacher()
            features = self._training_for(teacher)
            self.progress.begin(f"teacher-{self.task.name} reads", len(features))
            logits_NC = predict(
                teacher,
                features,
                batch_size=self.recipe.train.per_device_eval_batch_size,
                device=self.accelerator.device,
                progress=self.progress,
            )
            self.progress.end(f"{len(features)} training examples")
            self._remembered = RememberedTeacher(logits_NC.to(self.accelerator.device))
        return self._remembered

    # Data.

    def _reading_of(self, task: Task) -> Reading:
        return reading_of(
            self.recipe.architecture,
            task,
            max_length=self.recipe.data.max_length,
            batch_size=self.recipe.train.per_device_eval_batch_size,
        )

    def _training_for(self, reader: Student | Teacher) -> DataSet:
        """The training examples in a model's tokens."""
        key = name_of(reader.tokenizer)
        if key not in self._features:
            self._features[key] = self.reading.examples(self.training, reader, seed=self.recipe.data.seed)
        return self._features[key]

    # Keys.

    @cached_property
    def _teacher_key(self) -> str:
        train = self._train(self.recipe.teacher.train)
        return self._key("teacher", self.recipe.seeds[0], asdict(train) if train else "fine-tuned", None)

    def _train_of(self, role: Role) -> TrainRecipe:
        train = self.recipe.train.for_task(self.task.name)  # type: ignore[arg-type]
        return train if role == "student" else replace(train, on_policy=None)

    def _train(self, train: TrainRecipe | None) -> TrainRecipe | None:
        return None if train is None else train.for_task(self.task.name)  # type: ignore[arg-type]

    def _key(self, role: Role, seed: int, how: Any, teacher_key: str | None) -> str:
        """Digest of everything that decides a fit's weights and answers."""
        wanted = self.recipe.student
        start: Any = None if role == "teacher" else asdict(wanted)
        if role != "teacher" and wanted.model is not None:
            start = find_model(wanted.model, wanted.revision).digest, start
        facts = {
            "role": role,
            "seed": seed,
            "how": how,
            "train": None if role == "teacher" else asdict(self._train_of(role)),
            "teacher": teacher_key,
            "teacher_model": self._teacher_source.digest,
            "student": start,
            "corpus": self.corpus.digests if role != "teacher" and self._trims_vocabulary else None,
            "data": self.data.sha256,
            "diagnostics": [data.sha256 for data in self.diagnostics],
            "architecture": self.recipe.architecture,
            "max_length": self.recipe.data.max_length,
            "negatives": self.recipe.data.negatives,
            "data_seed": self.recipe.data.seed,
            "devices": self.accelerator.num_processes,
            "versions": {
                name: importlib.metadata.version(name) for name in ("distill", "torch", "transformers")
            },
        }
        if (
            wanted.from_teacher is not None
            and wanted.from_teacher.weights == "fine_tuned"
            and role == "baseline"
        ):
            facts["teacher"] = self._teacher_key
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
