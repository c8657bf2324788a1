"""What a recipe may say: frozen dataclasses, checked alike from Python and from YAML. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field

from distill.losses import AnyLoss, Loss

from .agreement import contradictions
from .alignment import AlignmentRecipe
from .data import DataRecipe
from .fields import check_fields
from .student import StudentRecipe
from .teacher import TeacherRecipe
from .training import TrainRecipe
from .values import Architecture, Location, Name, Seed, Text, Tracker, duplicates, raise_all

DiscriminatedLoss = Annotated[AnyLoss, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run: teacher and student on some tasks, with what loss, how long, how often.

    Attributes:
        name: The run's name, also its folder's: letters, digits, dots, dashes and underscores.
        description: What the run is for, shown in the report.
        architecture: "encoder" (classifies, with a head of its own; predicts hidden tokens of plain text), "decoder"
            (continues a prompt with each answer in words; predicts the next tokens of plain text) or
            "encoder_decoder" (writes the answer). Teacher and student are of the same one. Default "encoder".
        data: The tasks and their examples. Default: the eight demo tasks.
        teacher: The model to learn from.
        student: The model to train.
        loss: The terms of the loss, added with their weights. From Python a single loss or a total
            (0.5 * Labels() + 0.5 * ForwardKL()) is taken too.
        alignment: How to compare with a teacher that has other tokens. Default: both have the same tokens.
        train: How the student is trained. The baseline is trained the same way, but never on_policy.
        seeds: One student (and one baseline) is trained for each. Default: 0 alone.
        baseline: Also train the same student on the labels alone, to see what the teacher is worth.
        preflight: Try one real batch before the student of a task is trained, and say what memory and time it will
            need and what looks wrong. Changes no result. Default true.
        output: The run's folder. Default: runs/ and the name.
        cache: A folder where runs share fine-tuned teachers, their predictions and finished baselines. Default: none.
        report_to: Experiment trackers that are told what metrics.jsonl says, in the words of transformers: [tensorboard],
            [trackio, wandb], … TensorBoard's files are in trackers/ of the run's folder. Changes no result.
            Default: none.
        onnx: Write each task's student, of the first seed, as onnx/model.onnx beside its weights too, for onnxruntime, and
            put its latency beside torch's in the report. Needs the extra onnx: pip install "distill[onnx]". Changes no
            other result. Default false.
    """

    name: Name
    description: Text = ""
    architecture: Architecture = "encoder"
    data: DataRecipe = field(default_factory=DataRecipe)
    teacher: TeacherRecipe
    student: StudentRecipe
    loss: Annotated[tuple[DiscriminatedLoss, ...], Field(min_length=1)]
    alignment: AlignmentRecipe | None = None
    train: TrainRecipe = field(default_factory=TrainRecipe)
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    baseline: bool = True
    preflight: bool = True
    output: Location | None = None
    cache: Location | None = None
    report_to: tuple[Tracker, ...] = ()
    onnx: bool = False

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    @property
    def folder(self) -> str:
        """Where the run is written: `output`, or runs/<name>."""
        return self.output if self.output is not None else f"runs/{self.name}"

    def __post_init__(self) -> None:
        loss: Any = self.loss
        if isinstance(loss, Loss):
            object.__setattr__(self, "loss", (loss,))
        elif not isinstance(loss, list | tuple) and isinstance(loss, Iterable):
            object.__setattr__(self, "loss", tuple(loss))
        check_fields(self)
        twice = [*duplicates("seeds", self.seeds), *duplicates("report_to", self.report_to)]
        raise_all([*twice, *contradictions(self)])
