"""Activations of teacher and student → pairs, token by token.

Shapes: S (or B) sequences, T positions, N rows.
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
    student: Activations,
    teacher: Activations,
    inputs: Mapping[str, Tensor],
    models: ModelPair,
    rows_BT: Tensor | None = None,
) -> PairedActivations:
    """Pair what two models computed for the same inputs; padding is what their attention mask leaves out.

    Args:
        student: its activations.
        teacher: its activations.
        inputs: what both read.
        models: their shapes.
        rows_BT: the positions that are rows, for a language model; None where a row is an example.

    Raises:
        AlignmentError: the two did not read the same positions, or are not the models they are said to be.
    """
    tokens = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    mask_ST = (tokens.new_ones(tokens.shape) if mask is None else mask).reshape(-1, tokens.shape[-1])
    token_N = None if rows_BT is None else rows_BT.flatten().nonzero()[:, 0]
    try:
        return PairedActivations(models, student, teacher, mask_ST, token_N)
    except ValueError as error:
        raise AlignmentError(f"student and teacher cannot be compared token by token: {error}") from error
