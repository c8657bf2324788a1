"""The figures of a run, those of several together, and the files that show them."""

from distill.report.build import differences
from distill.report.front import Front, write_front
from distill.report.report import Report, read_report, write_report
from distill.report.so_far import so_far

__all__ = ["Front", "Report", "differences", "read_report", "so_far", "write_front", "write_report"]
