"""The figures of a run, and the files that show them."""

from distill.report.build import differences
from distill.report.report import Report, read_report, write_report

__all__ = ["Report", "differences", "read_report", "write_report"]
