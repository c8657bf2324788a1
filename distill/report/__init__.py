"""The figures of a run, and the files that show them."""

from distill.report.report import Report, write_report

__all__ = ["Report", "write_report"]
