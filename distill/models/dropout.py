"""How often a model drops its activations while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def set_dropout(model: PreTrainedModel, probability: float) -> None:
    """Give every dropout of a model this probability; its config, and so what is saved, keeps its own.

    Dropout lives in modules (BERT) and in plain numbers beside them, which attention functions are called with
    (`attention_dropout` of Llama, `activation_dropout` of BART).
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name, value in vars(module).items():
            if isinstance(value, float) and "dropout" in name:
                setattr(module, name, probability)
