"""From a recipe to a report."""

from distill.runs.run import measure_again, run, write_teacher_caches

__all__ = ["measure_again", "run", "write_teacher_caches"]
