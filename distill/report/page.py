"""The report as one HTML file that needs nothing else: no network, no scripts, no fonts."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill.report.charts import (
    COLOURS,
    Line,
    layer_map,
    legend,
    line_chart,
    reliability,
    score_bars,
)
from distill.report.markdown import METRIC_NAMES, ROLES, beginning, role_title, term_text
from distill.report.numbers import Numbers
from distill.report.plot import LOOKS
from distill.tasks import DIAGNOSTICS, TASKS

if TYPE_CHECKING:
    from jinja2 import Template

FIT = re.compile(r"(?P<role>teacher|student|baseline)(?P<member>\d*)-(?P<task>.+?)(-seed(?P<seed>-?\d+))?")


def to_html(report: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> str:
    """`report.html`. What the report does not hold, of a run that is not finished or an older one, is left out.

    Args:
        report: the content of report.json.
        log: the lines of metrics.jsonl.
    """
    roles = [role for role in ROLES if role in report]
    student = report.get("student", {}).get("tasks", {})
    numbers = Numbers(report, log)
    tasks = [task for task in student if task not in DIAGNOSTICS]
    rows = [("all tasks" if len(tasks) > 1 else "score", ("score",))] if len(tasks) != 1 else []
    page = _template().render(
        report=report,
        log=log,
        n=numbers,
        roles=roles,
        tasks=tasks,
        diagnostics=[task for task in student if task in DIAGNOSTICS],
        title_of=lambda task: TASKS[task].title if task in TASKS else task,
        metrics_of=lambda task: [(name, METRIC_NAMES.get(name, name)) for name in TASKS[task].metrics],
        role_title=role_title,
        role_colour={role: look[0] for role, look in LOOKS.items()},
        began=beginning(report["training"]["student_start"])
        if report.get("training", {}).get("student_start")
        else "",
        terms=[term_text(term) for term in report.get("training", {}).get("loss", [])],
        bars=score_bars(numbers, [*rows, *((TASKS[t].title, ("tasks", t)) for t in tasks)], roles),
        role_legend=legend((LOOKS[role][0], role_title(role)) for role in roles),
        calibrated=_calibrated(report),
        curves=_curves(log),
        layers=_layer_maps(report),
    )
    return page + "\n"


@functools.cache
def _template() -> Template:
    from jinja2 import ChainableUndefined, Environment, PackageLoader

    return Environment(
        loader=PackageLoader("distill.report", "."),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html")


def _calibrated(report: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """By task its reliability chart, where there are probabilities."""
    made = []
    for task, by_role in report.get("calibration", {}).get("tasks", {}).items():
        found = {role: by_role[role] for role in ROLES if by_role.get(role)}
        if found:
            made.append((task, reliability(found, TASKS[task].title)))
    return made


def _curves(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By task the charts of its trainings: each term, the gradient's shares, and what was measured in between."""
    fits: dict[str, dict[str, list[tuple[int, Mapping[str, Any]]]]] = {}
    for place, entry in enumerate(log):
        found = FIT.fullmatch(str(entry.get("fit")))
        if found and isinstance(entry.get("step"), int):
            fits.setdefault(found["task"], {}).setdefault(str(entry["fit"]), []).append((place, entry))
    made = []
    for task, by_fit in fits.items():
        names = sorted({key for lines in by_fit.values() for _, entry in lines for key in entry})
        terms = [name for name in names if name.startswith("loss/")]
        charts = [
            line_chart(_lines(by_fit, name), title=name.removeprefix("loss/"))
            for name in [*terms, *(n for n in names if n.startswith("validation/"))]
        ]
        shares = [name for name in names if name.startswith("gradient_share/")]
        student = {fit: lines for fit, lines in by_fit.items() if fit.startswith("student")}
        coloured = [
            (name.removeprefix("gradient_share/"), COLOURS[number % len(COLOURS)])
            for number, name in enumerate(shares)
        ]
        of_terms = [
            Line(term, colour, _points(lines, f"gradient_share/{term}"))
            for term, colour in coloured
            for lines in student.values()
        ]
        last = [
            (fit, name.removeprefix("loss/"), places[-1], name)
            for fit, lines in by_fit.items()
            if not fit.startswith("teacher")
            for name in terms
            if (places := [place for place, entry in lines if name in entry])
        ]
        made.append(
            {
                "task": task,
                "charts": [chart for chart in charts if chart],
                "shares": line_chart(of_terms, title="share of the gradient", percent=True)
                if of_terms
                else "",
                "legend": legend((colour, term) for term, colour in coloured) if of_terms else "",
                "last": last,
            }
        )
    return made


def _lines(fits: Mapping[str, Sequence[tuple[int, Mapping[str, Any]]]], name: str) -> list[Line]:
    found = [
        (role, _points(lines, name)) for role in ROLES for fit, lines in fits.items() if fit.startswith(role)
    ]
    return [Line(role, LOOKS[role][0], points) for role, points in found if points]


def _points(lines: Sequence[tuple[int, Mapping[str, Any]]], name: str) -> list[tuple[float, float]]:
    return [
        (entry["step"], float(entry[name])) for _, entry in lines if isinstance(entry.get(name), int | float)
    ]


def _layer_maps(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Which layer of the teacher each of the student's was; tasks with the same map together."""
    made: list[dict[str, Any]] = []
    for task, shape in report.get("shapes", {}).items():
        start, teacher = shape.get("start", {}), shape.get("teacher") or {}
        title = TASKS[task].title
        parts = [
            (name, start[part], teacher.get(part))
            for part, name in (("layers", "layers"), ("decoder_layers", "decoder layers"))
            if isinstance(start.get(part), list)
        ]
        same = next((each for each in made if each["parts"] == parts and each["shape"] == shape), None)
        if same:
            same["tasks"].append(title)
            continue
        maps = [layer_map(own, total, name) for name, own, total in parts if total and own]
        made.append({"tasks": [title], "task": task, "shape": shape, "parts": parts, "maps": maps})
    return made
