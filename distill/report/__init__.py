"""The figures of a run, those of several together, and the files that show them."""

from distill.report.build import differences
from distill.report.front import Front, write_front
from distill.report.report import Report, read_report, write_report

__all__ = ["Front", "Report", "differences", "read_report", "write_front", "write_report"]
