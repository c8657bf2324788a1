"""The report on a terminal: verdict, models, tasks; and the front of several runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distill.progress import losses
from distill.report.markdown import COST_HEADINGS, METRIC_NAMES, ROLES, costs, millions, points, role_title
from distill.tasks import DIAGNOSTICS, TASKS

if TYPE_CHECKING:
    from rich.console import Console

    from distill.report.front import Front
    from distill.report.report import Report


def show(report: Report, console: Console) -> None:
    """Print the tables of report.md with their warnings."""
    from rich.table import Table

    data = report.data
    roles = [role for role in ROLES if role in data]
    # A column a model: a row a model would be wider than most terminals.
    models = Table(
        "", title=f"{data['name']}: {data['data']['score_name']}", title_justify="left", title_style="bold"
    )
    for name in (*(role_title(role) for role in roles), "majority"):
        models.add_column(name, justify="right")

    found = [data[role] for role in roles]
    models.add_row("parameters", *(millions(model["parameters"]) for model in found))
    models.add_row(
        "compression", *(f"{data['teacher']['parameters'] / model['parameters']:.2f}×" for model in found)
    )
    models.add_row("on disk", *(f"{model['bytes'] / 1e6:.1f} MB" for model in found))
    models.add_row("ms, batch 1", *(f"{model['latency_ms']['batch_1']:.1f}" for model in found))
    if "measured" in data:
        for heading, cells in zip(COST_HEADINGS, zip(*map(costs, found), strict=True), strict=True):
            models.add_row(heading, *cells)
    models.add_row(
        "score",
        *(f"{model['score']['mean']:.1f}" for model in found),
        f"{data['majority']['score']:.1f}",
    )
    intervals = [model["score"]["ci95"] for model in found]
    models.add_row("95 % interval", *(f"{low:.1f} to {high:.1f}" for low, high in intervals))
    tasks = Table()
    for heading in (
        "task",
        "metric",
        "n",
        "majority",
        *(role_title(role) for role in roles),
        "gain",
        "95 % interval",
    ):
        tasks.add_column(heading, justify="left" if heading in ("task", "metric") else "right")
    for task, block in data["student"]["tasks"].items():
        metrics = TASKS[task].metrics
        verdict = data["verdict"]["tasks"].get(task)
        tasks.add_row(
            TASKS[task].title + (" (diagnostic)" if task in DIAGNOSTICS else ""),
            " / ".join(METRIC_NAMES[name] for name in metrics),
            str(block["n"]),
            points(block["majority"], metrics),
            *(points(data[role]["tasks"][task], metrics) for role in roles),
            f"{verdict['gain']:+.1f}" if verdict else "",
            f"{verdict['ci95'][0]:+.1f} to {verdict['ci95'][1]:+.1f}" if verdict else "",
        )
    console.print()
    console.print(models)
    console.print(tasks)
    console.print(f"[bold]{report.verdict}[/]", highlight=False)
    for warning in data["warnings"]:
        console.print(f"[yellow]•[/] {warning}", highlight=False)
    console.print(f"report: {report.folder / 'report.md'}", highlight=False, soft_wrap=True)


def show_front(front: Front, console: Console) -> None:
    """Print the models of a front, those that no other beats first, and what was left out."""
    from rich.table import Table

    from distill.report.front import fronts_of

    data = front.data
    table = Table(title=data["score_name"], title_justify="left", title_style="bold")
    for heading in (
        "model",
        "parameters",
        "MFLOPs a token",
        "examples/s",
        "peak memory",
        "score",
        "on the front of",
    ):
        table.add_column(heading, justify="left" if heading in ("model", "on the front of") else "right")
    for model in sorted(data["models"], key=lambda each: not each["fronts"]):
        table.add_row(
            model["name"],
            millions(model["parameters"]),
            f"{model['flops_per_token'] / 1e6:.2f}",
            f"{model['speed']:.1f}",
            f"{model['peak_memory'] / 1e6:.0f} MB",
            f"{model['score']['mean']:.1f}",
            fronts_of(model, data),
            style="" if model["fronts"] else "dim",
        )
    console.print()
    console.print(table)
    for line in data["left_out"]:
        console.print(f"[yellow]•[/] {line}", highlight=False)
    console.print(f"front: {front.folder / 'front.png'}", highlight=False, soft_wrap=True)


def show_so_far(found: Mapping[str, Any], console: Console) -> None:
    """Print how far an unfinished run is: a line a fit, and what its scores are worth."""
    from rich.table import Table

    done, whole = found["fits"]["done"], found["fits"]["of"]
    table = Table(
        title=f"{found['name']}: unfinished, {done} of {whole} fits", title_justify="left", title_style="bold"
    )
    for heading in ("fit", "score", "majority", "step", "loss", "s"):
        table.add_column(heading, justify="left" if heading in ("fit", "loss") else "right")
    for row in found["rows"]:
        figures = row.get("figures", {})
        majority = found["tasks"][row["task"]].get("majority")
        table.add_row(
            row["fit"],
            f"{row['score']:.1f}" if row["done"] else "under way" if figures else "",
            f"{majority:.1f}" if majority is not None and row["done"] else "",
            str(figures["step"]) if figures else "",
            losses(figures) if figures else "",
            f"{row['seconds']:.0f}" if row["done"] else "",
        )
    console.print()
    console.print(table)
    missing = "the models have not been measured yet" if done == whole else "the other fits are missing"
    console.print(
        f"No verdict: {missing}. `distill run` with the same recipe and folder goes on.", highlight=False
    )
