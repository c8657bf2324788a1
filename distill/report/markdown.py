"""The report as tables a person reads in a minute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill.tasks import DIAGNOSTICS, TASKS

ROLES = ("teacher", "student", "baseline")
METRIC_NAMES = {
    "accuracy": "acc",
    "macro_f1": "F1",
    "f1a": "F1a",
    "em": "EM",
    "f1": "F1",
    "matthews": "MCC",
    "gender_parity": "GPS",
    "byte_probability": "P(byte)",
}

COST_HEADINGS = ("MFLOPs a token", "examples/s", "peak memory")


def to_markdown(report: Mapping[str, Any]) -> str:
    """`report.md`: verdict first, then compression, tasks, warnings, and how it was made."""
    parts = [
        f"# {report['name']}",
        report["description"],
        f"**{report['verdict']['sentence']}**",
        _kept(report),
        "![compression against score](compression.png)",
        _models_table(report),
        onnx_tables(report),
        _tasks_table(report),
        _language_table(report),
        _diagnostics_table(report),
        _sharing(report),
        "## Read this before believing the numbers\n\n"
        + "\n".join(f"- {line}" for line in report["warnings"])
        if report["warnings"]
        else "",
        how_it_was_made(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def points(values: Mapping[str, float], metrics: Sequence[str]) -> str:
    """`78.6 / 54.3`: a task's metrics in points, in the official order."""
    return " / ".join(f"{100 * values[name]:.1f}" for name in metrics)


def costs(model: Mapping[str, Any]) -> tuple[str, str, str]:
    """What a model costs to run, as `COST_HEADINGS` says; empty where an early version did not measure it."""
    if "flops" not in model:
        return "", "", ""
    return (
        f"{model['flops']['per_token'] / 1e6:.2f}",
        f"{model['throughput']['examples_per_second']:.1f}",
        f"{model['peak_memory']['batch_32'] / 1e6:.0f} MB",
    )


def _kept(report: Mapping[str, Any]) -> str:
    compression, teacher, student = report["compression"], report["teacher"], report["student"]
    above = report["retention_above_majority"]
    kept = "" if report["retention"] is None else f" and keeps {100 * report['retention']:.1f} % of its score"
    beyond = "" if above is None else f" ({100 * above:.0f} % of what the teacher has above the majority row)"
    return (
        f"The student has {millions(student['parameters'])} parameters to the teacher's {millions(teacher['parameters'])}: "
        f"{compression['parameters']:.2f}× smaller, {compression['non_embedding_parameters']:.2f}× without embeddings, "
        f"{compression['latency']['batch_1']:.2f}× faster at batch 1{kept}{beyond}."
    )


def _models_table(report: Mapping[str, Any]) -> str:
    rows = []
    teacher = report["teacher"]
    measured = "measured" in report
    for role in (role for role in ROLES if role in report):
        model = report[role]
        score = model["score"]
        low, high = score["ci95"]
        ratio = teacher["parameters"] / model["parameters"]
        body = model["parameters"] - model["embedding_parameters"]
        seeds = "" if score["std"] is None else f", ±{score['std']:.1f} over seeds"
        rows.append(
            f"| {role_title(role)} | {millions(model['parameters'])} | {millions(body)} | {ratio:.2f}× "
            f"| {model['bytes'] / 1e6:.1f} MB | {model['latency_ms']['batch_1']:.1f} | {model['latency_ms']['batch_32']:.1f} "
            f"{''.join(f'| {each} ' for each in costs(model)) if measured else ''}"
            f"| **{score['mean']:.1f}** ({low:.1f} to {high:.1f}{seeds}) |"
        )
    more = COST_HEADINGS if measured else ()
    rows.append(f"| majority |{' |' * (6 + len(more))} {report['majority']['score']:.1f} |")
    head = (
        "| model | parameters | without embeddings | compression | on disk | ms, batch 1 | ms, batch 32 | "
        f"{''.join(f'{each} | ' for each in more)}score (95 % interval) |\n|---|{'--:|' * (7 + len(more))}"
    )
    return f"Score: {report['data']['score_name']}.\n\n{head}\n" + "\n".join(rows)


def onnx_tables(report: Mapping[str, Any], only: str | None = None) -> str:
    """The students' ONNX files, and onnxruntime's speed beside torch's; nothing where there are none.

    Args:
        report: the content of report.json.
        only: a task, whose file alone is told of.
    """
    found = report.get("onnx", {"tasks": {}})
    rows = [
        f"| {TASKS[task].title} | {file['bytes'] / 1e6:.1f} MB | {file['opset']} | {file['max_difference']:.1e} "
        f"| {file['max_logit']:.1f} | {file['batches']} |"
        for task, file in found["tasks"].items()
        if only in (None, task)
    ]
    if not rows:
        return ""
    text = (
        "The student is also `onnx/model.onnx`, which onnxruntime runs without torch. Its "
        "logits were compared with torch's on batches of several shapes, with padding.\n\n"
        "| ONNX | on disk | opset | largest difference | of logits up to | batches |\n|---|--:|--:|--:|--:|--:|\n"
        + "\n".join(rows)
    )
    if "measured" not in found:
        return text
    measured = found["measured"]
    times = measured["latency_ms"]
    return (
        f"{text}\n\n| {TASKS[measured['task']].title} student on the CPU | ms, batch 1 | ms, batch 32 |\n|---|--:|--:|\n"
        + "\n".join(
            f"| {name} {measured['versions'][name]} | {times[name]['batch_1']:.2f} | {times[name]['batch_32']:.1f} |"
            for name in ("torch", "onnxruntime")
        )
        + f"\n\nMedians of {measured['passes']['batch_1']} and {measured['passes']['batch_32']} passes of "
        f"{times['torch']['tokens_1']} and {times['torch']['tokens_32']} tokens, both taking turns, "
        f"{measured['threads']} thread{'s' if measured['threads'] != 1 else ''}, {measured['processor']}."
    )


def _tasks_table(report: Mapping[str, Any]) -> str:
    roles = [role for role in ROLES if role in report]
    lines = [
        "| task | metric | n | majority | "
        + " | ".join(role_title(role) for role in roles)
        + " | gain (95 % interval) | cut |",
        "|---|---|--:|--:|" + "--:|" * (len(roles) + 2),
    ]
    for task, block in report["student"]["tasks"].items():
        if task in DIAGNOSTICS:
            continue
        metrics = TASKS[task].metrics
        cells = [points(report[r]["tasks"][task], metrics) for r in roles]
        verdict = report["verdict"]["tasks"].get(task)
        gain = (
            ""
            if verdict is None
            else f"{verdict['gain']:+.1f} ({verdict['ci95'][0]:+.1f} to {verdict['ci95'][1]:+.1f})"
        )
        lines.append(
            f"| {TASKS[task].title} | {' / '.join(METRIC_NAMES[m] for m in metrics)} | {block['n']} "
            f"| {points(block['majority'], metrics)} | {' | '.join(cells)} | {gain} | {block['truncated']} |"
        )
    return "\n".join(lines)


def _language_table(report: Mapping[str, Any]) -> str:
    if "text" not in report["student"]["tasks"]:
        return ""
    rows = []
    for role in (role for role in ROLES if role in report):
        found = report[role]["tasks"]["text"]["language"]
        agreement = f"{100 * found['agreement']:.1f} %" if "agreement" in found else ""
        rows.append(
            f"| {role_title(role)} | {found['perplexity']:.2f} | {found['bits_per_byte']:.3f} | {agreement} |"
        )
    return (
        "P(byte) is the geometric mean of the probability that a model gave to each byte of the validation passages, "
        "in percent: it compares models whatever their tokens, which perplexity does not. Agreement is the share of "
        "tokens on which a model's first choice is the teacher's.\n\n"
        "| model | perplexity | bits a byte | agreement |\n|---|--:|--:|--:|\n" + "\n".join(rows)
    )


def _diagnostics_table(report: Mapping[str, Any]) -> str:
    found = [task for task in report["student"]["tasks"] if task in DIAGNOSTICS]
    if not found:
        return ""
    roles = [role for role in ROLES if role in report]
    lines = [
        "Diagnostics, answered by the RTE models and not part of the score:\n",
        "| diagnostic | metric | n | " + " | ".join(role_title(role) for role in roles) + " |",
        "|---|---|--:|" + "--:|" * len(roles),
    ]
    for task in found:
        metrics = TASKS[task].metrics
        cells = [points(report[r]["tasks"][task], metrics) for r in roles]
        lines.append(
            f"| {TASKS[task].title} | {' / '.join(METRIC_NAMES[m] for m in metrics)} "
            f"| {report['student']['tasks'][task]['n']} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _sharing(report: Mapping[str, Any]) -> str:
    sharing = report["sharing"]
    if sharing["models"] < 2:
        return ""
    one = sharing["parameters"] / sharing["models"]
    return (
        f"The {sharing['models']} task students hold {millions(sharing['parameters'])} parameters together. "
        f"{millions(sharing['common'])} of each student's {millions(one)} are bitwise the same in all of them (mostly embeddings of "
        f"words that training never met): stored once, the students would need "
        f"{millions(sharing['parameters'] - (sharing['models'] - 1) * sharing['common'])}."
    )


def how_it_was_made(report: Mapping[str, Any]) -> str:
    """Loss, time, machine, versions and the recipe's digest."""
    environment, training = report["environment"], report["training"]
    loss = " + ".join(term_text(term) for term in training["loss"])
    seconds = ", ".join(f"{role} {s:.0f} s" for role, s in training["seconds"].items())
    versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    began = beginning(training["student_start"])
    return (
        "## How it was made\n\n"
        f"- Loss: {loss}; seeds {', '.join(map(str, training['seeds']))}; student started from {began}.\n"
        f"- Training and evaluation time: {seconds}.\n"
        "- The baseline is the same student with the same initial weights, data order and steps, trained on labels alone. "
        "The last weights are scored; no checkpoint was chosen by its validation score.\n"
        f"{_measured(report)}"
        f"- {environment['processor']}, {environment['cores']} cores, {environment['torch_threads']} threads, "
        f"device {environment['device']}; Python {environment['python']}; distill {environment['distill']}"
        f"{' at ' + environment['commit'][:12] if environment['commit'] else ''}; {versions}.\n"
        f"- Recipe sha256 {report['recipe_sha256'][:16]}…; made again by `distill run recipe.yaml --out FOLDER`."
    )


def beginning(start: Mapping[str, Any]) -> str:
    """What a student started from, in words."""
    narrower = "".join(
        f", {start[part]:,} {name if start[part] != 1 else name[:-1]}"
        for part, name in (
            ("tokens", "tokens"),
            ("pieces", "new tokens"),
            ("channels", "channels"),
            ("heads", "heads"),
            ("neurons", "neurons"),
        )
        if part in start
    )
    began = (
        f"layers {', '.join(map(str, start['layers']))}{narrower} of {start['teacher']}"
        if "layers" in start
        else start.get("model", "random weights")
    )
    if adapter := start.get("adapter"):
        began += (
            f"; a {adapter['peft_type']} adapter was trained, {adapter['trainable_parameters']:,} of "
            f"{adapter['training_parameters']:,} parameters, exported {adapter['exported']}"
        )
    return began


def _measured(report: Mapping[str, Any]) -> str:
    """The conditions of the figures of speed and memory."""
    if "measured" not in report:
        return (
            "- FLOPs, throughput and memory were not measured yet; `distill report RUN --measure`, or `distill run` again in this "
            "folder, measures them.\n"
        )
    found = report["measured"]
    one, many = report["student"]["latency_ms"], report["student"]["throughput"]["batch"]
    return (
        f"- Speed: median of {found['passes']['batch_1']} passes at batch 1 ({one['tokens_1']} tokens) and of "
        f"{found['passes'][f'batch_{many}']} at batch {many} (padded to {one[f'tokens_{many}']}; examples/s) on {TASKS[found['task']].title}, "
        f"teacher and student taking turns, {found['threads']} thread{'s' if found['threads'] != 1 else ''}, "
        f"{found['processor']}, {found['device']}. FLOPs: matrix products, counted in a pass of {report['student']['flops']['tokens']} tokens. "
        f"Memory: weights and activations at their peak, batch {many}.\n"
    )


def term_text(term: Mapping[str, Any]) -> str:
    """`0.5 × labels(smoothing=0.0)`."""
    settings = ", ".join(f"{k}={v}" for k, v in term.items() if k not in ("kind", "weight") and v is not None)
    return f"{term['weight']:g} × {term['kind']}({settings})"


def role_title(role: str) -> str:
    """What a reader calls a role."""
    return {"teacher": "teacher", "student": "student", "baseline": "student alone"}[role]


def millions(count: float) -> str:
    """`17.36 M`."""
    return f"{count / 1e6:.2f} M" if count < 1e8 else f"{count / 1e6:.1f} M"
