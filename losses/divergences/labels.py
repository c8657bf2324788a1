"""Cross-entropy against gold labels.

N rows, V vocabulary or classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from ..ranges import fraction
from ..row_wise import RowWise
from ..softmax import softmax

if TYPE_CHECKING:
    from torch import Tensor

    from ..rows import Rows


@dataclass(frozen=True, kw_only=True)
class Labels(RowWise):
    """−log q(label) of each row: the ordinary training loss, for the part of an objective that is not imitation.

    With smoothing s the target is (1 − s) on the label plus s spread evenly over the row's possible classes (those
    whose logit is not −inf).

    Paper: the maximum-likelihood term of Hinton et al. 2015, arXiv:1503.02531, section 2; smoothing from Szegedy et
        al. 2015, arXiv:1512.00567, section 7.
    Shapes: rows.student (N, V), rows.label (N,) in [0, V) -> (N,) float32 (float64 for float64 logits), each >= 0.
        A row of weight 0 may carry any label (-100, say).
    Units: nats.

    Raises:
        ValueError: smoothing outside [0, 1], or rows.label is None.
        IndexError: on the CPU, a label outside [0, V) in a row that counts.
    Relations: `ForwardKL` when a teacher's whole distribution is there: it is this with soft labels, less their
        entropy.

    Example:
        >>> import torch
        >>> from distill.losses import Labels, Rows
        >>> rows = Rows(student=torch.tensor([[2.0, 0.0, -1.0]]), label=torch.tensor([0]))
        >>> Labels()(rows)
        tensor([0.1698])
    """

    needs_teacher: ClassVar[bool] = False

    kind: Literal["labels"] = "labels"
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("smoothing", self.smoothing)

    @property
    def zero_at_equality(self) -> bool:
        """False: labels are not the teacher."""
        return False

    def differentiate(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return −log q(label), (N,), and q − target."""
        if rows.label is None:
            raise ValueError("Labels compares with gold labels, but rows.label is None")
        logits_NV = rows.student_logits()
        student = softmax(logits_NV, 1.0)
        q_NV = student.probability_NV
        label_N1 = rows.label.long().where(rows.weights > 0, 0).unsqueeze(-1)
        values_N = -student.at(label_N1).log_probability_NV.squeeze(-1)
        kept = 1 - self.smoothing
        slope_NV = q_NV.scatter_add(-1, label_N1, q_NV.new_full(label_N1.shape, -kept))
        if self.smoothing:
            possible_NV = (logits_NV > float("-inf")).to(q_NV.dtype)
            even_NV = possible_NV / possible_NV.sum(-1, keepdim=True)
            values_N = kept * values_N - self.smoothing * (student.log_probability_NV * even_NV).sum(-1)
            slope_NV = slope_NV - self.smoothing * even_NV
        return values_N, slope_NV
