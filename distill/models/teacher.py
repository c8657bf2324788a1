"""The model that is learnt from."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from distill.alignment import class_order
from distill.models.batch import Batch
from distill.models.loading import HeadKind, load_model, load_tokenizer
from distill.models.prediction import Prediction
from distill.models.recording import model_shape, run
from distill.models.source import find_model

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from distill.losses import ModelShape, Wanted


class Teacher:
    """A fine-tuned model in inference mode. No run changes its weights, its mode or its buffers.

    Args:
        model: a transformers model with the head its task needs.
        tokenizer: the one it was trained with.
        labels: the task's labels in the task's order. Classes of a model that names them in another order are
            put into this order; None leaves them as they are.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str] | None = None,
    ):
        self.model = model
        self.model.train(mode=False).requires_grad_(False)
        self.tokenizer = tokenizer
        self._token_V: Tensor | None = None
        self._order = None if labels is None else class_order(model.config.id2label or {}, labels)

    @classmethod
    def load(
        cls, model: str, *, kind: HeadKind, labels: tuple[str, ...], revision: str | None = None
    ) -> Teacher:
        """A fine-tuned teacher from `package:…`, a folder or a hub id. A body without a trained head is refused."""
        source = find_model(model, revision)
        loaded = load_model(source, kind=kind, labels=labels, seed=0, allow_new_head=False)
        return cls(loaded, load_tokenizer(source), labels if kind == "classification" else None)

    def reading(self, tokens: Sequence[int]) -> Teacher:
        """The same teacher for batches in a student's token ids: it reads its own token `tokens[i]` for each i.

        A language model's logits are those of these tokens alone: what it thinks of the others is left out, as if
        they could not occur.
        """
        reader = copy.copy(self)
        reader._token_V = torch.tensor(tokens, device=self.model.device)
        return reader

    @property
    def shape(self) -> ModelShape:
        """Layers, width and heads."""
        return model_shape(self.model)

    @torch.inference_mode()
    def __call__(self, batch: Batch, wanted: Wanted | None = None) -> Prediction:
        """Logits for a batch on the teacher's device, and the wanted activations."""
        if self._token_V is not None:
            read = {
                name: self._token_V[ids] for name, ids in batch.inputs.items() if name.endswith("input_ids")
            }
            batch = replace(batch, inputs=batch.inputs | read)
        logits_NC, activations = run(self.model, batch.inputs, wanted, batch.rows_BT)
        if self._token_V is not None and batch.rows_BT is not None:
            logits_NC = logits_NC[:, self._token_V]
        return Prediction(logits_NC if self._order is None else logits_NC[:, self._order], activations)


class RememberedTeacher:
    """A teacher's logits on one data set, computed once and looked up by example.

    A classifier in inference mode says the same about an example in every epoch, so its forward pass is paid
    once. Padding an example with others changes a logit by rounding only (about 1e-6). It holds no activations:
    losses that compare those need a `Teacher` that runs.
    """

    def __init__(self, logits_NC: Tensor):
        self.logits_NC = logits_NC

    def __call__(self, batch: Batch) -> Prediction:
        """The remembered logits of the batch's examples."""
        return Prediction(self.logits_NC.to(batch.index_B.device)[batch.index_B])
