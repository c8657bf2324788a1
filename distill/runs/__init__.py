"""From a recipe to a report."""

from distill.runs.run import run

__all__ = ["run"]
