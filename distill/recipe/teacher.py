"""What a recipe says of the teacher, of several, and of what they said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from .fields import check_fields
from .paths import public_name
from .starting_point import NewTokenizer, config_mistakes, model_mistakes
from .training import TrainRecipe
from .values import Count, Key, Location, Revision, Scalar, Seed, TaskName, raise_all
from .wording import Mistake


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
        """What a reader knows it by, without the folders of this machine."""
        return public_name(self.model) if self.model else f"a new {(self.config or {}).get('model_type')}"

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
        raise_all(self._mistakes())

    def _mistakes(self) -> list[Mistake]:
        mistakes: list[Mistake] = []
        if self.model is not None and self.config is not None:
            mistakes.append((("config",), "stands beside model; keep one of them"))
        if self.model is None and self.config is None:
            mistakes.append(((), "must have one of model and config, found none"))
        if self.model is not None:
            mistakes += model_mistakes(self.model, self.revision)
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
            mistakes += config_mistakes(self.config)
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
        raise_all(mistakes)


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
