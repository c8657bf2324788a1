"""Several runs in one picture: what score their models reach, and what each costs to keep and to run."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from distill.errors import DataError, MismatchError
from distill.report.build import build_report
from distill.report.pareto import pareto
from distill.report.published import published_for
from distill.run_folder import RunFolder, write_json, write_text
from distill.tasks import SUPERGLUE, TASKS

# What is compared with the score, and whether more of it is better.
AXES = {
    "parameters": False,
    "non_embedding_parameters": False,
    "bytes": False,
    "flops_per_token": False,
    "speed": True,
    "peak_memory": False,
}


@dataclass(frozen=True)
class Front:
    """What several runs reach together.

    Attributes:
        folder: where front.json, front.csv, front.md, front.png and front.svg stand.
        data: the content of front.json.
    """

    folder: Path
    data: dict[str, Any]

    def to_markdown(self) -> str:
        """The text of front.md."""
        return _markdown(self.data)


def finished_runs(folders: Iterable[str | Path]) -> tuple[list[RunFolder], list[str]]:
    """The finished runs among folders, and a line for each of the others.

    Raises:
        DataError: none is finished.
    """
    found, left_out = [], []
    for path in folders:
        folder = RunFolder(path)
        if not folder.recipe.is_file():
            left_out.append(f"{folder.path}: is no run's folder, left out")
        elif not folder.measurements.is_file():
            left_out.append(f"{folder.path}: is not finished, left out; `distill run` finishes it")
        else:
            found.append(folder)
    if not found:
        raise DataError("\n".join([*left_out, "report: none of these is a finished run's folder"]))
    return found, left_out


def write_front(folders: Iterable[str | Path], out: str | Path, *, baselines: bool = False) -> Front:
    """Merge finished runs on the same tasks into front.json, front.csv, front.md, front.png and front.svg.

    Args:
        folders: of runs; what is no finished run is left out, and front.json says so.
        out: where to write.
        baselines: also show each student as it is without its teacher.

    Raises:
        MismatchError: the runs cannot be compared; a line each says which and why.
        DataError: no run is finished, or one was measured by a version that measured less.
        ResourceError: a file cannot be written.
    """
    from distill.report.front_plot import plot_front

    runs, left_out = finished_runs(folders)
    front = Front(Path(out), build_front(runs, baselines=baselines) | {"left_out": left_out})
    plot_front(front.data, front.folder)
    write_text(front.folder / "front.csv", _csv(front.data))
    write_text(front.folder / "front.md", front.to_markdown())
    write_json(front.folder / "front.json", front.data)
    return front


def build_front(runs: Sequence[RunFolder], *, baselines: bool = False) -> dict[str, Any]:
    """The content of front.json, without what was left out.

    `models` holds one entry a model: its name, role and run, its figures as the run's report.json has them, `speed`
    (examples a second at batch 32, see `_scaled`), its score, and on which fronts it stands; `fronts` the names by axis,
    each against the score, and of score, speed and memory together; `published` what others reached.

    Raises:
        MismatchError: the runs cannot be compared.
        DataError: a run was measured by a version that measured less.
    """
    reports = {str(run.path): build_report(run) for run in runs}
    lacking = [path for path, report in reports.items() if "measured" not in report]
    if lacking:
        raise DataError(
            "\n".join(
                f"{path}: was measured without FLOPs, throughput and memory; add --measure, or run "
                "`distill run` again in this folder"
                for path in lacking
            )
        )
    _refuse_different(reports)
    models = _models(reports, baselines=baselines)
    first = next(iter(reports.values()))
    tasks = [task for task in first["student"]["tasks"] if not first["student"]["tasks"][task]["diagnostic"]]
    fronts = {axis: _on_front(models, (axis,)) for axis in AXES}
    fronts["score_speed_memory"] = _on_front(models, ("speed", "peak_memory"))
    for model in models:
        model["fronts"] = [axis for axis, names in fronts.items() if model["name"] in names]
    real = first["data"]["source"] != "demo" and set(tasks) <= set(SUPERGLUE)
    return {
        "score_name": first["data"]["score_name"],
        "tasks": tasks,
        "runs": list(reports),
        "measured": first["measured"],
        "majority": first["majority"]["score"],
        "models": models,
        "fronts": fronts,
        "published": [
            {
                "name": row.name,
                "split": row.split,
                "score": row.score(tasks),
                "tasks": {task: dict(row.metrics[task]) for task in tasks},
                "citation": row.citation,
            }
            for row in (published_for(tasks) if real else ())
        ],
    }


def _refuse_different(reports: Mapping[str, Mapping[str, Any]]) -> None:
    """A score is only more or less than another on the same examples, and a time only than one of the same machine."""
    (first, reference), *others = reports.items()
    problems = []
    for path, report in others:
        mine, theirs = _scored(report), _scored(reference)
        if list(mine) != list(theirs):
            problems.append(
                f"{path}: its tasks are {', '.join(mine)}; those of {first} are {', '.join(theirs)}"
            )
            continue
        for task in mine:
            if mine[task] != theirs[task]:
                problems.append(
                    f"{path}: its metrics of {TASKS[task].title} are {', '.join(mine[task])}; those of {first} "
                    f"are {', '.join(theirs[task])}"
                )
            own, their = (each["data"]["tasks"][task] for each in (report, reference))
            if own["sha256"] != their["sha256"]:
                amount = [each["portion"] or f"{each['train']:,} training and {each['validation']:,} validation examples" for each in (own, their)]  # fmt: skip
                problems.append(
                    f"{path}: its data of {TASKS[task].title} ({amount[0]}) is not that of {first} ({amount[1]})"
                )
        for what in ("task", "device", "processor", "threads"):
            if report["measured"][what] != reference["measured"][what]:
                problems.append(
                    f"{path}: was measured with {what} {report['measured'][what]}, {first} with "
                    f"{reference['measured'][what]}; --measure measures both here"
                )
    if problems:
        raise MismatchError("\n".join(problems))


def _scored(report: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The tasks of the score and their metrics."""
    return {
        task: tuple(block["majority"])
        for task, block in sorted(report["student"]["tasks"].items())
        if not block["diagnostic"]
    }


def _models(reports: Mapping[str, Mapping[str, Any]], *, baselines: bool) -> list[dict[str, Any]]:
    """One entry a model: a teacher that several runs share is one."""
    entries: list[dict[str, Any]] = []
    teachers: dict[str, dict[str, Any]] = {}
    by_teacher: dict[str, list[tuple[Mapping[str, Any], list[dict[str, Any]]]]] = {}
    for path, report in reports.items():
        known = repr(
            [report["teacher"][what] for what in ("name", "parameters", "bytes", "flops", "score", "tasks")]
        )
        if known not in teachers:
            teachers[known] = _entry(report, "teacher", path)
            entries.append(teachers[known])
        mine = [
            _entry(report, role, path)
            for role in ("student", *(("baseline",) if baselines else ()))
            if role in report
        ]
        entries += mine
        by_teacher.setdefault(known, []).append((report, mine))
    for known, group in by_teacher.items():
        _scale(teachers[known], group)
    _name(entries)
    return sorted(entries, key=lambda each: -each["parameters"])


def _scale(
    teacher: dict[str, Any], group: Sequence[tuple[Mapping[str, Any], Sequence[dict[str, Any]]]]
) -> None:
    """Speeds of runs that have one teacher, as if that teacher had been equally fast in each.

    Every run measures student and teacher in turns. Where the machine was busier the teacher was slower too.
    """
    usual = statistics.median(report["teacher"]["throughput"]["examples_per_second"] for report, _ in group)
    teacher["speed"] = usual
    for report, entries in group:
        then = report["teacher"]["throughput"]["examples_per_second"]
        for entry in entries:
            entry["speed"] = entry["throughput"]["examples_per_second"] * usual / then


def _entry(report: Mapping[str, Any], role: str, path: str) -> dict[str, Any]:
    model = report[role]
    return {
        "name": model["name"],
        "role": role,
        "run": path,
        "parameters": model["parameters"],
        "non_embedding_parameters": model["parameters"] - model["embedding_parameters"],
        "bytes": model["bytes"],
        "flops_per_token": model["flops"]["per_token"],
        "peak_memory": model["peak_memory"]["batch_32"],
        "latency_ms": model["latency_ms"],
        "throughput": model["throughput"],
        "score": model["score"],
        "tasks": {
            task: {name: block[name] for name in block["majority"]}
            for task, block in model["tasks"].items()
            if not block["diagnostic"]
        },
        "loss": ""
        if role != "student"
        else " + ".join(f"{term['weight']:g} {term['kind']}" for term in report["training"]["loss"]),
        "gain": report["verdict"]["gain"] if role == "student" else None,
    }


def _name(entries: Sequence[dict[str, Any]]) -> None:
    """Names that tell the models apart, and labels without what all students' names begin with."""
    twice = Counter(each["name"] for each in entries)
    for each in entries:
        if twice[each["name"]] > 1:
            each["name"] = f"{each['name']} ({Path(each['run']).name})"
    count = 0
    again = Counter(each["name"] for each in entries)
    for each in entries:
        if again[each["name"]] > 1:
            count += 1
            each["name"] += f" #{count}"
    students = [each["name"] for each in entries if each["role"] != "teacher"]
    common = ""
    if len(students) > 1:
        parts = zip(*(re.split(r"(?<=[-_ /.])", name)[:-1] for name in students), strict=False)
        common = "".join(same[0] for same in takewhile(lambda part: len(set(part)) == 1, parts))
    for each in entries:
        name = each["name"] if each["role"] == "teacher" else each["name"].removeprefix(common)
        each["label"] = name.removeprefix("package:") or each["name"]


def _on_front(models: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> list[str]:
    points = [
        (model["score"]["mean"], *(model[axis] if AXES[axis] else -model[axis] for axis in axes))
        for model in models
    ]
    return [model["name"] for model, best in zip(models, pareto(points), strict=True) if best]


def _csv(data: Mapping[str, Any]) -> str:
    """One line a model as report.json has it, then the published rows with their citations."""
    tasks = [(task, name) for task in data["tasks"] for name in TASKS[task].metrics]
    heads = [
        "name", "role", "run", "score", "score_low", "score_high", "score_std", "seeds",
        "parameters", "non_embedding_parameters", "bytes", "flops_per_token",
        "latency_ms_batch_1", "latency_ms_batch_32", "examples_per_second", "tokens_per_second", "speed", "peak_memory",
        *(f"{task}_{name}" for task, name in tasks), "loss", "gain", "fronts", "citation",
    ]  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, lineterminator="\n")
    writer.writeheader()
    for model in data["models"]:
        score = model["score"]
        writer.writerow(
            {key: model[key] for key in heads if key in model}
            | {
                "score": score["mean"],
                "score_low": score["ci95"][0],
                "score_high": score["ci95"][1],
                "score_std": score["std"],
                "seeds": len(score["per_seed"]),
                "latency_ms_batch_1": model["latency_ms"]["batch_1"],
                "latency_ms_batch_32": model["latency_ms"]["batch_32"],
                "examples_per_second": model["throughput"]["examples_per_second"],
                "tokens_per_second": model["throughput"]["tokens_per_second"],
                "fronts": " ".join(model["fronts"]),
            }
            | {f"{task}_{name}": model["tasks"][task][name] for task, name in tasks}
        )
    for row in data["published"]:
        writer.writerow(
            {
                "name": row["name"],
                "role": f"published, {row['split']}",
                "score": row["score"],
                "citation": row["citation"],
            }
            | {f"{task}_{name}": row["tasks"][task][name] / 100 for task, name in tasks}
        )
    return text.getvalue()


def footnotes(data: Mapping[str, Any]) -> list[str]:
    """What one must know to read the front."""
    measured = data["measured"]
    passes = " and ".join(
        f"{count} ({measured['warm_up'][key]} to warm up) at {key.replace('_', ' ')}"
        for key, count in measured["passes"].items()
    )
    seeds = sorted({len(m["score"]["per_seed"]) for m in data["models"] if m["role"] != "teacher"})
    lines = [
        f"Score: {data['score_name']}; 95 % interval over validation examples"
        + (f" and {' or '.join(map(str, seeds))} seeds" if max(seeds) > 1 else "; one seed")
        + ". The front is that of the means.",
        f"Speed: examples a second at batch {data['models'][0]['throughput']['batch']} on {TASKS[measured['task']].title}, "
        f"{measured['threads']} thread{'s' if measured['threads'] != 1 else ''}, {measured['processor']}, {measured['device']}; medians of "
        f"{passes}; scaled as if a teacher that runs share had been equally fast in each. Memory: peak at batch 32, "
        f"weights and activations.",
        f"Majority class of this data: {data['majority']:.1f}.",
    ]
    for citation in dict.fromkeys(row["citation"] for row in data["published"]):
        rows = [row for row in data["published"] if row["citation"] == citation]
        lines.append(
            ", ".join(f"{row['name']} {row['score']:.1f} ({row['split']})" for row in rows)
            + f": {citation}; not measured here."
        )
    return lines


def fronts_of(model: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The fronts that a model stands on, in words."""
    if len(model["fronts"]) == len(data["fronts"]):
        return "all"
    words = {
        "non_embedding_parameters": "parameters without embeddings",
        "score_speed_memory": "speed and memory",
    }
    return ", ".join(words.get(name, name.replace("_", " ")) for name in model["fronts"])


def _markdown(data: Mapping[str, Any]) -> str:
    lines = [
        "# Pareto front",
        "",
        "![score against parameters, speed and memory](front.png)",
        "",
        "| model | score (95 % interval) | parameters | without embeddings | on disk | MFLOPs a token | ms, batch 1 | examples/s | peak memory | on the front of |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for model in data["models"]:
        low, high = model["score"]["ci95"]
        lines.append(
            f"| {model['name']}{' (teacher)' if model['role'] == 'teacher' else ''} "
            f"| {model['score']['mean']:.1f} ({low:.1f} to {high:.1f}) | {model['parameters'] / 1e6:.2f} M "
            f"| {model['non_embedding_parameters'] / 1e6:.2f} M | {model['bytes'] / 1e6:.1f} MB "
            f"| {model['flops_per_token'] / 1e6:.2f} | {model['latency_ms']['batch_1']:.1f} | {model['speed']:.1f} "
            f"| {model['peak_memory'] / 1e6:.0f} MB | {fronts_of(model, data)} |"
        )
    lines += ["", *(f"- {line}" for line in footnotes(data)), *(f"- {line}" for line in data["left_out"])]
    return "\n".join(lines) + "\n"
