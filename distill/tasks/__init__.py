"""The SuperGLUE tasks and plain text: rows to examples, stored answers to scores. Needs no torch."""

from .encoding import Encoded, encode
from .passages import load_text
from .predictions import read_predictions, write_predictions
from .score import mean_score, score_name, superglue_score
from .sources import TaskData, load_task
from .superglue import DIAGNOSTICS, SUPERGLUE, TASKS
from .task import Answer, Example, Task
from .text import TASK as PLAIN_TEXT

__all__ = [
    "DIAGNOSTICS",
    "PLAIN_TEXT",
    "SUPERGLUE",
    "TASKS",
    "Answer",
    "Encoded",
    "Example",
    "Task",
    "TaskData",
    "encode",
    "load_task",
    "load_text",
    "mean_score",
    "read_predictions",
    "score_name",
    "superglue_score",
    "write_predictions",
]
