"""Activations of teacher and student → pairs, token by token.

Shapes: S sequences, T positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from distill.errors import AlignmentError
from distill.losses import PairedActivations

if TYPE_CHECKING:
    from torch import Tensor

    from distill.losses import Activations, ModelPair


def align_activations(
    student: Activations, teacher: Activations, inputs: Mapping[str, Tensor], models: ModelPair
) -> PairedActivations:
    """Pair what two models computed for the same inputs; padding is what their attention mask leaves out.

    Raises:
        AlignmentError: the two did not read the same positions, or are not the models they are said to be.
    """
    tokens = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    mask_ST = (tokens.new_ones(tokens.shape) if mask is None else mask).reshape(-1, tokens.shape[-1])
    try:
        return PairedActivations(models, student, teacher, mask_ST)
    except ValueError as error:
        raise AlignmentError(f"student and teacher cannot be compared token by token: {error}") from error
