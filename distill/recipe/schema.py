"""What a recipe may say: frozen dataclasses, checked alike from Python and from YAML. Loads no torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from distill.losses import AnyLoss, Loss

from .fields import check_fields, fields_as_dict_type
from .patterns import KEY, LOCATION, NAME, REVISION, TEXT
from .wording import FieldMistakes, Mistake, Place

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

SuperGLUEName = Literal["boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc"]
TaskName = Literal[SuperGLUEName, "terra", "text"]
TASK_NAMES: tuple[TaskName, ...] = get_args(SuperGLUEName)
PLAIN_TEXT: TaskName = "text"
Architecture = Literal["encoder", "decoder", "encoder_decoder"]
# Characters that a passage of plain text has for each token of max_length: few enough for most tokenizers.
CHARACTERS_A_TOKEN = 3

Scalar = (
    Annotated[str, Field(pattern=TEXT)]
    | Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
    | Annotated[float, Field(allow_inf_nan=False)]
    | bool
    | None
)
Text = Annotated[str, Field(pattern=TEXT)]
Name = Annotated[str, Field(pattern=NAME)]
Location = Annotated[str, Field(pattern=LOCATION)]
Key = Annotated[str, Field(pattern=KEY)]
Revision = Annotated[str, Field(pattern=REVISION)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
DiscriminatedLoss = Annotated[AnyLoss, Field(discriminator="kind")]


def _duplicates(place: str, values: Iterable[object]) -> list[Mistake]:
    seen: set[object] = set()
    mistakes: list[Mistake] = []
    for index, value in enumerate(values):
        if value in seen:
            mistakes.append(((place, index), f"{value!r} stands there twice; leave one out"))
        seen.add(value)
    return mistakes


def _raise(mistakes: list[Mistake]) -> None:
    if mistakes:
        raise FieldMistakes(mistakes)


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """The tasks to train and evaluate on, and where their examples come from.

    Attributes:
        source: Where examples come from: "demo" (eight built-in tasks in SuperGLUE's layout, made from a
            seed; their scores are not SuperGLUE scores), "folder" (the official jsonl files under `path`),
            "hub" (aps/super_glue on the Hugging Face Hub) or "text" (text files under `path`, in which a decoder
            predicts the next tokens and an encoder hidden ones). Default "demo".
        path: The folder with one subfolder a task (BoolQ, CB, ...), or with source "text" a text file or a folder
            of .txt files. Only with, and required by, source "folder" and "text". Relative to the working directory.
        validation: With source "text": the file or folder to be scored on. Default: the last tenth of each file.
        characters: With source "text": the length of a passage, which is one example. Default: 3 for each token
            of max_length.
        revision: The dataset's git revision, only with source "hub". Default: the one pinned by distill.
        tasks: The tasks, each a model of its own; terra (Russian, only with source "folder") is no part of the
            SuperGLUE score. Default: all eight of SuperGLUE. With source "text" there is one, "text".
        diagnostics: Also evaluate the RTE model on AX-b and AX-g where the source has them. Default true.
        chat: Put a decoder's prompts into its tokenizer's chat template, as a model tuned to follow instructions
            expects. Only with architecture decoder. Default false.
        max_length: The longest input in tokens; longer ones are cut where the task allows it and counted in
            the report. 8 to 8192, default 128.
        train_examples: Keep the first so many training units (questions for MultiRC, queries for ReCoRD) of
            each task. Default: all.
        validation_examples: The same for validation. Default: all.
        negatives: Wrong candidates kept a ReCoRD query in training. Default 3.
        seed: Seed of the demo tasks and of sub-sampling; the training seeds are `seeds`. Default 0.
    """

    source: Literal["demo", "folder", "hub", "text"] = "demo"
    path: Location | None = None
    validation: Location | None = None
    characters: Annotated[int, Field(ge=8, le=1_000_000)] | None = None
    revision: Revision | None = None
    tasks: Annotated[tuple[TaskName, ...], Field(min_length=1)] = TASK_NAMES
    diagnostics: bool = True
    chat: bool = False
    max_length: Annotated[int, Field(ge=8, le=8192)] = 128
    train_examples: Count | None = None
    validation_examples: Count | None = None
    negatives: Count = 3
    seed: Seed = 0

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    @property
    def passage_characters(self) -> int:
        """The length of a passage of plain text."""
        return self.characters or CHARACTERS_A_TOKEN * self.max_length

    def __post_init__(self) -> None:
        check_fields(self)
        if self.source == "text" and self.tasks == TASK_NAMES:
            object.__setattr__(self, "tasks", (PLAIN_TEXT,))
        mistakes = _duplicates("tasks", self.tasks)
        if (self.source == "text") != (PLAIN_TEXT in self.tasks) or (
            PLAIN_TEXT in self.tasks and len(self.tasks) > 1
        ):
            mistakes.append((("tasks",), "text stands alone, with source text; leave tasks out there"))
        if self.source == "folder" and self.path is None:
            mistakes.append(
                (("path",), "is missing; source folder needs the folder of the official jsonl files")
            )
        if self.source == "text" and self.path is None:
            mistakes.append((("path",), "is missing; source text needs a text file or a folder of them"))
        if self.source not in ("folder", "text") and self.path is not None:
            mistakes.append(
                (("path",), f"is only for source folder and text, found source {self.source}; leave one out")
            )
        for key in ("validation", "characters"):
            if self.source != "text" and getattr(self, key) is not None:
                mistakes.append(
                    ((key,), f"is only for source text, found source {self.source}; leave one out")
                )
        if self.source != "hub" and self.revision is not None:
            mistakes.append(
                (("revision",), f"is only for source hub, found source {self.source}; leave one out")
            )
        _raise(mistakes)


class _Overrides:
    """Marks `per_task`: pydantic checks its values by TrainRecipe's own fields."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        overrides = fields_as_dict_type(TrainRecipe, without=("per_task",), total=False)
        per_task: Any = Mapping
        return handler.generate_schema(per_task[TaskName, overrides])


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """How a model is trained, in the words of transformers' TrainingArguments.

    Attributes:
        num_train_epochs: Passes over the training examples; may be a fraction. Default 3.
        max_steps: Optimizer steps; overrules num_train_epochs. Default: as many as the epochs need.
        learning_rate: AdamW's peak learning rate, above 0 and at most 1. Default 5e-5.
        weight_decay: AdamW's decoupled weight decay (not on biases and norms). Default 0.
        warmup_steps: Linear warm-up: below 1 a share of all steps, else optimizer steps. Default 0.1.
        lr_scheduler_type: What follows the warm-up: "linear" (to 0), "cosine" (to 0) or "constant".
        max_grad_norm: Clip the gradient's global L2 norm to this; null: no clipping. Default 1.
        per_device_train_batch_size: Examples a forward pass on each device. Default 16.
        gradient_accumulation_steps: Forward passes an optimizer step. Default 1.
        per_device_eval_batch_size: Examples a forward pass in evaluation. Default 64.
        eval_steps: Evaluate every so many optimizer steps. Default: only at the end.
        save_steps: Checkpoint every so many optimizer steps. Default 500.
        logging_steps: Log every so many optimizer steps. Default 10.
        precision: "fp32", "bf16" (autocast; weights stay in float32) or "auto" (bf16 where the device is
            fast at it). Default "auto".
        group_by_length: Batch examples of similar length together, which saves padding. Default true.
        freeze_embeddings: Leave the embedding tables as they are: less to train and to store, since the models of
            all tasks can share them. Default false.
        dropout: The probability of every dropout layer while training. 0 learns a short, clean task in half the
            steps; a long training on little data wants some. Default: what the model's config says.
        per_task: Other values of these fields for single tasks: {cb: {num_train_epochs: 20}}.
    """

    num_train_epochs: Annotated[float, Field(gt=0, le=1_000_000)] = 3.0
    max_steps: Count | None = None
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-5
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    warmup_steps: Annotated[float, Field(ge=0, le=1_000_000_000)] = 0.1
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: Annotated[float, Field(gt=0, le=1_000_000)] | None = 1.0
    per_device_train_batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 16
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    per_device_eval_batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 64
    eval_steps: Count | None = None
    save_steps: Count = 500
    logging_steps: Count = 10
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    group_by_length: bool = True
    freeze_embeddings: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    per_task: Annotated[Mapping[TaskName, Mapping[str, float | int | str | bool | None]], _Overrides()] = (
        field(default_factory=dict)
    )

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_fields(self)
        mistakes: list[Mistake] = []
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            mistakes.append(
                (
                    ("warmup_steps",),
                    f"must be a share below 1 or a whole number of steps, found {self.warmup_steps}",
                )
            )
        if self.max_steps is not None and self.warmup_steps > max(self.max_steps, 1):
            mistakes.append(
                (
                    ("warmup_steps",),
                    f"must not be longer than max_steps ({self.max_steps}), found {self.warmup_steps:g}",
                )
            )
        if not mistakes:
            for task in self.per_task:
                try:
                    self.for_task(task)
                except FieldMistakes as error:
                    for place, message in error.mistakes:
                        mistakes.append((("per_task", task, *place), message))
        _raise(mistakes)

    def for_task(self, name: TaskName) -> TrainRecipe:
        """This recipe with the overrides of one task applied and `per_task` empty."""
        overrides: Mapping[str, Any] = self.per_task.get(name, {})
        return dataclasses.replace(self, per_task={}, **overrides)


@dataclass(frozen=True, kw_only=True)
class NewTokenizer:
    """A byte-level BPE tokenizer made from the training texts of the run, for models that start from a config.

    Attributes:
        train: How many tokens it has: 256 bytes, 3 special ones, and merges. 300 to 200,000.
    """

    train: Annotated[int, Field(ge=300, le=200_000)]

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class MemberRecipe:
    """One of several models to learn from: exactly one of `model` and `config`.

    Attributes:
        model: A transformers model: "package:NAME" (a model shipped as the installed package NAME), a folder,
            or a Hugging Face Hub id. With "{task}" in it: a fine-tuned model for each task.
        revision: The Hub model's git revision. Default: the newest, recorded in the run.
        config: A transformers configuration for a teacher from scratch, with its model_type; needs `train`.
        tokenizer: Of a teacher from scratch: "package:NAME", a folder, a Hub id, or {train: 8000}, a new one made
            from the training texts. Only with, and required by, `config`.
        train: Fine-tune it on each task first. Default: it is already fine-tuned.
        seed: Of a new head's or model's weights and of the order of its training. Default: the first of `seeds`.
    """

    model: Location | None = None
    revision: Revision | None = None
    config: Mapping[Key, Scalar] | None = None
    tokenizer: Location | NewTokenizer | None = None
    train: TrainRecipe | None = None
    seed: Seed | None = None

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    @property
    def name(self) -> str:
        """What a reader knows it by."""
        return self.model or f"a new {(self.config or {}).get('model_type')}"

    @property
    def package(self) -> str | None:
        """The package's name, where the model comes from an installed package."""
        model = self.model or ""
        return model.removeprefix("package:") if model.startswith("package:") else None

    def for_task(self, name: TaskName) -> str:
        """`model` with the task's name in place of {task}; empty for a model from scratch."""
        return (self.model or "").replace("{task}", name)

    def __post_init__(self) -> None:
        check_fields(self)
        _raise(self._mistakes())

    def _mistakes(self) -> list[Mistake]:
        mistakes: list[Mistake] = []
        if self.model is not None and self.config is not None:
            mistakes.append((("config",), "stands beside model; keep one of them"))
        if self.model is None and self.config is None:
            mistakes.append(((), "must have one of model and config, found none"))
        if self.model is not None:
            mistakes += _model_mistakes(self.model, self.revision)
            if "{task}" in self.model and self.train is not None:
                mistakes.append(
                    (("train",), "would train again what {task} in model says is fine-tuned; leave one out")
                )
            if self.tokenizer is not None:
                mistakes.append((("tokenizer",), "is only for a teacher given by config; leave it out"))
        if self.config is not None:
            mistakes += _config_mistakes(self.config)
            for key in ("tokenizer", "train"):
                if getattr(self, key) is None:
                    mistakes.append(((key,), "is missing; a teacher given by config needs it"))
        return mistakes


@dataclass(frozen=True, kw_only=True)
class TeacherRecipe(MemberRecipe):
    """The model to learn from, or several: one of `model`, `config` and `members`.

    Attributes:
        model: A transformers model: "package:NAME" (a model shipped as the installed package NAME), a folder,
            or a Hugging Face Hub id. With "{task}" in it: a fine-tuned model for each task.
        revision: The Hub model's git revision. Default: the newest, recorded in the run.
        config: A transformers configuration for a teacher from scratch, with its model_type; needs `train`.
        tokenizer: Of a teacher from scratch: "package:NAME", a folder, a Hub id, or {train: 8000}, a new one made
            from the training texts. Only with, and required by, `config`.
        train: Fine-tune it on each task first. Default: it is already fine-tuned.
        seed: Of a new head's or model's weights and of the order of its training. Default: the first of `seeds`.
        members: Several teachers with one tokenizer, each with model or config; the student learns from their mean,
            and `from_teacher` cuts it from the first.
        mean: Of several teachers' "probabilities" (what one finds likely is likely; at the temperature of the loss)
            or "logits" (likely is what all find likely; BabyLlama). Default "probabilities".
        weights: Of the members in the mean. Default: all alike.
    """

    members: Annotated[tuple[MemberRecipe, ...], Field(min_length=2)] | None = None
    mean: Literal["probabilities", "logits"] = "probabilities"
    weights: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] | None = None

    @property
    def parts(self) -> tuple[MemberRecipe, ...]:
        """The teachers: the members, or this one."""
        return self.members or (self,)

    @property
    def name(self) -> str:
        """What a reader knows it by."""
        return " + ".join(member.name for member in self.members) if self.members else super().name

    def _mistakes(self) -> list[Mistake]:
        if self.members is None:
            mistakes = super()._mistakes()
            if self.model is None and self.config is None:
                mistakes = [((), "must have one of model, config and members, found none")]
            if self.weights is not None:
                mistakes.append((("weights",), "is only for members; leave it out"))
            return mistakes
        mistakes = [
            ((key,), "stands beside members; keep one of them")
            for key in ("model", "revision", "config", "tokenizer", "train", "seed")
            if getattr(self, key) is not None
        ]
        if self.weights is not None and len(self.weights) != len(self.members):
            mistakes.append(
                (
                    ("weights",),
                    f"must have one number for each of {len(self.members)} members, found {len(self.weights)}",
                )
            )
        elif self.weights is not None and not sum(self.weights):
            mistakes.append((("weights",), "must not all be 0"))
        return mistakes


def _config_mistakes(config: Mapping[str, Any]) -> list[Mistake]:
    if isinstance(config.get("model_type"), str):
        return []
    return [(("config",), "must have the model_type of a transformers configuration, such as bert")]


def _model_mistakes(model: str, revision: str | None) -> list[Mistake]:
    mistakes: list[Mistake] = []
    package = model.startswith("package:")
    if package and not re.fullmatch(r"package:[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?", model):
        mistakes.append((("model",), f"must name a package after 'package:', found {model!r}"))
    if package and revision is not None:
        mistakes.append(
            (("revision",), "is only for models of the Hub; a package has its version; leave it out")
        )
    if unknown := [name for name in re.findall(r"\{([^}]*)\}", model) if name != "task"]:
        mistakes.append(
            (("model",), f"may hold {{task}} and no other name in braces, found {{{unknown[0]}}}")
        )
    return mistakes


@dataclass(frozen=True, kw_only=True)
class StudentVocabulary:
    """How many tokens a student has whose tokens are not simply the teacher's: exactly one of `at_least` and `train`.

    Attributes:
        at_least: Keep the tokens that occur in the training texts, as "corpus" does, and as many others of the
            teacher's as make up this number: those with the lowest ids (WordPiece, BPE: the most frequent where the
            teacher's tokenizer was trained) or the highest scores (Unigram). A small task's texts hold few tokens, and
            what they lack is read in more and smaller pieces.
        train: Make a new tokenizer of this size from the training texts, of the teacher's kind and with its rules and
            special tokens. A token starts as the mean of the pieces that the teacher cuts its text into.
        texts: A text file, or a folder of .txt files, to train the new tokenizer on beside the training texts. Only
            with `train`. Relative to the working directory.
    """

    at_least: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    train: Annotated[int, Field(ge=100, le=1_000_000)] | None = None
    texts: Location | None = None

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_fields(self)
        mistakes: list[Mistake] = []
        if (self.at_least is None) == (self.train is None):
            mistakes.append(((), "needs exactly one of at_least (keep tokens) and train (make new ones)"))
        if self.texts is not None and self.train is None:
            mistakes.append((("texts",), "is only for a new tokenizer; give train"))
        _raise(mistakes)


@dataclass(frozen=True, kw_only=True)
class FromTeacher:
    """A student made of a part of the teacher.

    Attributes:
        layers: How many layers, evenly spaced with the first and the last kept; or the teacher layers
            themselves, counted from 0, increasing.
        weights: Which of the teacher's weights the student starts from: "pretrained" (before it was
            fine-tuned) or "fine_tuned". Default "pretrained".
        vocabulary: The tokens of the student: "teacher" (all of the teacher's), "corpus" (those of the teacher's that
            occur in the training examples of the run's tasks, special tokens, and single letters or bytes; validation
            examples have no say), {at_least: 8000} (the same, filled up with others) or {train: 8000} (a new, smaller
            tokenizer). All but "teacher" need a fast WordPiece, Unigram or BPE tokenizer. Default "teacher".
        hidden: The width of the hidden states, at most the teacher's. Attention heads keep their size, so it must
            be a multiple of that. For bert, roberta and their kin. Default: the teacher's.
        intermediate: The width of the feed-forward networks, at most the teacher's. For bert, roberta and their
            kin. Default: the teacher's.
        keep: Which channels, heads and neurons a narrower student keeps: the "most_active" ones (largest mean
            absolute activation of the teacher on 1,024 training examples, as in Minitron) or the "first".
            Default "most_active".
    """

    layers: (
        Annotated[int, Field(ge=1, le=1000)]
        | Annotated[tuple[Annotated[int, Field(ge=0, le=999)], ...], Field(min_length=1)]
    )
    weights: Literal["pretrained", "fine_tuned"] = "pretrained"
    vocabulary: Literal["teacher", "corpus"] | StudentVocabulary = "teacher"
    hidden: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    intermediate: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    keep: Literal["most_active", "first"] = "most_active"

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_fields(self)
        mistakes: list[Mistake] = []
        if not isinstance(self.layers, int):
            mistakes += [
                (("layers", index + 1), f"must be above the layer before it ({before}), found {after}")
                for index, (before, after) in enumerate(zip(self.layers, self.layers[1:], strict=False))
                if after <= before
            ]
        if self.keep == "first" and not self.is_narrower:
            mistakes.append((("keep",), "is only for a narrower student; give hidden or intermediate"))
        _raise(mistakes)

    @property
    def is_narrower(self) -> bool:
        """Whether a width is given."""
        return self.hidden is not None or self.intermediate is not None


@dataclass(frozen=True, kw_only=True)
class StudentRecipe:
    """The model to train: exactly one of `from_teacher`, `model` and `config`.

    Attributes:
        from_teacher: A part of the teacher: some of its layers, tokens, channels, heads and neurons.
        model: A transformers model: "package:NAME", a folder or a Hugging Face Hub id.
        revision: The Hub model's git revision, only with `model`.
        config: A transformers configuration for a student from scratch, with its model_type:
            {model_type: bert, hidden_size: 128, num_hidden_layers: 2, ...}.
        tokenizer: The tokenizer of a student from scratch: "package:NAME", a folder, a Hub id, or {train: 8000}, a
            new one made from the training texts. Only with `config`. Default: the teacher's.
    """

    from_teacher: FromTeacher | None = None
    model: Location | None = None
    revision: Revision | None = None
    config: Mapping[Key, Scalar] | None = None
    tokenizer: Location | NewTokenizer | None = None

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_fields(self)
        given = [name for name in ("from_teacher", "model", "config") if getattr(self, name) is not None]
        mistakes: list[Mistake] = []
        if not given:
            mistakes.append(((), "must have one of from_teacher, model and config, found none"))
        for name in given[1:]:
            mistakes.append(
                ((name,), f"stands beside {given[0]}; keep one of from_teacher, model and config")
            )
        if self.model is not None:
            mistakes += _model_mistakes(self.model, self.revision)
        elif self.revision is not None:
            mistakes.append((("revision",), "is only for a student given by model; leave it out"))
        if self.config is not None:
            mistakes += _config_mistakes(self.config)
        if self.config is None and self.tokenizer is not None:
            mistakes.append((("tokenizer",), "is only for a student given by config; leave it out"))
        _raise(mistakes)


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
        train: How the student is trained. The baseline is trained the same way.
        seeds: One student (and one baseline) is trained for each. Default: 0 alone.
        baseline: Also train the same student on the labels alone, to see what the teacher is worth.
        output: The run's folder. Default: runs/ and the name.
        cache: A folder where runs share fine-tuned teachers and finished baselines. Default: none.
    """

    name: Name
    description: Text = ""
    architecture: Architecture = "encoder"
    data: DataRecipe = field(default_factory=DataRecipe)
    teacher: TeacherRecipe
    student: StudentRecipe
    loss: Annotated[tuple[DiscriminatedLoss, ...], Field(min_length=1)]
    train: TrainRecipe = field(default_factory=TrainRecipe)
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    baseline: bool = True
    output: Location | None = None
    cache: Location | None = None

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
        mistakes = _duplicates("seeds", self.seeds)
        if self.data.chat and (self.architecture != "decoder" or self.data.source == "text"):
            mistakes.append((("data", "chat"), "is only for tasks with architecture decoder; leave it out"))
        if self.architecture == "encoder_decoder" and self.data.source == "text":
            mistakes.append(
                (("architecture",), "must be encoder or decoder with data.source text, found encoder_decoder")
            )
        mistakes += teacher_mistakes(self.teacher, self.data)
        mistakes += ensemble_mistakes(self.teacher, self.loss)
        mistakes += start_mistakes(self.teacher, self.student)
        mistakes += group_mistakes(self.loss, self.train, self.data)
        _raise(mistakes)


def teacher_mistakes(teacher: TeacherRecipe, data: DataRecipe) -> list[Mistake]:
    """A teacher that is one model, not fine-tuned, for several tasks."""
    mistakes: list[Mistake] = []
    for number, part in enumerate(teacher.parts):
        if part.model and part.train is None and "{task}" not in part.model and len(data.tasks) > 1:
            place: Place = ("teacher", "members", number) if teacher.members else ("teacher",)
            mistakes.append(
                (
                    (*place, "model"),
                    f"must hold {{task}}, one fine-tuned model a task, since teacher.train is not given and data.tasks "
                    f"has {len(data.tasks)} tasks, found {part.model!r}",
                )
            )
    return mistakes


def ensemble_mistakes(teacher: TeacherRecipe, loss: tuple[AnyLoss, ...]) -> list[Mistake]:
    """A mean of probabilities is taken at one temperature, so the terms must have one."""
    found = {getattr(term, "temperature", 1.0) for term in loss if term.needs_teacher}
    if teacher.members is None or teacher.mean == "logits" or len(found) < 2:
        return []
    shown = " and ".join(f"{temperature:g}" for temperature in sorted(found))
    return [
        (
            ("teacher", "mean"),
            f"must be logits where terms of the loss have different temperatures, found {shown}: a mean of "
            "probabilities is one at one temperature",
        )
    ]


def start_mistakes(teacher: TeacherRecipe, student: StudentRecipe) -> list[Mistake]:
    """A student cut from the pretrained weights of a teacher that has none."""
    cut = student.from_teacher
    if teacher.parts[0].config is None or cut is None or cut.weights == "fine_tuned":
        return []
    return [
        (
            ("student", "from_teacher", "weights"),
            "must be fine_tuned: a teacher given by config has no pretrained weights",
        )
    ]


def group_mistakes(loss: tuple[AnyLoss, ...], train: TrainRecipe, data: DataRecipe) -> list[Mistake]:
    """Batch-wise losses whose groups the batches would cut, or that want different groups."""
    mistakes: list[Mistake] = []
    batchwise = [(index, term) for index, term in enumerate(loss) if not term.additive]
    sizes = [(index, getattr(term, "group_size", None)) for index, term in batchwise]
    for index, size in sizes[1:]:
        if size != sizes[0][1]:
            mistakes.append(
                (
                    ("loss", index, "group_size"),
                    f"must equal that of loss.{sizes[0][0]} ({_group(sizes[0][1])}), found {_group(size)}",
                )
            )
    for task in (None, *data.tasks):
        batches = train if task is None else train.for_task(task)
        at = ("train",) if task is None else ("train", "per_task", task)
        batch, accumulation = batches.per_device_train_batch_size, batches.gradient_accumulation_steps
        if task is not None and not {"per_device_train_batch_size", "gradient_accumulation_steps"} & set(
            train.per_task.get(task, {})
        ):
            continue
        for index, size in sizes:
            if size is None and accumulation != 1:
                mistakes.append(
                    (
                        (*at, "gradient_accumulation_steps"),
                        f"must be 1, found {accumulation}: loss.{index} compares the rows of a whole batch, and "
                        f"accumulation would cut it; or set loss.{index}.group_size to {batch} or a divisor of it",
                    )
                )
            elif size is not None and batch % size:
                mistakes.append(
                    (
                        (*at, "per_device_train_batch_size"),
                        f"must be a multiple of loss.{index}.group_size ({size}), found {batch}: a batch would cut "
                        "a group",
                    )
                )
    return mistakes


def _group(size: int | None) -> str:
    return "null, the whole batch" if size is None else str(size)
