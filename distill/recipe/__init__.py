"""Recipes: what to train, on what, from whom; read from YAML or written in Python. Loads no torch."""

from .alignment import AlignmentRecipe
from .data import DataRecipe
from .reader import read_recipe
from .schema import Recipe
from .shipped import recipe_text, shipped_recipes
from .starting_point import NewTokenizer
from .student import FromTeacher, StudentRecipe, StudentVocabulary
from .teacher import CacheRecipe, MemberRecipe, TeacherRecipe
from .training import OnPolicy, TrainRecipe
from .values import Architecture, TaskName
from .writer import public_recipe, recipe_sha256, write_recipe

__all__ = [
    "AlignmentRecipe",
    "Architecture",
    "CacheRecipe",
    "DataRecipe",
    "FromTeacher",
    "MemberRecipe",
    "NewTokenizer",
    "OnPolicy",
    "Recipe",
    "StudentRecipe",
    "StudentVocabulary",
    "TaskName",
    "TeacherRecipe",
    "TrainRecipe",
    "public_recipe",
    "read_recipe",
    "recipe_sha256",
    "recipe_text",
    "shipped_recipes",
    "write_recipe",
]
