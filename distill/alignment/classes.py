"""Class logits of teacher and student → Rows.

Shapes: B examples (the rows), C classes or choices.
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
    student_BC: Tensor,
    teacher_BC: Tensor | None,
    *,
    label_B: Tensor | None = None,
    weight_B: Tensor | None = None,
    group_B: Tensor | None = None,
    activations: PairedActivations | None = None,
) -> Rows:
    """One row an example: both models' logits over the same classes in the same order.

    Raises:
        AlignmentError: the two models do not score the same examples or the same number of classes.
    """
    if teacher_BC is not None and teacher_BC.shape != student_BC.shape:
        raise AlignmentError(
            f"teacher and student logits must have the same (examples, classes): student {tuple(student_BC.shape)}, "
            f"teacher {tuple(teacher_BC.shape)}; fine-tune both on the same task"
        )
    return Rows(
        student=student_BC,
        teacher=teacher_BC,
        label=label_B,
        weight=weight_B,
        group=group_B,
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
