"""Texts in which a language model predicts tokens: which tokens count, and how they become batches.

Shapes: B examples, T positions, N rows: the tokens that count, of all examples one after the other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from distill.models.batch import Batch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Ids = Sequence[int]


class NextTokens:
    """Texts for a decoder, which predicts each token from those before it.

    The logits at a position speak of the token behind it, so a counted token's row stands one position earlier, and
    the first token of a text, which nothing predicts, makes no row whether it counts or not. Padding stands behind the
    text, where no position looks at it.

    Args:
        texts: token ids, unpadded.
        counted: for each text one flag a token: whether it is to be predicted (an answer's tokens, and not its
            prompt's). None counts all.
        tokenizer: decides the padding id.
        truncated: how many texts lost tokens when they were encoded.
    """

    def __init__(
        self,
        texts: Sequence[Ids],
        counted: Sequence[Sequence[bool]] | None,
        tokenizer: PreTrainedTokenizerBase,
        *,
        truncated: int = 0,
    ):
        flags = [[True] * len(ids) for ids in texts] if counted is None else counted
        if [len(ids) for ids in texts] != [len(flag) for flag in flags]:
            raise ValueError("counted must have one flag for each token of each text")
        self.texts = texts
        self._places = [[at - 1 for at, counts in enumerate(flag) if counts and at] for flag in flags]
        self.lengths = [len(ids) for ids in texts]
        self.truncated = truncated
        self._pad = padding_id(tokenizer)

    def __len__(self) -> int:
        return len(self.texts)

    def rows_of(self, index: Sequence[int], epoch: int = 0) -> int:
        """The counted tokens of these texts."""
        return sum(len(self._places[i]) for i in index)

    def predicted(self, index: int) -> list[int]:
        """The positions of a text's tokens that are predicted, one a row."""
        return [at + 1 for at in self._places[index]]

    def prompt(self, index: int, plain: int) -> Ids:
        """What stands before a text's first counted token; where all tokens count, the first `plain` of them."""
        text, places = self.texts[index], self._places[index]
        if len(places) == len(text) - 1:
            return text[:plain]
        return text[: places[0] + 1] if places else text

    def batch(self, index: Sequence[int], group: Sequence[int] | None = None, epoch: int = 0) -> Batch:
        """The texts at `index`, padded to the longest of them."""
        ids_BT, mask_BT = padded([self.texts[i] for i in index], self._pad)
        places = [self._places[i] for i in index]
        labels = [self.texts[i][at + 1] for i in index for at in self._places[i]]
        return batch_of({"input_ids": ids_BT, "attention_mask": mask_BT}, index, places, labels, group)


class TargetTokens:
    """Pairs of a source and a target for an encoder–decoder, which predicts every token of the target.

    The decoder reads the target one position late, behind its start token: the logits at a position speak of the
    target's token at that position.

    Args:
        sources: what the encoder reads, token ids.
        targets: what the decoder is to say, token ids with the token that ends a text.
        tokenizer: decides the padding id.
        start: the id that the decoder begins with (`decoder_start_token_id` of the model's config).
        truncated: how many sources lost tokens when they were encoded.
    """

    def __init__(
        self,
        sources: Sequence[Ids],
        targets: Sequence[Ids],
        tokenizer: PreTrainedTokenizerBase,
        *,
        start: int,
        truncated: int = 0,
    ):
        if len(sources) != len(targets):
            raise ValueError(f"expected one target a source, got {len(targets)} for {len(sources)}")
        self.sources = sources
        self.targets = targets
        self.start = start
        self.lengths = [len(source) + len(target) for source, target in zip(sources, targets, strict=True)]
        self.truncated = truncated
        self._pad = padding_id(tokenizer)

    def __len__(self) -> int:
        return len(self.sources)

    def rows_of(self, index: Sequence[int], epoch: int = 0) -> int:
        """The tokens of these targets."""
        return sum(len(self.targets[i]) for i in index)

    def batch(self, index: Sequence[int], group: Sequence[int] | None = None, epoch: int = 0) -> Batch:
        """The pairs at `index`, sources and targets each padded to the longest of them."""
        ids_BT, mask_BT = padded([self.sources[i] for i in index], self._pad)
        targets = [self.targets[i] for i in index]
        decoder_BT, _ = padded([[self.start, *target[:-1]] for target in targets], self._pad)
        inputs = {"input_ids": ids_BT, "attention_mask": mask_BT, "decoder_input_ids": decoder_BT}
        places = [list(range(len(target))) for target in targets]
        return batch_of(inputs, index, places, [token for target in targets for token in target], group)


class MaskedTokens:
    """Texts for an encoder, which predicts tokens that are hidden from it.

    A share of each text's tokens is drawn anew for every epoch (special tokens never); of these 80 % are replaced by
    the mask token, 10 % by a random token, and 10 % are left as they are (BERT, arXiv:1810.04805, section 3.1). The
    draw depends on seed, epoch and text alone.

    Args:
        texts: token ids with special tokens, unpadded.
        tokenizer: decides the mask, the padding and the special tokens.
        seed: of the draw.
        share: of a text's ordinary tokens (or units), at least one of them.
        units: of each text the groups of positions that are hidden together; what is in none is never hidden. Two data
            sets whose texts have units in common hide the same ones. None hides token by token.
        truncated: how many texts lost tokens when they were encoded.

    Raises:
        ValueError: the tokenizer has no mask token.
    """

    def __init__(
        self,
        texts: Sequence[Ids],
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int = 0,
        share: float = 0.15,
        units: Sequence[Sequence[Sequence[int]]] | None = None,
        truncated: int = 0,
    ):
        if tokenizer.mask_token_id is None:
            raise ValueError(
                "the tokenizer has no mask token, so that no token can be hidden from an encoder"
            )
        special = set(tokenizer.all_special_ids)
        self.texts = texts
        self.seed = seed
        self.lengths = [len(ids) for ids in texts]
        self.truncated = truncated
        self._one_by_one = units is None
        if units is None:
            units = [[[at] for at, token in enumerate(ids) if token not in special] for ids in texts]
        self._units = units
        self._draws = [max(1, round(share * len(found))) if found else 0 for found in units]
        self._mask: int = tokenizer.mask_token_id
        self._vocabulary = [token for token in range(len(tokenizer)) if token not in special]
        self._pad = padding_id(tokenizer)

    def __len__(self) -> int:
        return len(self.texts)

    def rows_of(self, index: Sequence[int], epoch: int = 0) -> int:
        """The tokens hidden in these texts."""
        if self._one_by_one:
            return sum(self._draws[i] for i in index)
        return sum(len(self.predicted(i, epoch)) for i in index)

    def predicted(self, index: int, epoch: int = 0) -> list[int]:
        """The positions of a text's tokens that are predicted, one a row."""
        return self._draw(index, epoch)[0]

    def batch(self, index: Sequence[int], group: Sequence[int] | None = None, epoch: int = 0) -> Batch:
        """The texts at `index` with some of their tokens hidden, padded to the longest of them."""
        places, texts = zip(*(self._draw(i, epoch) for i in index), strict=True)
        labels = [self.texts[i][at] for i, chosen in zip(index, places, strict=True) for at in chosen]
        ids_BT, mask_BT = padded(texts, self._pad)
        return batch_of({"input_ids": ids_BT, "attention_mask": mask_BT}, index, places, labels, group)

    def _draw(self, index: int, epoch: int) -> tuple[list[int], list[int]]:
        """The positions that are predicted, and the text as the encoder reads it."""
        name = f"{self.seed}-{epoch}-{index}"
        draw = random.Random(name)  # noqa: S311 - a mask, not a secret
        units = self._units[index]
        chosen = sorted(draw.sample(range(len(units)), self._draws[index]))
        luck = [draw.random() for _ in chosen]
        words = random.Random(f"{name}-words")  # noqa: S311
        hidden = list(self.texts[index])
        for unit, fate in zip(chosen, luck, strict=True):
            for at in units[unit]:
                if fate < 0.8:
                    hidden[at] = self._mask
                elif fate < 0.9:
                    hidden[at] = words.choice(self._vocabulary)
        places = [at for unit in chosen for at in units[unit]]
        return places, hidden


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token to fill up with; any will do where no position looks at it."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)


def padded(texts: Sequence[Ids], pad: int) -> tuple[Tensor, Tensor]:
    """Texts as one tensor, filled up at their ends, and the mask of what is not filling."""
    longest = max(len(ids) for ids in texts)
    ids_BT = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in texts])
    mask_BT = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in texts])
    return ids_BT, mask_BT


def batch_of(
    inputs: dict[str, Tensor],
    index: Sequence[int],
    places: Sequence[Sequence[int]],
    labels: Sequence[int],
    group: Sequence[int] | None,
) -> Batch:
    """A batch whose rows stand at `places` of each text, in the tensor that the model's output is as long as."""
    counts = torch.tensor([len(chosen) for chosen in places])
    read_BT = inputs.get("decoder_input_ids", inputs["input_ids"])
    rows_BT = torch.zeros(read_BT.shape, dtype=torch.bool)
    flat = torch.tensor([at for chosen in places for at in chosen], dtype=torch.long)
    rows_BT[torch.arange(len(index)).repeat_interleave(counts), flat] = True
    groups_B = torch.tensor(group if group is not None else [0] * len(index), dtype=torch.long)
    return Batch(
        inputs=inputs,
        index_B=torch.tensor(index, dtype=torch.long),
        label_N=torch.tensor(labels, dtype=torch.long),
        weight_N=torch.ones(len(flat)),
        group_N=groups_B.repeat_interleave(counts),
        rows_BT=rows_BT,
    )
