"""The one number over tasks, and the honest name of what was averaged."""

from collections.abc import Iterable, Mapping

from .superglue import DIAGNOSTICS, SUPERGLUE, TASKS


def mean_score(metrics_by_task: Mapping[str, Mapping[str, float]]) -> float:
    """The mean over all tasks given of the mean of each task's metrics, in points (0 to 100).

    Raises:
        ValueError: there is no task, or one lacks one of its metrics.
    """
    means = []
    for name, metrics in metrics_by_task.items():
        missing = [metric for metric in TASKS[name].metrics if metric not in metrics]
        if missing:
            raise ValueError(f"{TASKS[name].title} lacks {', '.join(missing)}, found {', '.join(metrics)}")
        means.append(sum(metrics[metric] for metric in TASKS[name].metrics) / len(TASKS[name].metrics))
    if not means:
        raise ValueError("a score needs at least one task")
    return 100 * sum(means) / len(means)


def superglue_score(metrics_by_task: Mapping[str, Mapping[str, float]]) -> float:
    """The mean over tasks of the mean of each task's metrics, in points (0 to 100).

    Paper: SuperGLUE, arXiv 1905.00537, section 3.4. The diagnostics AX-b and AX-g, and TERRa, are left out.

    Args:
        metrics_by_task: for each task name the metrics of `Task.score`, as shares.

    Raises:
        ValueError: no SuperGLUE task is among them, or a task lacks one of its metrics.
    """
    counted = {name: metrics_by_task[name] for name in SUPERGLUE if name in metrics_by_task}
    if not counted:
        raise ValueError(
            f"a score needs at least one of {', '.join(SUPERGLUE)}, found {sorted(metrics_by_task)}"
        )
    return mean_score(counted)


def score_name(tasks: Iterable[str], source: str, partial: Mapping[str, str] | None = None) -> str:
    """What the mean over `tasks` may be called: a SuperGLUE score only if it is one.

    Args:
        tasks: the task names that were averaged; diagnostics are ignored.
        source: where the data came from: "demo", "folder" or "hub".
        partial: for each task on less than the official data, what was there (`TaskData.portion`, such as
            "1,061 training examples").

    Raises:
        ValueError: none of them is a task with a score.
    """
    if source == "demo":
        return "demo-task score (built-in demo tasks, not SuperGLUE)"
    asked = set(tasks)
    names = [name for name in SUPERGLUE if name in asked]
    others = [name for name in TASKS if name in asked and name not in (*SUPERGLUE, *DIAGNOSTICS)]
    if not names and not others:
        raise ValueError(f"a score needs at least one of {', '.join(SUPERGLUE)}, found {sorted(asked)}")
    portions = {name: portion for name, portion in (partial or {}).items() if portion}
    amount = {name: f" on {portions[name]}" if name in portions else "" for name in (*names, *others)}
    shown = [f"{TASKS[name].title}{amount[name]}" for name in names]
    beside = "".join(f" and {TASKS[name].title}{amount[name]}" for name in others)
    if not names:
        (name,) = others  # TERRa is the only one
        return f"{TASKS[name].title} {TASKS[name].metrics[0]}{amount[name]}, dev"
    if len(names) < len(SUPERGLUE):
        tasks_shown = f"{len(names)} of the {len(SUPERGLUE)} SuperGLUE tasks ({', '.join(shown)})"
        return f"mean of {tasks_shown}{beside}, dev"
    cut = [text for name, text in zip(names, shown, strict=True) if name in portions]
    if beside:
        return f"mean of the {len(SUPERGLUE)} SuperGLUE tasks ({', '.join(cut or shown)}){beside}, dev"
    if cut:
        return f"mean of the {len(SUPERGLUE)} SuperGLUE tasks ({', '.join(cut)}), dev"
    return "SuperGLUE score, dev"
