"""Teachers, students, and what they say about a batch."""

from distill.models.batch import Batch, Features
from distill.models.dropout import set_dropout
from distill.models.layers import evenly_spaced, keep_layers
from distill.models.prediction import Prediction
from distill.models.source import ModelSource, find_model
from distill.models.student import Student
from distill.models.teacher import RememberedTeacher, Teacher

__all__ = [
    "Batch",
    "Features",
    "ModelSource",
    "Prediction",
    "RememberedTeacher",
    "Student",
    "Teacher",
    "evenly_spaced",
    "find_model",
    "keep_layers",
    "set_dropout",
]
