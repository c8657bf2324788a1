"""Class logits of teacher and student → Rows.

Shapes: N rows (examples, or positions of a language model), C classes, choices or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from distill.errors import AlignmentError
from distill.losses import Rows

if TYPE_CHECKING:
    from torch import Tensor

    from distill.losses import PairedActivations


def align_classes(
    student_NC: Tensor,
    teacher_NC: Tensor | None,
    *,
    label_N: Tensor | None = None,
    weight_N: Tensor | None = None,
    group_N: Tensor | None = None,
    activations: PairedActivations | None = None,
) -> Rows:
    """Both models' logits of the same rows over the same classes in the same order.

    Raises:
        AlignmentError: the two models do not score the same rows or the same number of classes.
    """
    if teacher_NC is not None and teacher_NC.shape != student_NC.shape:
        raise AlignmentError(
            f"teacher and student logits must have the same (rows, classes): student {tuple(student_NC.shape)}, "
            f"teacher {tuple(teacher_NC.shape)}; fine-tune both on the same task"
        )
    return Rows(
        student=student_NC,
        teacher=teacher_NC,
        label=label_N,
        weight=weight_N,
        group=group_N,
        activations=activations,
    )


def class_order(found: Mapping[int, str] | Mapping[str, str], labels: Sequence[str]) -> list[int] | None:
    """Where each of the task's labels stands among a model's classes; None when they already agree.

    A model fine-tuned elsewhere may number the classes differently (MNLI models do): distilling it without
    reordering would teach the wrong labels. Names are compared without case; the generic `LABEL_0, LABEL_1, …`
    says nothing and is taken to be in the task's order.

    Raises:
        AlignmentError: another number of classes, or names that are not the task's.

    Example:
        >>> class_order({0: "CONTRADICTION", 1: "entailment"}, ["entailment", "contradiction"])
        [1, 0]
    """
    names = [name.lower() for _, name in sorted((int(number), name) for number, name in found.items())]
    wanted = [label.lower() for label in labels]
    if len(names) != len(wanted):
        raise AlignmentError(
            f"the teacher has {len(names)} classes ({', '.join(names)}), the task has {len(wanted)}: {', '.join(wanted)}"
        )
    if names == wanted or all(name == f"label_{i}" for i, name in enumerate(names)):
        return None
    if sorted(names) != sorted(wanted):
        raise AlignmentError(
            f"the teacher's classes are {', '.join(names)}, the task's are {', '.join(wanted)}: "
            "set id2label in the teacher's config.json to the task's names"
        )
    return [names.index(label) for label in wanted]
