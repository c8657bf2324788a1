"""The command line. `commands` are thin; `screen` says what they show, `ending` how a process ends, `stopping` what signals do."""

from distill.cli.commands import app
from distill.cli.ending import main

__all__ = ["app", "main"]
