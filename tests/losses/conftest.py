"""The rows whose values were computed independently, in float64."""

import pytest
import torch

from distill.losses import Rows


@pytest.fixture
def golden_rows() -> Rows:
    student_NV = [[2, 0, -1], [0, 1, 0], [-1, 0.5, 0.5], [1, 1, 1]]
    teacher_NV = [[1, 1, -2], [-1, 2, 0.5], [0, 3, -1], [0.2, -0.3, 0.9]]
    return Rows(
        student=torch.tensor(student_NV, dtype=torch.float64),
        teacher=torch.tensor(teacher_NV, dtype=torch.float64),
        label=torch.tensor([0, 1, 2, 1]),
    )
