"""What a recipe may say: frozen dataclasses, checked alike from Python and from YAML. Loads no torch."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from distill.losses import AnyLoss, Loss

from .fields import check_fields, fields_as_dict_type
from .patterns import AMOUNT, KEY, LOCATION, NAME, REVISION, TEXT
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
# The losses that take columns of different meaning.
SORTING = ("sorted_transport", "multi_level_transport")

Scalar = (
    Annotated[str, Field(pattern=TEXT)]
    | Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
    | Annotated[float, Field(allow_inf_nan=False)]
    | bool
    | None
)
AdapterValue = Scalar | list[Scalar] | Mapping[Annotated[str, Field(pattern=TEXT)], Scalar]
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


# The fields of TrainRecipe that are the same for all tasks.
NOT_PER_TASK = ("per_task", "on_policy")


class _Overrides:
    """Marks `per_task`: pydantic checks its values by TrainRecipe's own fields."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        overrides = fields_as_dict_type(TrainRecipe, without=NOT_PER_TASK, total=False)
        per_task: Any = Mapping
        return handler.generate_schema(per_task[TaskName, overrides])


@dataclass(frozen=True, kw_only=True)
class OnPolicy:
    """A decoder that learns on texts of its own: some batches are replaced by what the student makes of their prompts.

    A student that has only seen the data's texts meets its own mistakes for the first time when it is used. Here the
    teacher corrects what the student itself would write (GKD, arXiv:2306.13649, algorithm 1). The prompt is what
    stands before an answer, or the beginning of a passage of plain text. Only terms of the loss that compare with the
    teacher count on such a text: nobody wrote labels for it.

    Attributes:
        fraction: The share of optimizer steps, drawn from the seed, whose whole batch is replaced: 0 never, 1 always.
            Default 0.5.
        max_new_tokens: The longest continuation in tokens, its end token included: as long as what the student will
            have to write, so a few for the answers of a task. Default 64.
        temperature: What the student's logits are divided by when its texts are drawn: below 1 it keeps to what it
            finds likely. Has nothing to do with the temperature of a loss. Default 0.9.
        top_p: Draw only from the likeliest tokens that together have this probability. Default: from all.
        top_k: Draw only from so many of the likeliest tokens. Default: from all.
        prompt_tokens: The length of the beginning of a passage of plain text that is continued, in tokens.
            Default 32.
    """

    fraction: Annotated[float, Field(ge=0, le=1)] = 0.5
    max_new_tokens: Annotated[int, Field(ge=1, le=8192)] = 64
    temperature: Annotated[float, Field(gt=0, le=100)] = 0.9
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Count | None = None
    prompt_tokens: Annotated[int, Field(ge=1, le=8192)] = 32

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_fields(self)


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
        on_policy: Let a decoder learn from its teacher on texts of its own. The baseline has no teacher to correct
            such texts: it takes the same steps over the same examples, all of them on the data. Default: never.
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
    on_policy: OnPolicy | None = None
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
        precision: Of its weights while it teaches: "fp32", "bf16", "int8" (CUDA with bitsandbytes) or "auto" (bf16 on
            GPUs that compute in it, else fp32). Its log-probabilities are float32 in any case. Default "auto".
    """

    model: Location | None = None
    revision: Revision | None = None
    config: Mapping[Key, Scalar] | None = None
    tokenizer: Location | NewTokenizer | None = None
    train: TrainRecipe | None = None
    seed: Seed | None = None
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"

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
        if self.train is not None and self.train.on_policy is not None:
            mistakes.append(
                (("train", "on_policy"), "is only for a student, which has a teacher; leave it out")
            )
        if self.config is not None:
            mistakes += _config_mistakes(self.config)
            for key in ("tokenizer", "train"):
                if getattr(self, key) is None:
                    mistakes.append(((key,), "is missing; a teacher given by config needs it"))
        return mistakes


@dataclass(frozen=True, kw_only=True)
class CacheRecipe:
    """A language model's predictions, computed once, kept on disk and read by every seed and epoch.

    Attributes:
        keep: Of each token "full" (all logits, so that training is bitwise that with `alone`), "top_k" (the most
            likely tokens, for ghost_token_kl) or "sampled" (an unbiased draw, for sampled_targets). What of these is
            kept at which temperature is what the loss's term says. Default "full".
        count: Tokens or draws a row, with top_k and sampled. Default: as the loss's term (its `kept` or `samples`).
        dtype: Of the probabilities of top_k: "float32" (exact), "bfloat16" or "float16". Default "float32".
        seed: Of the draws of sampled. Default 0.
    """

    keep: Literal["full", "top_k", "sampled"] = "full"
    count: Count | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: Seed = 0

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_fields(self)
        mistakes: list[Mistake] = []
        if self.keep == "full" and self.count is not None:
            mistakes.append((("count",), "is only for keep top_k and sampled; leave it out"))
        if self.keep != "top_k" and self.dtype != "float32":
            mistakes.append((("dtype",), f"is only for keep top_k, found keep {self.keep}; leave it out"))
        if self.keep != "sampled" and self.seed:
            mistakes.append((("seed",), f"is only for keep sampled, found keep {self.keep}; leave it out"))
        _raise(mistakes)


@dataclass(frozen=True, kw_only=True)
class TeacherRecipe(MemberRecipe):
    """The model to learn from, or several: one of `model`, `config` and `members`.

    The keys of a member are this recipe's too.

    Attributes:
        members: Several teachers with one tokenizer, each with model or config; the student learns from their mean,
            and `from_teacher` cuts it from the first.
        mean: Of several teachers' "probabilities" (what one finds likely is likely; at the temperature of the loss)
            or "logits" (likely is what all find likely; BabyLlama). Default "probabilities".
        weights: Of the members in the mean. Default: all alike.
        cache: Ask a language model once about each training example and keep what it says on disk, in the run's
            folder or in the recipe's `cache`. Several members are asked one after the other, so that they need not
            fit into memory together. Default: the teacher runs beside the student.
        alone: Ask a language model about one example at a time, without padding, so that what it says does not
            depend on the batch: bitwise as with a full cache. As quick as batches from some 100 M parameters on,
            slower below. Default false.
    """

    members: Annotated[tuple[MemberRecipe, ...], Field(min_length=2)] | None = None
    mean: Literal["probabilities", "logits"] = "probabilities"
    weights: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] | None = None
    cache: CacheRecipe | None = None
    alone: bool = False

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


_Layers = (
    Annotated[int, Field(ge=1, le=1000)]
    | Annotated[tuple[Annotated[int, Field(ge=0, le=999)], ...], Field(min_length=1)]
)


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
        layers: How many layers, chosen as `choose` says; or the teacher layers themselves, counted from 0,
            increasing. Of an encoder–decoder teacher they are the encoder's, and the decoder's too unless
            `decoder_layers` is given. Default: all.
        decoder_layers: The same for the decoder of an encoder–decoder teacher. Default: as `layers`.
        choose: Which layers a number of them keeps: "even" (evenly spaced with the first and the last kept),
            "block_influence" (drop those that turn the hidden state least: ShortGPT) or "linearity" (drop those
            whose contribution is most nearly a linear map of their input: Secretly Linear). The last two hold on to
            no layer for its place; a linear layer may do much, so look at where a student without it starts.
            Measured on 1,024 training examples. Default "even".
        dropped: What becomes of dropped layers: they are "left_out", or the last feed-forward map of the layer
            before them is fitted in least squares, on the same examples, to add what they would have added as far
            as that is linear ("linear"). Default "left_out".
        target_parameters: Parameters the student may have at most, without a task's classifier: 10000000 or
            "10M". Layers and widths that are not given are then found: within 1% of the target where that can be,
            in proportions most like the teacher's. Default: as the other fields say.
        weights: Which of the teacher's weights the student starts from: "pretrained" (before it was
            fine-tuned) or "fine_tuned". Default "pretrained".
        vocabulary: The tokens of the student: "teacher" (all of the teacher's), "corpus" (those of the teacher's that
            occur in the training examples of the run's tasks, special tokens, and single letters or bytes; validation
            examples have no say), {at_least: 8000} (the same, filled up with others) or {train: 8000} (a new, smaller
            tokenizer). All but "teacher" need a fast WordPiece, Unigram or BPE tokenizer. Default "teacher".
        hidden: The width of the hidden states, at most the teacher's. For bert, roberta and their kin, whose
            attention heads keep their size, a multiple of that; for llama a multiple of its heads; also for mistral,
            qwen2, qwen3 and t5. Default: the teacher's.
        heads: The attention heads of a layer, at most the teacher's; for llama, mistral, qwen2 and qwen3, whose heads
            have a size of their own. Heads with keys and values in common go in whole groups, or as many of every
            group. Default: the teacher's.
        intermediate: The width of the feed-forward networks, at most the teacher's. For the same models as hidden.
            Default: the teacher's.
        keep: Which channels, heads and neurons a narrower student keeps: the "most_active" ones (largest mean
            absolute activation of the teacher on 1,024 training examples, as in Minitron) or the "first".
            Default "most_active".
    """

    layers: _Layers | None = None
    decoder_layers: _Layers | None = None
    choose: Literal["even", "block_influence", "linearity"] = "even"
    dropped: Literal["left_out", "linear"] = "left_out"
    target_parameters: (
        Annotated[int, Field(ge=1, le=10**15)] | Annotated[str, Field(pattern=AMOUNT)] | None
    ) = None
    weights: Literal["pretrained", "fine_tuned"] = "pretrained"
    vocabulary: Literal["teacher", "corpus"] | StudentVocabulary = "teacher"
    hidden: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    heads: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    intermediate: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    keep: Literal["most_active", "first"] = "most_active"

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_fields(self)
        mistakes: list[Mistake] = []
        for field_name in ("layers", "decoder_layers"):
            layers = getattr(self, field_name)
            if isinstance(layers, tuple):
                mistakes += [
                    (
                        (field_name, index + 1),
                        f"must be above the layer before it ({before}), found {after}",
                    )
                    for index, (before, after) in enumerate(itertools.pairwise(layers))
                    if after <= before
                ]
        open_shape = self.target_parameters is not None
        counted = isinstance(self.layers, int) or isinstance(self.decoder_layers, int)
        if self.keep == "first" and not self.is_narrower and not open_shape:
            mistakes.append((("keep",), "is only for a narrower student; give hidden, heads or intermediate"))
        if self.choose != "even" and not counted and not open_shape:
            mistakes.append((("choose",), "is for a number of layers; give layers: N"))
        if self.dropped == "linear" and self.layers is self.decoder_layers is None and not open_shape:
            mistakes.append((("dropped",), "is for a student with fewer layers; give layers"))
        if open_shape and None not in (self.layers, self.hidden, self.intermediate):
            mistakes.append(
                (
                    ("target_parameters",),
                    "leaves nothing to find beside layers, hidden and intermediate; leave one out",
                )
            )
        _raise(mistakes)

    @property
    def is_narrower(self) -> bool:
        """Whether a width is given."""
        return any(width is not None for width in (self.hidden, self.heads, self.intermediate))

    def shape_as_dict(self) -> dict[str, int]:
        """What it says of depth and width, layers as their number."""
        sizes = ("layers", "decoder_layers", "hidden", "heads", "intermediate")
        said = {name: getattr(self, name) for name in sizes if getattr(self, name) is not None}
        return {name: size if isinstance(size, int) else len(size) for name, size in said.items()}

    def shape_as_text(self) -> str:
        """`layers 12, hidden 384, intermediate 1536`."""
        return ", ".join(f"{name.replace('_', ' ')} {size}" for name, size in self.shape_as_dict().items())

    @property
    def target(self) -> int | None:
        """`target_parameters` as a number."""
        if isinstance(self.target_parameters, str):
            unit = {"k": 10**3, "m": 10**6, "b": 10**9}[self.target_parameters[-1].lower()]
            return round(float(self.target_parameters[:-1]) * unit)
        return self.target_parameters


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
        adapter: Train only an adapter of peft (and a new head), on top of this student: its peft_type and fields of
            peft's configuration class of that type, {peft_type: LORA, r: 8, target_modules: [query, value]}.
            Merged into the exported weights where the type allows it. Needs distill[peft]. Default: train all weights.
    """

    from_teacher: FromTeacher | None = None
    model: Location | None = None
    revision: Revision | None = None
    config: Mapping[Key, Scalar] | None = None
    tokenizer: Location | NewTokenizer | None = None
    adapter: Mapping[Key, AdapterValue] | None = None

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
        if self.adapter is not None and not isinstance(self.adapter.get("peft_type"), str):
            mistakes.append((("adapter",), "must have the peft_type of an adapter of peft, such as LORA"))
        if self.config is None and self.tokenizer is not None:
            mistakes.append((("tokenizer",), "is only for a student given by config; leave it out"))
        _raise(mistakes)


@dataclass(frozen=True, kw_only=True)
class AlignmentRecipe:
    """How a language model is compared with a teacher that has other tokens.

    Tokens are aligned by the bytes of the text that they cover. Terms of the loss that need no teacher see the
    student's own tokens as ever.

    Attributes:
        kind: "match" (the same token at the same place, over the tokens both have: MATCH of arXiv:2205.02340),
            "shared" (the same with one more class for all other tokens: nothing is renormalised; for vocabularies that
            are much alike, since the other tokens of long and of short pieces mean different things), "reduce" (the
            student reads the teacher's tokens cut into its own pieces, and a token's logits are pooled from its pieces':
            REDUCE of that paper; encoders), "spans" (where both have read the same bytes, over all tokens of both: for
            sorted_transport and multi_level_transport; decoders), "chunks" (the probability of the shortest
            stretches of text that both have: ALM, arXiv:2503.20083; decoders) or "cross_attention" (the tokens of each
            attend to the other's: for dual_space, DSKD, arXiv:2406.17328; decoders).
        chunk_temperature: Of kind chunks: divides the log-probability of a chunk. Default 100.
        word_boundaries: Of kind chunks: count the end of a word into the chunk before it. Default false.
        pool: Of kind reduce: the "sum" or the "mean" of the pieces' logits. Default "sum".
    """

    kind: Literal["match", "shared", "reduce", "spans", "chunks", "cross_attention"]
    chunk_temperature: Annotated[float, Field(gt=0, le=1e6)] = 100.0
    word_boundaries: bool = False
    pool: Literal["sum", "mean"] = "sum"

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_fields(self)
        mistakes: list[Mistake] = []
        for key, default, kind in (
            ("chunk_temperature", 100.0, "chunks"),
            ("word_boundaries", False, "chunks"),
            ("pool", "sum", "reduce"),
        ):
            if getattr(self, key) != default and self.kind != kind:
                mistakes.append(((key,), f"is only for kind {kind}, found kind {self.kind}; leave it out"))
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
        alignment: How to compare with a teacher that has other tokens. Default: both have the same tokens.
        train: How the student is trained. The baseline is trained the same way, but never on_policy.
        seeds: One student (and one baseline) is trained for each. Default: 0 alone.
        baseline: Also train the same student on the labels alone, to see what the teacher is worth.
        preflight: Try one real batch before the student of a task is trained, and say what memory and time it will
            need and what looks wrong. Changes no result. Default true.
        output: The run's folder. Default: runs/ and the name.
        cache: A folder where runs share fine-tuned teachers, their predictions and finished baselines. Default: none.
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
        freezes = [self.train, *(self.train.for_task(task) for task in self.train.per_task)]
        if self.student.adapter is not None and any(train.freeze_embeddings for train in freezes):
            mistakes.append(
                (("train", "freeze_embeddings"), "is what student.adapter does anyway; leave one of them out")
            )
        mistakes += alignment_mistakes(self)
        mistakes += teacher_mistakes(self.teacher, self.data)
        mistakes += ensemble_mistakes(self.teacher, self.loss)
        classifies = self.architecture == "encoder" and self.data.source != "text"
        mistakes += cache_mistakes(self.teacher, self.loss, classifies=classifies)
        mistakes += start_mistakes(self.teacher, self.student)
        mistakes += group_mistakes(self.loss, self.train, self.data)
        if self.train.on_policy is not None:
            place = ("train", "on_policy")
            if self.architecture != "decoder":
                mistakes.append(
                    (
                        place,
                        f"is only for a decoder, which continues texts, found architecture {self.architecture}",
                    )
                )
            if not any(term.needs_teacher for term in self.loss):
                mistakes.append(
                    (
                        place,
                        "needs a loss with a term that compares with the teacher: the student's texts have no labels",
                    )
                )
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


def alignment_mistakes(recipe: Recipe) -> list[Mistake]:
    """An alignment that the models, the data or the terms of the loss cannot use."""
    wanted = recipe.alignment
    if wanted is None:
        return _unaligned_mistakes(recipe)
    place: Place = ("alignment", "kind")
    mistakes: list[Mistake] = []
    if recipe.teacher.cache is not None:
        mistakes.append((("teacher", "cache"), "is of the student's own tokens; leave it or alignment out"))
    if recipe.train.on_policy is not None:
        mistakes.append(
            (("train", "on_policy"), "needs a teacher with the student's tokens; leave alignment out")
        )
    decodes = recipe.architecture != "encoder"
    if not decodes and recipe.data.source != "text":
        mistakes.append((("alignment",), "is for language models; a classifier's classes need none"))
    elif wanted.kind in ("spans", "chunks", "cross_attention") and not decodes:
        mistakes.append((place, f"must be match, shared or reduce for an encoder, found {wanted.kind}"))
    elif wanted.kind == "reduce" and decodes:
        mistakes.append((place, "must be match, shared, spans, chunks or cross_attention, found reduce"))
    terms = [(index, term) for index, term in enumerate(recipe.loss) if term.needs_teacher]
    for index, term in terms:
        if (term.kind == "dual_space") != (wanted.kind == "cross_attention"):
            mistakes.append(
                (
                    ("loss", index),
                    f"{term.kind} cannot be used with alignment.kind {wanted.kind}; cross_attention is for dual_space",
                )
            )
        elif term.kind == "dual_space":
            continue
        elif term.reads_activations:
            mistakes.append(
                (
                    ("loss", index),
                    f"{term.kind} compares models token by token, which alignment says are different; leave one out",
                )
            )
        elif (wanted.kind == "spans") != (term.kind in SORTING):
            sorting = " and ".join(SORTING)
            mistakes.append(
                (
                    ("loss", index),
                    f"must be {sorting} with alignment.kind spans, found {term.kind}"
                    if wanted.kind == "spans"
                    else f"{term.kind} is for alignment.kind spans, found {wanted.kind}",
                )
            )
    temperatures = {getattr(term, "temperature", 1.0) for _, term in terms}
    if wanted.kind == "shared" and len(temperatures) > 1:
        mistakes.append(
            (place, "shared needs terms of one temperature: that of the class of all other tokens")
        )
    return mistakes


def _unaligned_mistakes(recipe: Recipe) -> list[Mistake]:
    """A language model whose new tokenizer cannot be its teacher's, and nothing that says how to compare them."""
    cut = recipe.student.from_teacher
    new = cut is not None and isinstance(cut.vocabulary, StudentVocabulary) and cut.vocabulary.train
    speaks = recipe.architecture != "encoder" or recipe.data.source == "text"
    if not (new and speaks and any(term.needs_teacher for term in recipe.loss)):
        return []
    return [
        (
            ("student", "from_teacher", "vocabulary"),
            "gives the student other tokens than its teacher's; say how to compare them, such as "
            "alignment: {kind: shared}",
        )
    ]


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


def cache_mistakes(
    teacher: TeacherRecipe, loss: tuple[AnyLoss, ...], *, classifies: bool = False
) -> list[Mistake]:
    """A cache that the loss cannot be computed from, or that is of no use."""
    cache = teacher.cache
    at: Place = ("teacher", "cache" if cache else "alone")
    if cache is None and not teacher.alone:
        return []
    if cache is not None and teacher.alone:
        return [
            (("teacher", "alone"), "stands beside cache, which asks about each example alone; leave it out")
        ]
    if classifies:
        return [
            (
                at,
                "is for language models: a classifier's few logits are always computed once and held in memory; "
                "leave it out",
            )
        ]
    terms = [(index, term) for index, term in enumerate(loss) if term.needs_teacher]
    if not terms:
        return [(at, "is of no use: no term of the loss reads a teacher; leave it out")]
    for index, term in terms:
        if term.reads_activations:
            return [
                (
                    at,
                    f"holds no activations, which loss.{index} ({term.kind}) compares; leave one of them out",
                )
            ]
    if cache is None or cache.keep == "full":
        return []
    if teacher.members is not None:
        return [((*at, "keep"), f"must be full with members, whose logits are averaged, found {cache.keep}")]
    return [mistake for index, term in terms for mistake in _sparse_mistakes(cache, index, term, terms[0])]


SPARSE_LOSSES = {"top_k": "ghost_token_kl", "sampled": "sampled_targets"}
SPARSE_COUNTS = {"top_k": "kept", "sampled": "samples"}


def _sparse_mistakes(
    cache: CacheRecipe, index: int, term: AnyLoss, first: tuple[int, AnyLoss]
) -> list[Mistake]:
    """Why a term cannot read a cache of some classes a row."""
    if term.sparse != cache.keep:
        return [
            (
                ("loss", index, "kind"),
                f"must be {SPARSE_LOSSES[cache.keep]} with teacher.cache.keep {cache.keep}, found {term.kind}: use that "
                "one, or keep: full",
            )
        ]
    mistakes: list[Mistake] = []
    what = SPARSE_COUNTS[cache.keep]
    place, wanted = f"loss.{first[0]}.{what}", getattr(first[1], what)
    if cache.count is not None:
        place, wanted = "teacher.cache.count", cache.count
    if getattr(term, what) != wanted:
        mistakes.append(
            (
                ("loss", index, what),
                f"must equal {place} ({wanted}), found {getattr(term, what)}: one cache serves both",
            )
        )
    temperature, found = getattr(first[1], "temperature", 1.0), getattr(term, "temperature", 1.0)
    if found != temperature:
        mistakes.append(
            (
                ("loss", index, "temperature"),
                f"must equal that of loss.{first[0]} ({temperature:g}), found {found:g}: the cache keeps "
                f"probabilities of one temperature; or use keep: full",
            )
        )
    if getattr(term, "power", 1.0) != 1:
        mistakes.append(
            (
                ("loss", index, "power"),
                f"must be 1 with a cached sample, found {getattr(term, 'power', 1.0):g}",
            )
        )
    return mistakes


def bytes_of_row(
    keep: str, classes: int, *, count: int = 0, dtype: str = "float32", element_size: int = 4
) -> int:
    """What one row of a teacher's cache weighs, `element_size` bytes a logit; the files' own headers not counted."""
    if keep == "full":
        return classes * element_size
    kept = min(count, classes) if keep == "top_k" else count
    return kept * ((2 if classes <= UINT16 else 4) + (4 if dtype == "float32" else 2))


UINT16 = 65536  # so many classes are told by two bytes


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
