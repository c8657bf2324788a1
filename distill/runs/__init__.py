"""From a recipe to a report."""

from distill.runs.run import run, write_teacher_caches

__all__ = ["run", "write_teacher_caches"]
