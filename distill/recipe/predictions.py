"""What a cache of a teacher's predictions weighs and which losses read it."""

from __future__ import annotations

# The loss that reads a cache of some classes a row, and which of its fields says how many.
SPARSE_LOSSES = {"top_k": "ghost_token_kl", "sampled": "sampled_targets"}
SPARSE_COUNTS = {"top_k": "kept", "sampled": "samples"}
UINT16 = 65536  # so many classes are told by two bytes


def bytes_of_row(
    keep: str, classes: int, *, count: int = 0, dtype: str = "float32", element_size: int = 4
) -> int:
    """What one row of a teacher's cache weighs, `element_size` bytes a logit; the files' own headers not counted."""
    if keep == "full":
        return classes * element_size
    kept = min(count, classes) if keep == "top_k" else count
    return kept * ((2 if classes <= UINT16 else 4) + (4 if dtype == "float32" else 2))
