"""The students of one task, each as it is before its training: all seeds start from one cut of the teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from distill.errors import ModelError
from distill.models import (
    Activity,
    Batch,
    ModelSource,
    Student,
    choose_layers,
    layer_importance,
    measure_activity,
    needed_tokens,
    refit_before_dropped,
)
from distill.models.loading import load_model, load_tokenizer, whole_config
from distill.models.width import check_width
from distill.recipe import FromTeacher, StudentVocabulary
from distill.recipe.budget import fitted
from distill.runs.job import Job
from distill.runs.teachers import Teachers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CALIBRATION_EXAMPLES = 1024  # as many as Minitron takes


class Students:
    """Makes the student that the recipe wants; what it takes to choose layers, channels and tokens is measured once."""

    def __init__(self, job: Job, teachers: Teachers):
        self.job, self.teachers = job, teachers
        self._shape: FromTeacher | None = None
        self._activity: Activity | None = None
        self._importance: dict[str, Tensor] | None = None
        self._refitted: dict[str, Tensor] | None = None

    def new(self, seed: int) -> Student:
        """A student whose new weights are drawn from a seed, under its adapter if it has one."""
        student, adapter = self._whole(seed), self.job.recipe.student.adapter
        if adapter is None:
            return student
        return student.with_adapter(adapter, kind=self.job.reading.head, seed=seed)

    def _whole(self, seed: int) -> Student:
        wanted, kind, labels = self.job.recipe.student, self.job.reading.head, self.job.task.labels
        if wanted.from_teacher is not None:
            tuned = wanted.from_teacher.weights == "fine_tuned"
            source = self.job.files(0) if tuned else self.job.source(self.job.parts[0])
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
                self.job.find(wanted.model, wanted.revision), kind=kind, labels=labels, seed=seed
            )
        if wanted.config is None:
            raise ModelError("student: give from_teacher, model or config")
        return Student.from_config(
            wanted.config, self.teachers.tokenizer(wanted.tokenizer), kind=kind, labels=labels, seed=seed
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
            self.job.progress.say(f"student-{self.job.task.name}: {self._shape.shape_as_text()}")
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
        model = load_model(source, kind=self.job.reading.head, labels=self.job.task.labels, seed=0)
        model.to(self.job.accelerator.device)
        return model

    def _calibration(self, model: PreTrainedModel, source: ModelSource) -> Iterator[Batch]:
        """Up to 1,024 training examples, spread over all of them, the short ones first."""
        examples = self.job.examples_for(Student(model, load_tokenizer(source)))
        step = -(-len(examples) // CALIBRATION_EXAMPLES)
        chosen = sorted(range(0, len(examples), step), key=lambda index: examples.lengths[index])
        size = self.job.recipe.train.per_device_eval_batch_size
        return (examples.batch(chosen[start : start + size]) for start in range(0, len(chosen), size))

    def _vocabulary_of(
        self, theirs: PreTrainedTokenizerBase, wanted: str | StudentVocabulary
    ) -> dict[str, Any]:
        """Which tokens a part of the teacher reads, as `Student.from_teacher` takes it."""
        if isinstance(wanted, StudentVocabulary) and wanted.train is not None:
            return {"tokenizer": self.job.corpus.tokenizer(theirs, wanted.train)}
        if wanted == "teacher":
            return {}
        least = wanted.at_least if isinstance(wanted, StudentVocabulary) else None
        return {"used_tokens": self.job.corpus.tokens(theirs), "at_least": least or 0}
