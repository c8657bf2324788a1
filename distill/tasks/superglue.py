"""The tasks by name: the eight of the score, and those outside it."""

from . import boolq, cb, copa, multirc, record, rte, terra, text, wic, wsc
from .diagnostics import AXB, AXG
from .task import Task

SUPERGLUE = ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc")
DIAGNOSTICS = ("axb", "axg")
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        boolq.TASK,
        cb.TASK,
        copa.TASK,
        multirc.TASK,
        record.TASK,
        rte.TASK,
        wic.TASK,
        wsc.TASK,
        AXB,
        AXG,
        terra.TASK,
        text.TASK,
    )
}
