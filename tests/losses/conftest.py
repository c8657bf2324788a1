"""The rows whose values were computed independently, in float64, and each loss that stands by its rows alone."""

import pytest
import torch

from distill.losses import (
    TAID,
    AdaptiveKL,
    ForwardKL,
    GhostTokenKL,
    JensenShannon,
    Labels,
    MeanSquaredLogits,
    ReverseKL,
    Rows,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
)

ROW_WISE = (
    ForwardKL(temperature=2.0),
    ReverseKL(),
    JensenShannon(beta=0.3),
    SkewKL(),
    SkewReverseKL(),
    TotalVariation(),
    AdaptiveKL(),
    TAID(),
    GhostTokenKL(kept=4),
    MeanSquaredLogits(),
    Labels(smoothing=0.1),
)


@pytest.fixture
def golden_rows() -> Rows:
    student_NV = [[2, 0, -1], [0, 1, 0], [-1, 0.5, 0.5], [1, 1, 1]]
    teacher_NV = [[1, 1, -2], [-1, 2, 0.5], [0, 3, -1], [0.2, -0.3, 0.9]]
    return Rows(
        student=torch.tensor(student_NV, dtype=torch.float64),
        teacher=torch.tensor(teacher_NV, dtype=torch.float64),
        label=torch.tensor([0, 1, 2, 1]),
    )


@pytest.fixture(params=ROW_WISE, ids=lambda loss: loss.kind)
def row_wise_loss(request):
    """One of each kind of row-wise loss that draws nothing."""
    return request.param
