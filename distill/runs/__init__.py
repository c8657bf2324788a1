"""From a recipe to a report."""

from distill.runs.dry_run import dry_run
from distill.runs.run import run

__all__ = ["dry_run", "run"]
