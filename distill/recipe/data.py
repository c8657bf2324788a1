"""What a recipe says of data: tasks and where their examples come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from .fields import check_fields
from .values import PLAIN_TEXT, TASK_NAMES, Count, Location, Revision, Seed, TaskName, duplicates, raise_all

# Characters that a passage of plain text has for each token of max_length: few enough for most tokenizers.
CHARACTERS_A_TOKEN = 3


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
        mistakes = duplicates("tasks", self.tasks)
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
        raise_all(mistakes)
