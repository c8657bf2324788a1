"""The one number over tasks, and the honest name of what was averaged."""

from collections.abc import Iterable, Mapping

from .superglue import SUPERGLUE, TASKS


def superglue_score(metrics_by_task: Mapping[str, Mapping[str, float]]) -> float:
    """The mean over tasks of the mean of each task's metrics, in points (0 to 100).

    Paper: SuperGLUE, arXiv 1905.00537, section 3.4. The diagnostics AX-b and AX-g are left out.

    Args:
        metrics_by_task: for each task name the metrics of `Task.score`, as shares.

    Raises:
        ValueError: no SuperGLUE task is among them, or a task lacks one of its metrics.
    """
    means = []
    for name in SUPERGLUE:
        if name in metrics_by_task:
            metrics = metrics_by_task[name]
            missing = [metric for metric in TASKS[name].metrics if metric not in metrics]
            if missing:
                raise ValueError(
                    f"{TASKS[name].title} lacks {', '.join(missing)}, found {', '.join(metrics)}"
                )
            means.append(sum(metrics[metric] for metric in TASKS[name].metrics) / len(TASKS[name].metrics))
    if not means:
        raise ValueError(
            f"a score needs at least one of {', '.join(SUPERGLUE)}, found {sorted(metrics_by_task)}"
        )
    return 100 * sum(means) / len(means)


def score_name(tasks: Iterable[str], source: str, partial: Mapping[str, str] | None = None) -> str:
    """What the mean over `tasks` may be called: a SuperGLUE score only if it is one.

    Args:
        tasks: the task names that were averaged; diagnostics are ignored.
        source: where the data came from: "demo", "folder" or "hub".
        partial: for each task on less than the official data, what was there (`TaskData.portion`, such as
            "1,061 training examples").

    Raises:
        ValueError: no SuperGLUE task is among them.
    """
    if source == "demo":
        return "demo-task score (built-in demo tasks, not SuperGLUE)"
    asked = set(tasks)
    names = [name for name in SUPERGLUE if name in asked]
    if not names:
        raise ValueError(f"a score needs at least one of {', '.join(SUPERGLUE)}, found {sorted(asked)}")
    portions = {name: portion for name, portion in (partial or {}).items() if portion}
    shown = [
        f"{TASKS[name].title} on {portions[name]}" if name in portions else TASKS[name].title
        for name in names
    ]
    if len(names) < len(SUPERGLUE):
        return f"mean of {len(names)} of the {len(SUPERGLUE)} SuperGLUE tasks ({', '.join(shown)}), dev"
    cut = [text for name, text in zip(names, shown, strict=True) if name in portions]
    if cut:
        return f"mean of the {len(SUPERGLUE)} SuperGLUE tasks ({', '.join(cut)}), dev"
    return "SuperGLUE score, dev"
