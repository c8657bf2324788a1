"""A run's files → the report's figures. Scores are recomputed from the stored predictions every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from distill.errors import DistillError
from distill.evaluation import (
    Interval,
    Resampler,
    agreement,
    calibration,
    interval,
    judge,
    ratios,
    task_score,
)
from distill.evaluation.calibration import BINS
from distill.recipe import Recipe, public_recipe, read_recipe, recipe_sha256
from distill.run_folder import ONNX_FILE, Role, RunFolder, fit_name, read_json
from distill.tasks import (
    DIAGNOSTICS,
    PLAIN_TEXT,
    SUPERGLUE,
    TASKS,
    Answer,
    mean_score,
    read_predictions,
    score_name,
)

# A share of truncated validation examples above this is worth a warning.
TRUNCATED_WORTH_SAYING = 0.05
# What measurements.json holds of each model.
COSTS = ("latency_ms", "throughput", "flops", "peak_memory")

Answers = dict[str, list[Sequence[Answer]]]  # by task, then by seed


def build_report(folder: RunFolder) -> dict[str, Any]:
    """The content of `report.json`.

    What it costs to run a model stands in the block of its role: `latency_ms` and, in runs measured since there are
    these, `throughput` (batch, examples_per_second, tokens_per_second), `flops` (per_token, and the tokens of the pass
    they were counted in) and `peak_memory` (bytes: weights, batch_1, batch_32); `measured` says on which task, device,
    processor and threads, with how many passes. A student alone has the student's. `onnx` is there where students were
    exported: by task the file's bytes, sha256, opset and largest difference from torch's logits, and `measured`:
    `latency_ms` of the first task's student in torch and in onnxruntime, both on the CPU.

    Raises:
        DistillError: the run is not finished; the line names the first missing file.
    """
    recipe = read_recipe(folder.recipe, check_surroundings=False)
    data = read_json(folder.data)
    measured = read_json(folder.measurements)
    tasks: list[str] = list(recipe.data.tasks)
    diagnostics = [name for name in DIAGNOSTICS if name in data["tasks"]]
    roles: tuple[Role, ...] = (
        ("teacher", "student", "baseline") if recipe.baseline else ("teacher", "student")
    )
    fits = {role: {task: _fits(folder, recipe, role, task) for task in tasks} for role in roles}
    answers = {role: {task: _answers(folder, recipe, role, task, task) for task in tasks} for role in roles}
    diagnosed = {role: {d: _answers(folder, recipe, role, "rte", d) for d in diagnostics} for role in roles}
    units = {task: data["tasks"][task]["units"] for task in tasks}
    resampler = Resampler(units, len(recipe.seeds))
    portions = {name: facts["portion"] for name, facts in data["tasks"].items() if facts["partial"]}

    report: dict[str, Any] = {
        "name": recipe.name,
        "description": recipe.description,
        "data": {
            "source": data["source"],
            "is_superglue": data["source"] != "demo" and set(tasks) == set(SUPERGLUE) and not portions,
            "score_name": score_name(tasks, data["source"], portions),
            "tasks": data["tasks"],
        },
        "majority": {"score": mean_score({task: data["tasks"][task]["majority"] for task in tasks})},
    }
    for role in roles:
        report[role] = _model(role, recipe, fits[role], answers[role], diagnosed[role], data, resampler) | {
            what: measured[what]["teacher" if role == "teacher" else "student"]
            for what in COSTS
            if what in measured
        }
    teacher = report["teacher"]["score"]["mean"]
    student = report["student"]["score"]["mean"]
    majority = report["majority"]["score"]
    report["compression"] = ratios(report["teacher"], report["student"])
    report["retention"] = student / teacher if teacher else None
    report["retention_above_majority"] = (
        (student - majority) / (teacher - majority) if teacher > majority else None
    )
    if recipe.baseline:
        report["verdict"] = judge(answers["student"], answers["baseline"])
    else:
        report["verdict"] = {
            "gain": None,
            "ci95": None,
            "seeds": len(recipe.seeds),
            "significant": None,
            "sentence": "No verdict: the recipe says baseline: false, so nothing tells what the teacher is worth.",
            "tasks": {},
        }
    told = read_json(folder.excerpts) if folder.excerpts.is_file() else {}
    report["agreement"] = {
        task: _with_excerpts(
            agreement(task, answers["teacher"][task][0], answers["student"][task]), told.get(task, {})
        )
        for task in tasks
    }
    report["calibration"] = {
        "bins": BINS,
        "tasks": {task: {role: calibration(task, answers[role][task]) for role in roles} for task in tasks},
    }
    report["shapes"] = {task: _shapes(fits, task) for task in tasks}
    report["gradient"] = _gradient_before(folder, tasks)
    report["sharing"] = measured["sharing"]
    if "measured" in measured:
        report["measured"] = measured["measured"]
    if onnx := _onnx(folder, tasks):
        report["onnx"] = onnx
    report["training"] = {
        "loss": [asdict(term) for term in recipe.loss],
        "seeds": list(recipe.seeds),
        "seconds": {
            role: round(sum(f["seconds"] for by in fits[role].values() for f in by), 1) for role in roles
        },
        "steps": {role: {task: by[0]["steps"] for task, by in fits[role].items()} for role in roles},
        "student_start": fits["student"][tasks[0]][0]["provenance"],
    }
    report["warnings"] = [*_warnings(report, recipe, tasks), *_preflight_warnings(folder, tasks)]
    report["environment"] = read_json(folder.environment)
    report["recipe_sha256"] = recipe_sha256(recipe)
    report["recipe"] = public_recipe(recipe)
    return report


def differences(folder: RunFolder, recipe: Recipe, task: str) -> dict[str, Any]:
    """Where teacher and student answer a task differently, from a run's stored predictions: `evaluation.agreement`.

    Raises:
        DistillError: their predictions are not all there.
    """
    teacher, student = (_answers(folder, recipe, role, task, task) for role in ("teacher", "student"))
    return agreement(task, teacher[0], student)


def _model(
    role: Role,
    recipe: Recipe,
    fits: Mapping[str, list[dict[str, Any]]],
    answers: Answers,
    diagnosed: Answers,
    data: Mapping[str, Any],
    resampler: Resampler,
) -> dict[str, Any]:
    """One model's block: size, score with error bars, and every task's metrics."""
    first = fits[recipe.data.tasks[0]][0]
    count = 1 if role == "teacher" else len(recipe.seeds)
    per_seed = [
        float(np.mean([task_score(task, answers[task][s]) for task in answers])) for s in range(count)
    ]
    by_task = resampler.scores(answers)
    resampled = np.mean(list(by_task.values()), axis=0)
    overall: Interval = interval(float(np.mean(per_seed)), resampled)
    blocks = {}
    for task, by_seed in [*answers.items(), *diagnosed.items()]:
        metrics = [TASKS[task].score(each) for each in by_seed]
        owner = task if task in answers else "rte"
        blocks[task] = {
            **{name: float(np.mean([m[name] for m in metrics])) for name in TASKS[task].metrics},
            "score": float(np.mean([task_score(task, each) for each in by_seed])),
            "per_seed": {name: [m[name] for m in metrics] for name in TASKS[task].metrics},
            **_language_figures(task, by_seed),
            "n": data["tasks"][task]["units"],
            "truncated": fits[owner][0]["truncated"][task],
            "majority": data["tasks"][task]["majority"],
            "diagnostic": task in DIAGNOSTICS,
        }
        if task in by_task:
            found = interval(blocks[task]["score"], by_task[task])
            blocks[task]["ci95"] = [found.low, found.high]
    names = {
        "teacher": recipe.teacher.name,
        "student": recipe.name,
        "baseline": f"{recipe.name}, labels only",
    }
    return {
        "name": names[role],
        "parameters": first["parameters"],
        "embedding_parameters": first["embedding_parameters"],
        "bytes": first["bytes"],
        "score": {
            "mean": overall.mean,
            "per_seed": per_seed,
            "ci95": [overall.low, overall.high],
            "std": float(np.std(per_seed, ddof=1)) if count > 1 else None,
        },
        "tasks": blocks,
    }


def _language_figures(task: str, by_seed: Sequence[Sequence[Answer]]) -> dict[str, Any]:
    """Of plain text what is said beside the score: perplexity, bits a byte, agreement with the teacher; means of seeds."""
    if task != PLAIN_TEXT.name:
        return {}
    figures = [PLAIN_TEXT.beside(each) for each in by_seed]
    return {"language": {name: float(np.mean([each[name] for each in figures])) for name in figures[0]}}


def _fits(folder: RunFolder, recipe: Recipe, role: Role, task: str) -> list[dict[str, Any]]:
    seeds = recipe.seeds[:1] if role == "teacher" else recipe.seeds
    return [folder.read_fit(fit_name(role, task, seed)) for seed in seeds]


def _answers(folder: RunFolder, recipe: Recipe, role: Role, owner: str, task: str) -> list[Sequence[Answer]]:
    seeds = recipe.seeds[:1] if role == "teacher" else recipe.seeds
    paths = [folder.predictions(fit_name(role, owner, seed), task) for seed in seeds]
    for path in paths:
        if not path.is_file():
            raise DistillError(f"{path}: is missing; `distill run` finishes the run")
    return [read_predictions(path) for path in paths]


def _warnings(report: Mapping[str, Any], recipe: Recipe, tasks: Sequence[str]) -> list[str]:
    """What a reader must know before believing the numbers."""
    lines = []
    if report["data"]["source"] == "demo":
        lines.append(
            "These are distill's built-in demo tasks, not SuperGLUE: the scores say nothing about SuperGLUE."
        )
    for facts in report["data"]["tasks"].values():
        lines += facts["notes"] if facts["partial"] else []
    lines += _overlap_warning(report["data"]["tasks"])
    for task in tasks:
        block = report["teacher"]["tasks"][task]
        majority = 100 * float(np.mean(list(block["majority"].values())))
        if block["score"] <= majority:
            lines.append(
                f"{TASKS[task].title}: the teacher ({block['score']:.1f}) does not beat the majority row "
                f"({majority:.1f}), so there is nothing to distil."
            )
        for role in ("teacher", "student"):
            cut, whole = report[role]["tasks"][task]["truncated"], report["data"]["tasks"][task]["validation"]
            if cut > TRUNCATED_WORTH_SAYING * whole:
                lines.append(
                    f"{TASKS[task].title}: {cut} of {whole} validation examples were cut for the {role}; raise max_length."
                )
    if len(recipe.seeds) == 1:
        lines.append("One seed: how much another seed would change the scores is not known.")
    elif len(recipe.seeds) < 5:
        lines.append(f"{len(recipe.seeds)} seeds: the interval knows little about variation between seeds.")
    started = recipe.student.from_teacher
    if started is not None and (started.weights == "fine_tuned" or recipe.teacher.parts[0].train is None):
        lines.append(
            "Student and baseline both start from the fine-tuned teacher's weights, so the baseline has learnt from "
            "the teacher too and the gain counts the loss alone."
        )
    if recipe.train.on_policy is not None:
        lines.append(
            "The student wrote a part of its training texts itself, which only a teacher can judge. The baseline took as "
            "many steps over the same examples, all of them on the data: the gain is that of both differences."
        )
    return lines


def _overlap_warning(data: Mapping[str, Any]) -> list[str]:
    """One line on all tasks whose validation examples stand in training too."""
    shared = []
    for name, facts in data.items():
        found = facts.get("overlap", {"passages": 0})  # not counted by earlier versions
        if found["passages"]:
            whole = f" ({found['examples']:,} of them as a whole)" if found["examples"] else ""
            shared.append(f"{TASKS[name].title} {found['passages']:,} of {facts['validation']:,}{whole}")
    return (
        [f"Validation examples whose longest text is in training too: {', '.join(shared)}."] if shared else []
    )


def _preflight_warnings(folder: RunFolder, tasks: Sequence[str]) -> list[str]:
    """What was found before the students were trained."""
    if not folder.preflight.is_file():
        return []
    found = read_json(folder.preflight)
    return [line for task in tasks if task in found for line in found[task]["warnings"]]


def _with_excerpts(found: dict[str, Any], excerpts: Mapping[str, str]) -> dict[str, Any]:
    """The differences with the beginning of each example's text, where the run kept it."""
    examples = [
        each | ({"excerpt": excerpts[each["id"]]} if each["id"] in excerpts else {})
        for each in found["examples"]
    ]
    return found | {"examples": examples}


def _shapes(fits: Mapping[Role, Mapping[str, list[dict[str, Any]]]], task: str) -> dict[str, Any]:
    """The sizes of a task's teacher and student, and what the student's parts were before."""
    teacher, student = fits["teacher"][task][0], fits["student"][task][0]
    return {
        "teacher": teacher.get("outline"),
        "student": student.get("outline"),
        "start": student["provenance"],
    }


def _onnx(folder: RunFolder, tasks: Sequence[str]) -> dict[str, Any]:
    """What is known of the students' ONNX files that are there."""
    if not folder.onnx.is_file():
        return {}
    known = read_json(folder.onnx)
    made = {
        task: known["tasks"][task]
        for task in tasks
        if task in known["tasks"] and (folder.model("student", task) / ONNX_FILE).is_file()
    }
    measured = {"measured": known["measured"]} if tasks[0] in made and "measured" in known else {}
    return {"tasks": made, **measured} if made else {}


def _gradient_before(folder: RunFolder, tasks: Sequence[str]) -> dict[str, Any]:
    """By task what each term contributed to the gradient for all weights, on one batch before the training."""
    if not folder.preflight.is_file():
        return {}
    found = read_json(folder.preflight)
    return {task: found[task]["gradient"] for task in tasks if task in found}
