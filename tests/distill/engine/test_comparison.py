"""The rows on which models with different tokens are compared belong to the groups of their examples."""

from __future__ import annotations

import torch

from distill.alignment import TokenReader
from distill.engine.comparison import Reduced, Turn
from distill.models import MaskedTokens, Prediction
from distill.recipe import AlignmentRecipe


def test_rows_of_a_student_that_reads_pieces_keep_the_groups_of_the_batch(tokenizer):
    """A batch-wise loss sees the same groups however a batch is split."""
    texts = [
        tokenizer(text)["input_ids"] for text in ("a cat", "two dogs ran", "one bird sang", "no fish at all")
    ]
    data = MaskedTokens(texts, tokenizer, share=0.5)
    readers = TokenReader(tokenizer), TokenReader(tokenizer)
    comparison = Reduced(
        data, data, tokenizer=tokenizer, readers=readers, wanted=AlignmentRecipe(kind="reduce")
    )

    def says(batch) -> Prediction:
        return Prediction(torch.randn(int(batch.rows_BT.sum()), len(tokenizer)))

    def groups(index: list[int], group: list[int]) -> list[int]:
        batch = data.batch(index, group)
        return comparison.rows(Turn(batch, 0, says(batch), says, says, None, group)).group.tolist()

    counts = [comparison.rows_of([i], 0) for i in range(4)]
    expected = [g for g, count in zip((0, 0, 1, 1), counts, strict=True) for _ in range(count)]
    assert groups([0, 1, 2, 3], [0, 0, 1, 1]) == expected
    assert groups([2, 3], [1, 1]) == expected[sum(counts[:2]) :]
