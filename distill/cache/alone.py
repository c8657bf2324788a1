"""One example at a time, without padding: the form in which what a teacher says depends on the example alone.

A matrix product rounds differently with another number of rows, so a teacher's logits for an example depend (by about
1e-6) on the batch it stands in and on its padding. Asked about each example alone, it says the same bits whatever the
order and size of the batches, on the same machine, thread count and versions.

Shapes: B examples, K choices, T positions, N rows, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from distill.models import Batch, Prediction

if TYPE_CHECKING:
    from torch import Tensor


class EachAlone:
    """A live teacher that is asked about one example after the other.

    Training with it and training with its `full` cache are the same to the last bit: like a cache's writer it asks in
    the precision of the teacher's weights, whatever that of the training is. It costs the batching: a forward pass an
    example.

    Args:
        teacher: a `Teacher`, or anything called like it.
    """

    def __init__(self, teacher: Callable[[Batch], Prediction]):
        self.teacher = teacher

    def __call__(self, batch: Batch) -> Prediction:
        """Logits of the batch's rows, in their order."""
        with torch.autocast(batch.index_B.device.type, enabled=False):
            return Prediction(torch.cat([self.teacher(example).logits_NC for example in examples(batch)]))


def examples(batch: Batch) -> Iterator[Batch]:
    """The examples of a batch, each as a batch of its own without padding."""
    counts = rows_of_examples(batch)
    start = 0
    for at, count in enumerate(counts):
        rows = slice(start, start + count)
        start += count
        inputs = {name: tensor[at : at + 1] for name, tensor in batch.inputs.items()}
        rows_BT = None if batch.rows_BT is None else batch.rows_BT[at : at + 1]
        inputs, rows_BT = _unpadded(inputs, rows_BT)
        yield replace(
            batch,
            inputs=inputs,
            index_B=batch.index_B[at : at + 1],
            label_N=None if batch.label_N is None else batch.label_N[rows],
            weight_N=batch.weight_N[rows],
            group_N=batch.group_N[rows],
            rows_BT=rows_BT,
        )


def rows_of_examples(batch: Batch) -> list[int]:
    """How many rows each example of a batch has."""
    if batch.rows_BT is None:
        return [1] * len(batch.index_B)
    return [int(count) for count in batch.rows_BT.sum(-1)]


def key_of(example: Batch) -> bytes:
    """The sha256 of what a teacher is asked: an unpadded example's inputs, and which of its positions count.

    Labels, weights, groups and its place in the data set are no part of it.
    """
    hashed = hashlib.sha256()
    parts = dict(sorted(example.inputs.items()))
    if example.rows_BT is not None:
        parts["rows"] = example.rows_BT
    for name, tensor in parts.items():
        hashed.update(f"{name} {tuple(tensor.shape)} ".encode())
        hashed.update(tensor.detach().cpu().long().contiguous().numpy().astype("<i8").tobytes())
    return hashed.digest()


def _unpadded(inputs: dict[str, Tensor], rows_BT: Tensor | None) -> tuple[dict[str, Tensor], Tensor | None]:
    """Cut what no position looks at: before the first and behind the last token, behind a decoder's last row."""
    longest = inputs["input_ids"].shape[-1]
    span = slice(0, longest)
    if "attention_mask" in inputs:
        span = _span(inputs["attention_mask"])
    decoder = "decoder_input_ids" in inputs
    read = span
    if decoder and rows_BT is not None:
        read = slice(0, _span(rows_BT).stop)
    cut = {
        name: tensor[..., read if name.startswith("decoder_") else span] for name, tensor in inputs.items()
    }
    return cut, None if rows_BT is None else rows_BT[..., read]


def _span(mask: Tensor) -> slice:
    """From the first to the last position that is set in any of a tensor's sequences."""
    places = mask.flatten(end_dim=-2).bool().any(0).nonzero()
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, mask.shape[-1])
