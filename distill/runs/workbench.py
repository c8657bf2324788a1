"""Training and keeping the models of one run: what is finished is never done again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.alignment import AlignedExample, Coverage, TokenReader
from distill.cache import (
    CachedEnsemble,
    CachedTeacher,
    CacheSpec,
    CacheSummary,
    EachAlone,
    header_of,
    write_cache,
)
from distill.engine import Engine, predict
from distill.engine.batches import Plan, total_steps
from distill.engine.comparison import Aligned, Comparison, CrossAttention, Reduced
from distill.engine.reading import Reader, reading_for
from distill.errors import MismatchError, ModelError
from distill.evaluation import added, size, task_score
from distill.losses import Ensemble, Labels, Total
from distill.models import (
    Activity,
    Batch,
    DataSet,
    EnsembleInTurn,
    EnsembleTeacher,
    MaskedTokens,
    ModelSource,
    RememberedTeacher,
    Student,
    Teacher,
    choose_layers,
    find_model,
    layer_importance,
    measure_activity,
    needed_tokens,
    parameter_budget,
    refit_before_dropped,
)
from distill.models.adapter import adapter_config
from distill.models.loading import load_model, load_tokenizer, whole_config
from distill.models.source import is_model
from distill.models.teacher import weights_precision
from distill.models.width import check_width
from distill.recipe import (
    FromTeacher,
    MemberRecipe,
    NewTokenizer,
    Recipe,
    StudentRecipe,
    StudentVocabulary,
    TrainRecipe,
)
from distill.recipe.budget import fitted
from distill.recipe.predictions import SPARSE_COUNTS
from distill.run_folder import Role, RunFolder, fit_name, read_json, write_json
from distill.runs.cache import RECORD, CacheEntry
from distill.runs.corpus import Corpus, name_of
from distill.runs.facts import teacher_files
from distill.runs.metrics_log import MetricsLog
from distill.runs.preflight import look_ahead
from distill.tasks import PLAIN_TEXT, Answer, Task, TaskData, write_predictions

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from distill.progress import Progress


AnyTeacher = RememberedTeacher | Teacher | EnsembleTeacher | EachAlone | CachedTeacher | CachedEnsemble

CALIBRATION_EXAMPLES = 1024  # as many as Minitron takes


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
        self.reading = reading_for(recipe, self.task)
        self._features: dict[str, DataSet] = {}
        self._remembered: RememberedTeacher | None = None
        self._running: Teacher | EnsembleTeacher | None = None
        self._together: tuple[DataSet, DataSet, list[AlignedExample]] | None = None
        self._told_of_alignment = False
        self._shape: FromTeacher | None = None
        self._cached: CachedTeacher | CachedEnsemble | None = None
        self._summaries: dict[str, CacheSummary] = {}
        self._activity: Activity | None = None
        self._importance: dict[str, Tensor] | None = None
        self._refitted: dict[str, Tensor] | None = None
        # Before a teacher is trained for an hour.
        for part in self.parts:
            weights_precision(part.precision, accelerator.device)
        if recipe.student.adapter is not None:
            adapter_config(recipe.student.adapter, self.reading.head)

    def fit_teacher(self) -> None:
        """Fine-tune the teacher, or each of several, or take what the recipe names as fine-tuned; store predictions."""
        for number, part in enumerate(self.parts):
            member = number if self.ensemble else None
            fit = Fit("teacher", self.task.name, self._seed_of(part), self._part_key(part), member)
            if part.train is None:
                self._finish(fit, partial(self._take_teacher, fit, number), keep_model=False)
            else:
                self._finish(fit, partial(self._train_teacher, fit, part), keep_model=True)
        if self.ensemble:
            fit = Fit("teacher", self.task.name, self.recipe.seeds[0], self._teacher_key)
            self._finish(fit, partial(self._take_ensemble, fit), keep_model=False)

    def _train_teacher(self, fit: Fit, part: MemberRecipe) -> tuple[Student, dict[str, Any]]:
        train = self._train(part.train)
        assert train is not None  # noqa: S101 - who calls knows
        return self._train_model(fit, self._new_teacher_model(part), Total(terms=(Labels(),)), train, None)

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
        self, fit: Fit, make: Callable[[], tuple[Reader, dict[str, Any]]], *, keep_model: bool
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
        teacher: Callable[[Student], AnyTeacher] | None,
    ) -> tuple[Student, dict[str, Any]]:
        first = fit.role == "student" and fit.seed == self.recipe.seeds[0]
        if first:
            self._say_size(student)
        log = MetricsLog(self.folder.metrics, fit.name)
        engine = self._engine(fit, student, loss, train, teacher, log)
        resumed = engine.resume()
        if self.accelerator.is_main_process:
            log.start_at(resumed)
        if first and not resumed and self.recipe.preflight:
            look_ahead(self, engine)
        engine.run()
        student.merge()  # what is scored is what is exported
        # The accelerator holds on to every model and optimizer it prepared: let this fit's go.
        self.accelerator.free_memory()
        return student, {
            "steps": engine.step_number,
            "tokens": engine.tokens,
            "provenance": student.start,
        }

    def _engine(
        self,
        fit: Fit,
        student: Student,
        loss: Total,
        train: TrainRecipe,
        teacher: Callable[[Student], Callable[[Batch], Any]] | None,
        log: MetricsLog | None,
    ) -> Engine:
        aligns = self.recipe.alignment is not None and fit.role != "teacher"
        return Engine(
            student,
            loss,
            self._aligned(student)[0] if aligns else self._training_for(student),
            train,
            teacher=teacher(student) if teacher else None,
            comparison=self._comparison(student, loss) if teacher and self.recipe.alignment else None,
            seed=fit.seed,
            checkpoints=self.folder.checkpoints(fit.name),
            owner=f"{fit.name}@{fit.key}",
            evaluate=lambda: self._validation_figures(student),
            log=log if self.accelerator.is_main_process else None,
            progress=self.progress,
            accelerator=self.accelerator,
        )

    def _say_size(self, student: Student) -> None:
        """The student's parameters, before anything is trained."""
        budget = parameter_budget(student.model)
        teacher = read_json(self.folder.fit(fit_name("teacher", self.task.name, self.recipe.seeds[0])))
        ratio = budget.total / teacher["parameters"]
        self.progress.say(f"student-{self.task.name}: {budget.as_text()}, {ratio:.2f} of the teacher's")

    def _answer(self, fit: Fit, made: Reader) -> dict[str, int]:
        """Predict and store the validation answers of the task and its diagnostics; how many inputs were cut."""
        if isinstance(made, Student):
            made.model.to(self.accelerator.device).eval()
        outcome, truncated = "", {}
        for data in [self.data, *self.diagnostics]:
            name = data.task.name
            said = reading_for(self.recipe, data.task).answer(data.validation, made)
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

    def _agreement(self, fit: Fit, made: Reader, answers: list[Answer], choice_R: Tensor) -> list[Answer]:
        """Plain text: count the tokens on which a model's first choice is its teacher's, where both read the same."""
        from safetensors.torch import load_file, save_file

        path = self.folder.choices(fit_name("teacher", fit.task, self.recipe.seeds[0], fit.member))
        rows = torch.tensor([int(answer.logits[1]) for answer in answers])
        if fit.role == "teacher":
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"choice": choice_R, "rows": rows}, path)
        stored = load_file(path)
        tokens = made.tokens if isinstance(made, Student) else None
        chosen_R = choice_R if tokens is None else torch.tensor(tokens)[choice_R]
        known = fit.role == "teacher" or tokens is not None or self._reads_like_teacher(made)
        if not known or not torch.equal(rows, stored["rows"]):
            return answers
        agreed = torch.split(chosen_R == stored["choice"], rows.tolist())
        return [
            replace(answer, logits=(*answer.logits, float(each.sum())))
            for answer, each in zip(answers, agreed, strict=True)
        ]

    def _reads_like_teacher(self, made: Reader) -> bool:
        """Whether a model has the teacher's tokens, under the same ids."""
        theirs = load_tokenizer(self._files(0))
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
            raise MismatchError(
                f"{path}: was made with other settings, data or versions; use another --out or remove the folder"
            )
        answered = all(
            self.folder.predictions(fit.name, d.task.name).is_file() for d in [self.data, *self.diagnostics]
        )
        answered &= not self._keeps_choices(fit) or self.folder.choices(fit.name).is_file()
        return answered and (not keep_model or is_model(self._folder_of(fit)))

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
            **({"model": self._folder_of(fit)} if keep_model else {}),
            RECORD: self.folder.fit(fit.name),
        }

    def _keeps_choices(self, fit: Fit) -> bool:
        return fit.role == "teacher" and self.task is PLAIN_TEXT

    def _folder_of(self, fit: Fit) -> Path:
        return self.folder.model(fit.role, fit.task, fit.member)

    def _store_model(self, fit: Fit, made: Reader, *, keep_model: bool) -> dict[str, int]:
        """Keep the model where that is wanted; its size either way."""
        if isinstance(made, EnsembleTeacher):
            return added(
                [size(made.member(i).model, self._files(i).location) for i in range(len(self.parts))]
            ).as_dict()
        if isinstance(made, Teacher):
            return size(made.model, self._source(self.parts[fit.member or 0]).location).as_dict()
        # A student of another seed, or the baseline, is the first seed's student in every dimension.
        folder = self._folder_of(fit) if keep_model else self.folder.model("student", fit.task)
        if keep_model:
            shutil.rmtree(folder, ignore_errors=True)
            made.save(folder)
        return size(made.model, folder).as_dict()

    # Models.

    @property
    def parts(self) -> tuple[MemberRecipe, ...]:
        """The teachers."""
        return self.recipe.teacher.parts

    @property
    def ensemble(self) -> bool:
        """Whether there are several teachers."""
        return len(self.parts) > 1

    def _seed_of(self, part: MemberRecipe) -> int:
        return self.recipe.seeds[0] if part.seed is None else part.seed

    def _source(self, part: MemberRecipe) -> ModelSource:
        """The files of a teacher as the recipe names it."""
        return find_model(part.for_task(self.task.name), part.revision)  # type: ignore[arg-type]

    def _files(self, number: int) -> ModelSource:
        """The files of a teacher that knows the task."""
        return teacher_files(self.recipe, self.folder, self.task.name, number)  # type: ignore[arg-type]

    def _take_teacher(self, fit: Fit, number: int) -> tuple[Teacher, dict[str, Any]]:
        self.progress.begin(fit.name, 1)
        provenance = {"model": self.parts[number].for_task(self.task.name)}  # type: ignore[arg-type]
        return self._load_member(number), {"steps": 0, "tokens": 0, "provenance": provenance}

    def _take_ensemble(self, fit: Fit) -> tuple[EnsembleTeacher, dict[str, Any]]:
        self.progress.begin(fit.name, 1)
        provenance = {"members": [part.name for part in self.parts]}
        if self.recipe.teacher.cache is None:
            made = self._load_ensemble()
        else:
            load = [partial(self._load_member, number) for number in range(len(self.parts))]
            made = EnsembleInTurn(load, self._mean)
        return made, {"steps": 0, "tokens": 0, "provenance": provenance}

    def _load_teacher(self) -> Teacher | EnsembleTeacher:
        return self._load_ensemble() if self.ensemble else self._load_member(0)

    def _load_ensemble(self) -> EnsembleTeacher:
        return EnsembleTeacher([self._load_member(number) for number in range(len(self.parts))], self._mean)

    @property
    def _mean(self) -> Ensemble:
        """How several teachers become one, at the temperature of the terms that will read it."""
        temperatures = {getattr(term, "temperature", 1.0) for term in self.recipe.loss if term.needs_teacher}
        wanted = self.recipe.teacher
        return Ensemble(of=wanted.mean, weights=wanted.weights, temperature=next(iter(temperatures), 1.0))

    def _load_member(self, number: int) -> Teacher:
        files = self._files(number)
        return Teacher.load(
            files.name,
            kind=self.reading.head,
            labels=self.task.labels,
            revision=files.revision,
            precision=self.parts[number].precision,
            device=self.accelerator.device,
        )

    def _new_teacher_model(self, part: MemberRecipe) -> Student:
        head, labels, seed = self.reading.head, self.task.labels, self._seed_of(part)
        if part.config is None:
            return Student.load(self._source(part), kind=head, labels=labels, seed=seed)
        tokenizer = self._tokenizer(part.tokenizer)
        return Student.from_config(part.config, tokenizer, kind=head, labels=labels, seed=seed)

    def _tokenizer(self, wanted: str | NewTokenizer | None) -> PreTrainedTokenizerBase:
        """The one a model from scratch reads: named, made here, or the (first) teacher's."""
        if isinstance(wanted, str):
            return load_tokenizer(find_model(wanted))
        if wanted is None:
            return load_tokenizer(self._files(0))
        if self.recipe.architecture != "decoder":
            raise ModelError(
                "tokenizer: a new one is for decoders, which need no special tokens; name a tokenizer"
            )
        return self.corpus.new_tokenizer(wanted.train)

    def _new_student(self, seed: int) -> Student:
        student, adapter = self._new_whole_student(seed), self.recipe.student.adapter
        return (
            student if adapter is None else student.with_adapter(adapter, kind=self.reading.head, seed=seed)
        )

    def _new_whole_student(self, seed: int) -> Student:
        wanted, kind, labels = self.recipe.student, self.reading.head, self.task.labels
        if wanted.from_teacher is not None:
            tuned = wanted.from_teacher.weights == "fine_tuned"
            source = self._files(0) if tuned else self._source(self.parts[0])
            vocabulary = self._vocabulary_of(load_tokenizer(source), wanted.from_teacher.vocabulary)
            cut = self._shape_of(source, wanted.from_teacher, vocabulary)
            return Student.from_teacher(
                source,
                layers=cut.layers,
                decoder_layers=cut.decoder_layers,
                importance=self._importance_of(source, cut),
                refitted=self._refitted_of(source, cut),
                hidden=cut.hidden,
                heads=cut.heads,
                intermediate=cut.intermediate,
                activity=self._activity_of(source, cut) if cut.is_narrower else None,
                kind=kind,
                labels=labels,
                seed=seed,
                **vocabulary,
            )
        if wanted.model is not None:
            return Student.load(
                find_model(wanted.model, wanted.revision), kind=kind, labels=labels, seed=seed
            )
        if wanted.config is None:
            raise ModelError("student: give from_teacher, model or config")
        return Student.from_config(
            wanted.config, self._tokenizer(wanted.tokenizer), kind=kind, labels=labels, seed=seed
        )

    def _shape_of(
        self, source: ModelSource, wanted: FromTeacher, vocabulary: Mapping[str, Any]
    ) -> FromTeacher:
        """The recipe's student with the shape that its `target_parameters` leads to, said once."""
        if wanted.target is None:
            return wanted
        if self._shape is None:
            config = whole_config(source)
            if "tokenizer" in vocabulary:
                config["vocab_size"] = len(vocabulary["tokenizer"])
            elif vocabulary:
                kept = needed_tokens(
                    load_tokenizer(source), vocabulary["used_tokens"], vocabulary["at_least"]
                )
                config["vocab_size"] = len(kept)
            try:
                self._shape = fitted(config, wanted)
            except ValueError as error:
                raise ModelError(f"student.from_teacher.{error}") from None
            self.progress.say(f"student-{self.task.name}: {self._shape.shape_as_text()}")
        return self._shape

    def _activity_of(self, source: ModelSource, cut: FromTeacher) -> Activity | None:
        """What the channels, heads and neurons of the teacher's files do on training examples, measured once."""
        if cut.keep == "first":
            return None
        if self._activity is None:
            model = self._model_to_measure(source)
            check_width(model, cut.hidden, cut.intermediate, cut.heads)  # before the work, not after it
            self._activity = measure_activity(model, self._calibration(model, source))
        return self._activity

    def _importance_of(self, source: ModelSource, cut: FromTeacher) -> dict[str, Tensor] | None:
        """How much the layers of the teacher's files matter on training examples, measured once."""
        if cut.choose == "even":
            return None
        if self._importance is None:
            model = self._model_to_measure(source)
            choose_layers(model, cut.layers, cut.decoder_layers)  # before the work, not after it
            self._importance = layer_importance(model, self._calibration(model, source), cut.choose)
        return self._importance

    def _refitted_of(self, source: ModelSource, cut: FromTeacher) -> dict[str, Tensor] | None:
        """What stands in for dropped layers of the teacher's files, fitted once."""
        if cut.dropped == "left_out":
            return None
        if self._refitted is None:
            model = self._model_to_measure(source)
            kept = choose_layers(model, cut.layers, cut.decoder_layers, self._importance_of(source, cut))
            self._refitted = refit_before_dropped(model, kept, list(self._calibration(model, source)))
        return self._refitted

    def _model_to_measure(self, source: ModelSource) -> PreTrainedModel:
        model = load_model(source, kind=self.reading.head, labels=self.task.labels, seed=0)
        model.to(self.accelerator.device)
        return model

    def _calibration(self, model: PreTrainedModel, source: ModelSource) -> Iterator[Batch]:
        """Up to 1,024 training examples, spread over all of them, the short ones first."""
        features = self._training_for(Student(model, load_tokenizer(source)))
        step = -(-len(features) // CALIBRATION_EXAMPLES)
        chosen = sorted(range(0, len(features), step), key=lambda index: features.lengths[index])
        size = self.recipe.train.per_device_eval_batch_size
        return (features.batch(chosen[start : start + size]) for start in range(0, len(chosen), size))

    def _vocabulary_of(
        self, theirs: PreTrainedTokenizerBase, wanted: str | StudentVocabulary
    ) -> dict[str, Any]:
        """Which tokens a part of the teacher reads, as `Student.from_teacher` takes it."""
        if isinstance(wanted, StudentVocabulary) and wanted.train is not None:
            return {"tokenizer": self.corpus.tokenizer(theirs, wanted.train)}
        if wanted == "teacher":
            return {}
        least = wanted.at_least if isinstance(wanted, StudentVocabulary) else None
        return {"used_tokens": self.corpus.tokens(theirs), "at_least": least or 0}

    def _reads_corpus(self, start: MemberRecipe | StudentRecipe) -> bool:
        """Whether the training texts of all tasks decide a model's tokens."""
        cut = start.from_teacher if isinstance(start, StudentRecipe) else None
        return isinstance(start.tokenizer, NewTokenizer) or (cut is not None and cut.vocabulary != "teacher")

    def _teacher_for(self, loss: Total) -> Callable[[Student], AnyTeacher]:
        if self.recipe.teacher.cache is not None:
            return self._cached_teacher
        if self.recipe.teacher.alone:
            return lambda student: EachAlone(self._running_teacher(student))
        runs = self.reading.speaks or loss.reads_activations
        return self._running_teacher if runs else self._remembering_teacher

    def _running_teacher(self, student: Student) -> Teacher | EnsembleTeacher:
        """The teacher itself, for losses that compare it with the student token by token.

        Raises:
            ModelError: the two do not read the same tokens.
        """
        if self._running is None:
            self._running = self._load_teacher()
        if self.recipe.alignment is not None:
            return self._running
        tokens = self._own_tokens(self._running, student)
        return self._running if tokens is None else self._running.reading(tokens)

    def _own_tokens(self, teacher: Teacher | EnsembleTeacher, student: Student) -> tuple[int, ...] | None:
        """A teacher's token for each of the student's, where the student has only some of them; None if it has all.

        Raises:
            ModelError: the student's tokens are others.
        """
        theirs, ours = teacher.tokenizer.get_vocab(), student.tokenizer.get_vocab()
        if theirs == ours:
            return None
        # The training examples hold kept tokens only, so that both tokenizers cut them into the same pieces.
        if student.tokens and all(theirs.get(name) == student.tokens[token] for name, token in ours.items()):
            return student.tokens
        advice = "say how to align them (alignment: {kind: match}), or " if self.reading.speaks else ""
        raise ModelError(
            "loss: a term compares student and teacher token by token, but they have different tokenizers; "
            f"{advice}give the student the teacher's"
        )

    def write_caches(self) -> dict[str, CacheSummary]:
        """What the teachers say of the training examples, on disk: of each teacher by its fit's name."""
        self._cached_teacher(self._new_student(self.recipe.seeds[0]))
        return self._summaries

    def _cached_teacher(self, student: Student) -> CachedTeacher | CachedEnsemble:
        """The teachers' predictions, written where they are not on disk yet, read by all seeds.

        Raises:
            ModelError: teachers and student do not read the same tokens.
            CheckpointError: a cache is damaged, of another teacher, or cannot be written.
        """
        if self._cached is None:
            # One teacher after the other: no two of them are in memory together.
            members = [self._cached_member(number, student) for number in range(len(self.parts))]
            self._cached = CachedEnsemble(members, self._mean) if self.ensemble else members[0]
        return self._cached

    def _cached_member(self, number: int, student: Student) -> CachedTeacher:
        teacher, part = self._load_member(number), self.parts[number]
        tokens = self._own_tokens(teacher, student)
        name = fit_name("teacher", self.task.name, 0, number if self.ensemble else None)
        folder = self.folder.path / "teacher-cache" / name
        if self.recipe.cache is not None:
            facts = json.dumps([self._part_key(part), asdict(self._cache_spec), tokens])
            content = hashlib.sha256(facts.encode()).hexdigest()
            folder = Path(self.recipe.cache) / f"predictions-{name}-{content[:16]}"
        header = header_of(
            teacher.model,
            teacher.tokenizer,
            labels=self.task.labels,
            max_length=self.recipe.data.max_length,
            template=f"{type(self.reading).__name__}{' in a chat' if self.recipe.data.chat else ''}",
            token_map=tokens,
        )
        if self.accelerator.is_main_process:
            self._summaries[name] = write_cache(
                folder,
                header,
                self._training_for(student),
                teacher if tokens is None else teacher.reading(tokens),
                self._cache_spec,
                epochs=self._drawn_epochs(student),
                device=self.accelerator.device,
                progress=self.progress,
            )
        self.accelerator.wait_for_everyone()
        return CachedTeacher.open(folder, header)

    @property
    def _cache_spec(self) -> CacheSpec:
        """What the recipe keeps, at the temperature and in the number that the loss's terms want."""
        wanted = self.recipe.teacher.cache
        assert wanted is not None  # noqa: S101 - who calls knows
        if wanted.keep == "full":
            return CacheSpec()
        term = next(term for term in self.recipe.loss if term.needs_teacher)
        return CacheSpec(
            wanted.keep,
            getattr(term, SPARSE_COUNTS[wanted.keep]),
            getattr(term, "temperature", 1.0),
            wanted.dtype,
            wanted.seed,
        )

    def _drawn_epochs(self, student: Student) -> int:
        """How many different sets of examples the training sees: one, unless tokens are hidden anew in each epoch."""
        features, train = self._training_for(student), self._train_of("student")
        if not isinstance(features, MaskedTokens):
            return 1
        devices = self.accelerator.num_processes
        plan = Plan(
            micro_batch=train.per_device_train_batch_size,
            accumulation=train.gradient_accumulation_steps,
            devices=devices,
        )
        return -(-total_steps(train, len(features), devices) // plan.steps_per_epoch(len(features)))

    def _remembering_teacher(self, student: Student) -> RememberedTeacher:
        """The teacher's logits on the training examples, computed once for all seeds."""
        if self._remembered is None:
            # One teacher after the other: no two of them are in memory together.
            logits = [self._read_by(number) for number in range(len(self.parts))]
            logits_NC = self._mean(logits) if self.ensemble else logits[0]
            self._remembered = RememberedTeacher(logits_NC.to(self.accelerator.device))
        return self._remembered

    def _read_by(self, number: int) -> Tensor:
        """What one teacher says of the training examples."""
        teacher = self._load_member(number)
        features = self._training_for(teacher)
        member = number if self.ensemble else None
        self.progress.begin(f"{fit_name('teacher', self.task.name, 0, member)} reads", len(features))
        logits_NC = predict(
            teacher,
            features,
            batch_size=self.recipe.train.per_device_eval_batch_size,
            device=self.accelerator.device,
            progress=self.progress,
        )
        self.progress.end(f"{len(features)} training examples")
        return logits_NC

    # Data.

    def _training_for(self, reader: Student | Teacher) -> DataSet:
        """The training examples in a model's tokens."""
        key = name_of(reader.tokenizer)
        if key not in self._features:
            self._features[key] = self.reading.examples(self.training, reader, seed=self.recipe.data.seed)
        return self._features[key]

    def _aligned(self, student: Student) -> tuple[DataSet, DataSet, list[AlignedExample]]:
        """The training examples in the student's and the teacher's tokens, made once. The baseline reads them too."""
        if self._together is None:
            if self._running is None:
                self._running = self._load_teacher()
            self._together = self.reading.together(
                self.training, student, self._running, seed=self.recipe.data.seed
            )
        return self._together

    def _comparison(self, student: Student, loss: Total) -> Comparison:
        """How student and teacher are compared although their tokens differ; said once."""
        wanted = self.recipe.alignment
        assert wanted is not None  # noqa: S101 - who calls knows
        own, theirs, examples = self._aligned(student)
        assert self._running is not None  # noqa: S101 - aligned with it
        readers = TokenReader(student.tokenizer), TokenReader(self._running.tokenizer)
        made: Comparison
        if wanted.kind == "cross_attention":
            made = CrossAttention(own, theirs, readers=readers)
        elif wanted.kind == "reduce":
            made = Reduced(own, theirs, tokenizer=student.tokenizer, readers=readers, wanted=wanted)
        else:
            temperature = next(
                (getattr(term, "temperature", 1.0) for term in loss if term.needs_teacher), 1.0
            )
            made = Aligned(
                own,
                theirs,
                examples,
                shift=1 if self.reading.head == "causal_lm" else 0,
                readers=readers,
                wanted=wanted,
                temperature=temperature,
            )
        if not self._told_of_alignment:
            self._told_of_alignment = True
            found = sum((example.coverage for example in examples), Coverage())
            tokens = found.student_tokens + found.student_left
            self.progress.say(
                f"student-{self.task.name}: {found.student_tokens / max(tokens, 1):.1%} of its tokens stand in "
                f"{found.groups:,} groups that both models read, {found.single / max(found.groups, 1):.1%} of them of "
                f"one token on each side; {made.vocabulary.describe()}"
            )
        return made

    # Keys.

    @cached_property
    def _teacher_key(self) -> str:
        if not self.ensemble:
            return self._part_key(self.parts[0])
        wanted = self.recipe.teacher
        how = (
            [self._part_key(part) for part in self.parts],
            wanted.mean,
            wanted.weights,
            self._mean.temperature,
        )
        return self._key("teacher", self.recipe.seeds[0], how, None)

    def _part_key(self, part: MemberRecipe) -> str:
        train = self._train(part.train)
        how = asdict(train) if train else "fine-tuned"
        return self._key("teacher", self._seed_of(part), how, None, part)

    def _origin(self, part: MemberRecipe) -> Any:
        """What tells the weights that a teacher starts from: the digest of its files, or its config."""
        if part.config is None:
            return self._source(part).digest
        named = isinstance(part.tokenizer, str)
        return dict(part.config), find_model(part.tokenizer).digest if named else part.tokenizer  # type: ignore[arg-type]

    def _train_of(self, role: Role) -> TrainRecipe:
        train = self.recipe.train.for_task(self.task.name)  # type: ignore[arg-type]
        return train if role == "student" else replace(train, on_policy=None)

    def _train(self, train: TrainRecipe | None) -> TrainRecipe | None:
        return None if train is None else train.for_task(self.task.name)  # type: ignore[arg-type]

    def _key(
        self, role: Role, seed: int, how: Any, teacher_key: str | None, part: MemberRecipe | None = None
    ) -> str:
        """Digest of everything that decides a fit's weights and answers."""
        wanted = self.recipe.student
        start: Any = None if role == "teacher" else asdict(wanted)
        if role != "teacher" and wanted.model is not None:
            start = find_model(wanted.model, wanted.revision).digest, start
        asked = self.parts if part is None else (part,)
        # A student may take its tokens from the teacher's.
        started: tuple[MemberRecipe | StudentRecipe, ...] = (
            asked if role == "teacher" else (*self.parts, wanted)
        )
        aligned: Any = None
        if self.recipe.alignment is not None and role == "student":
            aligned = asdict(self.recipe.alignment)
        elif self.recipe.alignment is not None and role == "baseline":
            # What is hidden from an encoder is then what both models read as a whole; a decoder reads as ever.
            aligned = self.recipe.architecture == "encoder"
        # A teacher that is trained here is trained in float32, whatever it teaches in.
        teaches = role != "baseline" and (part is None or part.train is None)
        facts = {
            "role": role,
            "seed": seed,
            "how": how,
            "train": None if role == "teacher" else asdict(self._train_of(role)),
            "teacher": teacher_key,
            "teacher_model": self._origin(part or self.parts[0]),
            "student": start,
            "precision": [each.precision for each in asked] if teaches else None,
            "corpus": self.corpus.digests if any(self._reads_corpus(start) for start in started) else None,
            "data": self.data.sha256,
            "diagnostics": [data.sha256 for data in self.diagnostics],
            "architecture": self.recipe.architecture,
            "alignment": aligned,
            "max_length": self.recipe.data.max_length,
            "chat": self.recipe.data.chat,
            "negatives": self.recipe.data.negatives,
            "data_seed": self.recipe.data.seed,
            "devices": self.accelerator.num_processes,
            "versions": {
                name: importlib.metadata.version(name)
                for name in (
                    "distill",
                    "torch",
                    "transformers",
                    *(("peft",) if start and wanted.adapter else ()),
                )
            },
        }
        teacher = self.recipe.teacher
        if role == "student" and (teacher.cache or teacher.alone):
            facts["asked"] = teacher.alone, teacher.cache and asdict(teacher.cache)
        if (
            wanted.from_teacher is not None
            and wanted.from_teacher.weights == "fine_tuned"
            and role == "baseline"
        ):
            facts["teacher"] = self._teacher_key
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
