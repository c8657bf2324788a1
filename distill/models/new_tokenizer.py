"""A tokenizer for models that start from nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

START, END, PADDING = "<s>", "</s>", "<pad>"


def train_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of `size` tokens made for these texts; any other text can be read too.

    The same texts in the same order give the same tokenizer. It adds no special tokens by itself.

    Args:
        texts: what to learn merges from.
        size: all tokens: 256 bytes, 3 special ones, and merges; fewer where the texts hold no more.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[START, END, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, bos_token=START, eos_token=END, pad_token=PADDING
    )
