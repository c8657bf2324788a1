"""The SuperGLUE tasks: rows to examples, stored answers to scores. Needs no torch."""

from .encoding import Encoded, encode
from .predictions import read_predictions, write_predictions
from .score import score_name, superglue_score
from .sources import TaskData, load_task
from .superglue import DIAGNOSTICS, SUPERGLUE, TASKS
from .task import Answer, Example, Task

__all__ = [
    "DIAGNOSTICS",
    "SUPERGLUE",
    "TASKS",
    "Answer",
    "Encoded",
    "Example",
    "Task",
    "TaskData",
    "encode",
    "load_task",
    "read_predictions",
    "score_name",
    "superglue_score",
    "write_predictions",
]
