"""Encoded examples → padded tensors.

Shapes: B examples, K choices (multiple choice only), T positions, N rows of the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Feature = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Batch:
    """The examples of one forward pass.

    Attributes:
        inputs: what the model takes, each `[B, T]`, or `[B, K, T]` for multiple choice.
        index_B: position of each example in its data set.
        label_N: gold class, choice or token of each row, None where the data has no labels.
        weight_N: weight of each row in the loss.
        group_N: id of the group a row belongs to (batch-wise losses).
        rows_BT: of language models: the positions whose logits are rows, since they predict a token that counts.
            None: every example is one row, N = B.
    """

    inputs: dict[str, Tensor]
    index_B: Tensor
    label_N: Tensor | None
    weight_N: Tensor
    group_N: Tensor
    rows_BT: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return replace(
            self,
            inputs={name: tensor.to(device) for name, tensor in self.inputs.items()},
            index_B=self.index_B.to(device),
            label_N=None if self.label_N is None else self.label_N.to(device),
            weight_N=self.weight_N.to(device),
            group_N=self.group_N.to(device),
            rows_BT=None if self.rows_BT is None else self.rows_BT.to(device),
        )


class DataSet(Protocol):
    """Encoded examples that a model can be trained on or asked about.

    Attributes:
        lengths: the tokens of each example, to batch similar ones together.
        truncated: how many examples lost tokens when they were encoded.
    """

    lengths: list[int]
    truncated: int

    def __len__(self) -> int:
        """How many examples."""
        ...

    def batch(self, index: Sequence[int], group: Sequence[int] | None = None, epoch: int = 0) -> Batch:
        """The examples at `index`, padded to the longest of them; `epoch` matters to data that is drawn anew."""
        ...

    def rows_of(self, index: Sequence[int], epoch: int = 0) -> int:
        """How many rows these examples make: what the loss of a whole batch is divided by."""
        ...


class Features:
    """A data set ready for a model: token ids per example and choice, labels, and how to pad them.

    Args:
        features: per example, per choice: the tokenizer's output without padding. One choice for classification.
        labels: gold classes, or None for unlabelled data.
        tokenizer: decides pad ids. Padding stands behind a text, whatever the tokenizer was set to: in front of it, it
            would shift the positions that BERT or GPT-2 counts from 0, by as much as the batch is longer. It stands
            in front where the tokenizer's class says so (XLNet, which reads its answer off the last position).
        truncated: how many examples lost tokens when they were encoded.
    """

    def __init__(
        self,
        features: Sequence[Sequence[Feature]],
        labels: Sequence[int] | None,
        tokenizer: PreTrainedTokenizerBase,
        *,
        truncated: int = 0,
    ):
        if labels is not None and len(labels) != len(features):
            raise ValueError(
                f"labels must match features, got {len(labels)} labels for {len(features)} examples"
            )
        self.features = features
        self.labels = labels
        self.truncated = truncated
        self.lengths = [max(len(choice["input_ids"]) for choice in choices) for choices in features]
        self._left = type(tokenizer).padding_side == "left"
        self._pad = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}

    def __len__(self) -> int:
        return len(self.features)

    def rows_of(self, index: Sequence[int], epoch: int = 0) -> int:
        """One row an example."""
        return len(index)

    def batch(self, index: Sequence[int], group: Sequence[int] | None = None, epoch: int = 0) -> Batch:
        """The examples at `index`, padded to the longest of them."""
        longest = max(self.lengths[i] for i in index)
        choices = len(self.features[index[0]])
        inputs = {}
        for name in self.features[index[0]][0]:
            pad = self._pad.get(name, 0)
            flat = [self._padded(choice[name], longest, pad) for i in index for choice in self.features[i]]
            tensor = torch.tensor(flat, dtype=torch.long)
            inputs[name] = tensor if choices == 1 else tensor.view(len(index), choices, longest)
        return Batch(
            inputs=inputs,
            index_B=torch.tensor(index, dtype=torch.long),
            label_N=None if self.labels is None else torch.tensor([self.labels[i] for i in index]),
            weight_N=torch.ones(len(index)),
            group_N=torch.tensor(group if group is not None else [0] * len(index), dtype=torch.long),
        )

    def _padded(self, ids: Sequence[int], length: int, pad: int) -> list[int]:
        fill = [pad] * (length - len(ids))
        return [*fill, *ids] if self._left else [*ids, *fill]
