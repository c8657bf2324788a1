"""The figures of a run, and the files that show them."""

from distill.report.build import differences
from distill.report.report import Report, read_report, write_report
from distill.report.so_far import so_far

__all__ = ["Report", "differences", "read_report", "so_far", "write_report"]
