"""The model card: what a published student is, what was measured of it, and what that does not say.

Every number is the report's, or what the run wrote down of this task's models. The metadata is that of the hub's own card
classes. There is no relation "distilled from" on the hub: `base_model` names the model whose weights the student started
from, and its teachers stand in the block `distillation`, which is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from distill.publish.licenses import Ancestor
from distill.publish.subject import Subject
from distill.publish.usage import code, onnx_code
from distill.report.markdown import (
    METRIC_NAMES,
    how_it_was_made,
    millions,
    onnx_tables,
    points,
    role_title,
)
from distill.tasks import SUPERGLUE

if TYPE_CHECKING:
    from huggingface_hub import EvalResult
    from transformers import PreTrainedTokenizerBase

# By the kind of head. The hub has no word for an encoder–decoder that writes an answer.
PIPELINES = {
    "classification": "text-classification",
    "multiple_choice": "multiple-choice",
    "causal_lm": "text-generation",
    "masked_lm": "fill-mask",
}
# The hub's names of our metrics.
METRICS = {"macro_f1": "f1", "f1a": "f1", "em": "exact_match", "matthews": "matthews_correlation"}
SUPERGLUE_ON_THE_HUB = "aps/super_glue"
RUSSIAN_SUPERGLUE_ON_THE_HUB = "RussianNLP/russian_super_glue"


def model_card(
    subject: Subject,
    repository: str,
    *,
    license: str,
    ancestors: Sequence[Ancestor],
    tokenizer: PreTrainedTokenizerBase,
    language: str | None = None,
    base_model: str | None = None,
    adapter: bool = False,
) -> str:
    """The text of README.md.

    Args:
        subject: what is published.
        repository: OWNER/NAME.
        license: of the student.
        ancestors: its teachers and the model it started from, with their licences.
        tokenizer: the student's, which the code of the card uses.
        language: of the texts, as the hub writes it ("en"); None takes the tasks' own.
        base_model: hub id of the model it started from, where the run did not get that from the hub.
        adapter: whether an adapter is published that stands beside its base model.
    """
    data = _metadata(subject, repository, license, language, base_model, adapter)
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {repository.partition('/')[2]}",
        _what_it_is(subject),
        _verdict(subject),
        _models(subject),
        onnx_tables(subject.report, subject.task.name),
        _scores(subject),
        "![compression against score](compression.png)",
        _plot_says(subject),
        "## What these numbers do not say\n\n" + "\n".join(f"- {line}" for line in _limits(subject)),
        f"## How to use it\n\n```python\n{code(subject, repository, tokenizer, adapter=adapter)}```",
        _with_onnxruntime(subject, repository, tokenizer),
        how_it_was_made(subject.report),
        "`recipe.yaml` is the run's own but for folders of the machine, of which the last part is left, and for where "
        "it kept its files. The digest is that of the recipe as it was.",
        _licenses(license, ancestors),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(
    subject: Subject,
    repository: str,
    license: str,
    language: str | None,
    base_model: str | None,
    adapter: bool,
) -> Any:
    from huggingface_hub import ModelCardData

    report, recipe = subject.report, subject.recipe
    kinds = [str(term["kind"]) for term in report["training"]["loss"]]
    dataset = _dataset(subject)
    began = subject.began
    return ModelCardData(
        license=license,
        language=language or _language(subject),
        library_name="peft" if adapter else "transformers",
        pipeline_tag=PIPELINES.get(subject.head),
        base_model=base_model or (began.hub if began else None),
        datasets=[dataset] if dataset else None,
        metrics=sorted({METRICS.get(name, name) for name in subject.task.metrics}),
        tags=["distillation", "knowledge-distillation", *dict.fromkeys(kinds), *_tags(subject)],
        model_name=repository.partition("/")[2],
        eval_results=_results(subject),
        distillation={
            "task": subject.task.name,
            "teachers": [
                {"model": each.name} | ({"revision": each.revision} if each.revision else {})
                for each in subject.teachers
            ]
            or [report["teacher"]["name"]],
            "student_start": dict(subject.start),
            "losses": [
                {k: v for k, v in term.items() if v is not None} for term in report["training"]["loss"]
            ],
            "seed": subject.seed,
            "seeds": list(recipe.seeds),
            "recipe_sha256": report["recipe_sha256"],
            "versions": {
                "distill": report["environment"]["distill"],
                "python": report["environment"]["python"],
                **report["environment"]["packages"],
            },
        },
    )


def _language(subject: Subject) -> str | None:
    return {"terra": "ru", "text": None}.get(subject.task.name, "en")


def _dataset(subject: Subject) -> str | None:
    """The hub's name of the official data; None of demo tasks and of one's own texts."""
    if subject.recipe.data.source not in ("folder", "hub"):
        return None
    return SUPERGLUE_ON_THE_HUB if subject.task.name in SUPERGLUE else RUSSIAN_SUPERGLUE_ON_THE_HUB


def _tags(subject: Subject) -> list[str]:
    if subject.recipe.data.source == "demo":
        return ["demo-task"]
    return ["superglue"] if _dataset(subject) == SUPERGLUE_ON_THE_HUB else []


def _results(subject: Subject) -> list[EvalResult]:
    """What these weights, the first seed's, score on the dev split, as shares of 1."""
    from huggingface_hub import EvalResult

    block = subject.report["student"]["tasks"][subject.task.name]
    return [
        EvalResult(
            task_type=PIPELINES.get(subject.head, "text-generation"),
            dataset_type=_dataset(subject) or f"distill-{subject.recipe.data.source}",
            dataset_name=_data_name(subject),
            dataset_config=subject.task.name,
            dataset_split="validation",
            metric_type=METRICS.get(name, name),
            metric_name=name.replace("_", " "),
            metric_value=block["per_seed"][name][0],
        )
        for name in subject.task.metrics
    ]


def _data_name(subject: Subject) -> str:
    facts = subject.report["data"]["tasks"][subject.task.name]
    only = f", only {facts['portion']}" if facts["partial"] and facts["portion"] else ""
    if subject.recipe.data.source == "demo":
        return f"distill's built-in demo task {subject.task.title} (not SuperGLUE)"
    if _dataset(subject) is None:
        return f"texts of one's own{only}"
    return f"{'' if subject.task.name == 'terra' else 'SuperGLUE '}{subject.task.title}{only}"


def _what_it_is(subject: Subject) -> str:
    student, teacher = subject.fits["student"], subject.fits["teacher"]
    about = f" {subject.report['description'].strip()}" if subject.report["description"].strip() else ""
    return (
        f"A student of {millions(student['parameters'])} parameters, trained with distill to do what "
        f"{subject.report['teacher']['name']} ({millions(teacher['parameters'])}) does on {_data_name(subject)}.{about}"
    )


def _verdict(subject: Subject) -> str:
    """Of this student's task first, where the run's verdict is one on several."""
    sentence, several = subject.report["verdict"]["sentence"], len(subject.recipe.data.tasks)
    found = subject.report["verdict"]["tasks"].get(subject.task.name)
    if found is None or several == 1:
        return f"**{sentence}**"
    low, high = found["ci95"]
    told = "more" if found["significant"] else "no more"
    return (
        f"**On {subject.task.title}: {found['gain']:+.1f} points against the same student trained without a teacher (95 % "
        f"interval {low:+.1f} to {high:+.1f}), {told} than chance can explain.** Of all {several} tasks of the run together, "
        f"each with a student of its own, the report says: {sentence}"
    )


def _models(subject: Subject) -> str:
    teacher = subject.fits["teacher"]
    body = teacher["parameters"] - teacher["embedding_parameters"]
    lines = []
    for role, fit in _in_order(subject.fits):
        inner = fit["parameters"] - fit["embedding_parameters"]
        times = subject.report[role]["latency_ms"]
        lines.append(
            f"| {_title(role)} | {millions(fit['parameters'])} | {teacher['parameters'] / fit['parameters']:.2f}× "
            f"| {millions(inner)} | {body / inner:.2f}× | {fit['bytes'] / 1e6:.1f} MB "
            f"| {times['batch_1']:.1f} | {times['batch_32']:.1f} |"
        )
    return (
        "| model | parameters | compression | without embeddings | compression | on disk | ms, batch 1 | ms, batch 32 |\n"
        "|---|--:|--:|--:|--:|--:|--:|--:|\n" + "\n".join(lines)
    )


def _scores(subject: Subject) -> str:
    metrics, name = subject.task.metrics, subject.task.name
    unit = " / ".join(METRIC_NAMES[metric] for metric in metrics)
    several = len(subject.recipe.seeds) > 1
    student = subject.report["student"]["tasks"][name]
    first = {metric: student["per_seed"][metric][0] for metric in metrics}
    rows = [(f"these weights (seed {subject.seed})" if several else "student (these weights)", first)]
    if several:
        rows.append((f"student, mean of {len(subject.recipe.seeds)} seeds", student))
    rows += [
        (_title(role), subject.report[role]["tasks"][name])
        for role, _ in _in_order(subject.fits)
        if role != "student"
    ]
    rows.append(("majority", student["majority"]))
    return f"| {_data_name(subject)}, dev, n = {student['n']} | {unit} |\n|---|--:|\n" + "\n".join(
        f"| {title} | {points(values, metrics)} |" for title, values in rows
    )


def _with_onnxruntime(subject: Subject, repository: str, tokenizer: PreTrainedTokenizerBase) -> str:
    if subject.task.name not in subject.report.get("onnx", {"tasks": {}})["tasks"]:
        return ""
    return (
        "With onnxruntime, without torch (`pip install onnxruntime transformers`):\n\n"
        f"```python\n{onnx_code(subject, repository, tokenizer)}```"
    )


def _in_order(fits: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(role, fits[role]) for role in ("student", "baseline", "teacher") if role in fits]


def _title(role: str) -> str:
    return (
        "student alone: the same, trained on labels without a teacher"
        if role == "baseline"
        else role_title(role)
    )


def _plot_says(subject: Subject) -> str:
    tasks = subject.recipe.data.tasks
    return "" if len(tasks) == 1 else f"The plot is of the whole run: {subject.report['data']['score_name']}."


def _limits(subject: Subject) -> list[str]:
    name, source = subject.task.name, subject.recipe.data.source
    lines = list(subject.report["warnings"])
    if source == "demo" and not any("demo tasks" in line for line in lines):
        lines.insert(
            0, "This is one of distill's built-in demo tasks, made up from templates; it is not SuperGLUE."
        )
    if subject.report["verdict"]["significant"] is False:
        lines.append(
            "The gain over the same student without a teacher may be chance: see the interval above."
        )
    if source != "text":
        lines.append(
            f"It answers {subject.task.title} questions, worded as below and in "
            f"{'Russian' if name == 'terra' else 'English'}, and was tried on nothing else."
            f"{'' if source == 'demo' else ' Test labels are not public: all scores are on the dev split.'}"
        )
    lines.append(
        f"Inputs are cut to {subject.recipe.data.max_length} tokens, in training as in these scores."
    )
    lines.append(
        "Nothing was measured of bias, safety or robustness; what its teacher has of these it may have too."
    )
    return lines


def _licenses(license: str, ancestors: Sequence[Ancestor]) -> str:
    theirs = "".join(f"\n- {each.name}: {each.license}" for each in ancestors)
    return f"## Licence\n\nThis student: {license}." + (f" It was made of:\n{theirs}" if theirs else "")
