"""The model that is learnt from."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from distill.alignment import class_order
from distill.errors import ModelError
from distill.models.batch import Batch
from distill.models.loading import HeadKind, load_model, load_tokenizer
from distill.models.prediction import Prediction
from distill.models.recording import model_shape, run
from distill.models.source import ModelSource, find_model

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from distill.losses import ModelShape, Wanted

Precision = Literal["auto", "fp32", "bf16", "int8"]


def weights_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16", "int8"]:
    """What `teacher.precision` means on a device: "auto" is bf16 where a GPU computes in it, else fp32.

    Raises:
        ModelError: int8 without a CUDA device or without bitsandbytes.
    """
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if fast else "fp32"
    if precision == "int8" and (device.type != "cuda" or importlib.util.find_spec("bitsandbytes") is None):
        # torch's own dynamic int8 is no way out on a CPU: it moved a six-layer MiniLM's hidden states by 25 to 37
        # percent (bf16: 1 percent), and torch has announced its removal.
        raise ModelError(
            f"teacher.precision: int8 needs a CUDA device and bitsandbytes (pip install bitsandbytes), found "
            f"{device.type}; use bf16 or fp32"
        )
    return precision


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
        cls,
        model: ModelSource | str,
        *,
        kind: HeadKind,
        labels: tuple[str, ...],
        revision: str | None = None,
        precision: Precision = "fp32",
        device: torch.device | None = None,
        trust_remote_code: bool = False,
    ) -> Teacher:
        """A fine-tuned teacher from `package:…`, a folder or a hub id. A body without a trained head is refused.

        Args:
            model: its name, or what `find_model` found; a folder may hold an adapter of peft, which names its base.
            kind: the head.
            labels: the task's labels.
            revision: of a hub id.
            precision: of its weights. Losses take its logits to float32 before anything else.
            device: where it shall stand; the CPU when None.
            trust_remote_code: run the Python files beside its weights, see `find_model`: those of a folder, or of the
                commit that `revision` names.
        """
        device = device or torch.device("cpu")
        precision = weights_precision(precision, device)
        quantization: dict[str, Any] | None = None
        if precision == "int8":
            from transformers import BitsAndBytesConfig

            quantization = {
                "quantization_config": BitsAndBytesConfig(load_in_8bit=True),  # type: ignore[no-untyped-call]
                "device_map": {"": device},
            }
        source = model
        if isinstance(source, str):
            source = find_model(source, revision, trust_remote_code=trust_remote_code)
        loaded = load_model(
            source,
            kind=kind,
            labels=labels,
            seed=0,
            allow_new_head=False,
            dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
            quantization=quantization,
        )
        if quantization is None:
            loaded.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides torch's signature
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
        logits_NC = logits_NC.float()
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
