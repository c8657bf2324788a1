"""What a recipe says of training: steps, batches, rates, and a student's own texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from .fields import check_fields, fields_as_dict_type
from .values import Count, TaskName, raise_all
from .wording import FieldMistakes, Mistake

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

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
        per_device_train_batch_size: Examples a forward pass on each device; where memory runs out half as many, the batch
            and its gradient staying the same. Default 16.
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
        raise_all(mistakes)

    def for_task(self, name: TaskName) -> TrainRecipe:
        """This recipe with the overrides of one task applied and `per_task` empty."""
        overrides: Mapping[str, Any] = self.per_task.get(name, {})
        return dataclasses.replace(self, per_task={}, **overrides)
