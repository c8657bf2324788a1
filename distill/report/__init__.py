"""The figures of a run, and the files that show them."""

from distill.report.report import Report, read_report, write_report

__all__ = ["Report", "read_report", "write_report"]
