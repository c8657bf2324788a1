"""The SuperGLUE tasks and plain text: rows to examples, stored answers to scores. Needs no torch."""

from .completions import EncodedCompletions, chat_template_sha256, encode_completions, scored
from .encoding import Encoded, encode
from .formats import Completion, Framed, TextToText
from .leaderboard import LEADERBOARD, Submission, check_submission, load_test, write_submission
from .overlap import Overlap, overlap
from .passages import load_text
from .predictions import read_predictions, write_predictions
from .score import mean_score, score_name, superglue_score
from .sources import TaskData, load_task
from .superglue import DIAGNOSTICS, SUPERGLUE, TASKS
from .task import Answer, Example, Reply, Task
from .text import TASK as PLAIN_TEXT
from .text_to_text import EncodedTextToText, encode_text_to_text

__all__ = [
    "DIAGNOSTICS",
    "LEADERBOARD",
    "PLAIN_TEXT",
    "SUPERGLUE",
    "TASKS",
    "Answer",
    "Completion",
    "Encoded",
    "EncodedCompletions",
    "EncodedTextToText",
    "Example",
    "Framed",
    "Overlap",
    "Reply",
    "Submission",
    "Task",
    "TaskData",
    "TextToText",
    "chat_template_sha256",
    "check_submission",
    "encode",
    "encode_completions",
    "encode_text_to_text",
    "load_task",
    "load_test",
    "load_text",
    "mean_score",
    "overlap",
    "read_predictions",
    "score_name",
    "scored",
    "superglue_score",
    "write_predictions",
    "write_submission",
]
