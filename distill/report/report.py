"""A run's report: the figures, and the files that show them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.disk import refuse_links_out
from distill.report.build import build_report
from distill.report.markdown import to_markdown
from distill.report.page import to_html
from distill.report.plot import plot_compression
from distill.run_folder import RunFolder, read_json, write_json, write_text


@dataclass(frozen=True)
class Report:
    """What a run found.

    Attributes:
        folder: where report.json, report.html, report.md and compression.png stand.
        data: the content of report.json.
    """

    folder: Path
    data: dict[str, Any]

    @property
    def verdict(self) -> str:
        """Whether the teacher helped, in one sentence with its interval."""
        return str(self.data["verdict"]["sentence"])

    def score(self, role: str) -> float:
        """The mean score of `teacher`, `student` or `baseline`, in points."""
        return float(self.data[role]["score"]["mean"])

    def to_markdown(self) -> str:
        """The text of report.md."""
        return to_markdown(self.data)


def read_report(folder: str | Path) -> Report:
    """The report as it was last written."""
    run_folder = RunFolder(folder)
    return Report(run_folder.path, read_json(run_folder.report))


def write_report(folder: str | Path) -> Report:
    """Recompute a finished run's report from its stored predictions and write its four files.

    Raises:
        DistillError: the run is not finished, or one of its files is damaged.
        ResourceError: one of the four cannot be written; an older one stands.
    """
    run_folder = RunFolder(folder)
    refuse_links_out(run_folder.path)
    report = Report(run_folder.path, build_report(run_folder))
    plot_compression(report.data, run_folder.path / "compression.png")
    write_text(run_folder.path / "report.md", report.to_markdown())
    write_text(run_folder.path / "report.html", to_html(report.data, run_folder.read_metrics()))
    write_json(run_folder.report, report.data)
    return report
