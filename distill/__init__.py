"""distill: compact students by knowledge distillation, and the truth about the result.

Names are loaded when they are used, so that `import distill` is quick and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.engine import Engine as Engine
    from distill.errors import AlignmentError as AlignmentError
    from distill.errors import CheckpointError as CheckpointError
    from distill.errors import DataError as DataError
    from distill.errors import DistillError as DistillError
    from distill.errors import ModelError as ModelError
    from distill.errors import NumericsError as NumericsError
    from distill.errors import PublishError as PublishError
    from distill.errors import RecipeError as RecipeError
    from distill.evaluate import evaluate_model as evaluate_model
    from distill.models import Features as Features
    from distill.models import Student as Student
    from distill.models import Teacher as Teacher
    from distill.publish import publish_run as publish_run
    from distill.recipe import AlignmentRecipe as AlignmentRecipe
    from distill.recipe import CacheRecipe as CacheRecipe
    from distill.recipe import DataRecipe as DataRecipe
    from distill.recipe import FromTeacher as FromTeacher
    from distill.recipe import MemberRecipe as MemberRecipe
    from distill.recipe import NewTokenizer as NewTokenizer
    from distill.recipe import OnPolicy as OnPolicy
    from distill.recipe import Recipe as Recipe
    from distill.recipe import StudentRecipe as StudentRecipe
    from distill.recipe import StudentVocabulary as StudentVocabulary
    from distill.recipe import TeacherRecipe as TeacherRecipe
    from distill.recipe import TrainRecipe as TrainRecipe
    from distill.recipe import read_recipe as read_recipe
    from distill.report import Report as Report
    from distill.report import write_report as write_report
    from distill.runs import run as run

_HOMES = {
    "AlignmentError": "errors",
    "AlignmentRecipe": "recipe",
    "CacheRecipe": "recipe",
    "CheckpointError": "errors",
    "DataError": "errors",
    "DataRecipe": "recipe",
    "DistillError": "errors",
    "Engine": "engine",
    "Features": "models",
    "FromTeacher": "recipe",
    "MemberRecipe": "recipe",
    "ModelError": "errors",
    "NewTokenizer": "recipe",
    "NumericsError": "errors",
    "OnPolicy": "recipe",
    "PublishError": "errors",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "Report": "report",
    "Student": "models",
    "StudentRecipe": "recipe",
    "StudentVocabulary": "recipe",
    "Teacher": "models",
    "TeacherRecipe": "recipe",
    "TrainRecipe": "recipe",
    "evaluate_model": "evaluate",
    "publish_run": "publish",
    "read_recipe": "recipe",
    "run": "runs",
    "write_report": "report",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"distill.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
