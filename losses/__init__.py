"""Distillation losses: rows of logits in, one value a row out.

Importing this loads no torch: a recipe is checked against these classes' fields without it.
"""

from __future__ import annotations

from .divergences.forward_kl import ForwardKL
from .divergences.jensen_shannon import JensenShannon
from .divergences.labels import Labels
from .divergences.reverse_kl import ReverseKL
from .features.activations import Activations, ModelPair, ModelShape, PairedActivations, Wanted
from .features.attention_maps import AttentionMaps
from .features.hidden_states import HiddenStates
from .features.pkd import PKD
from .features.relations import Relations
from .loss import Loss
from .rows import Rows
from .total import Evaluation, Total
from .transport.sinkhorn import Sinkhorn

AnyLoss = (
    Labels | ForwardKL | ReverseKL | JensenShannon | Sinkhorn | HiddenStates | AttentionMaps | Relations | PKD
)
"""Every loss a recipe can name; the field `kind` tells them apart."""

__all__ = [
    "PKD",
    "Activations",
    "AnyLoss",
    "AttentionMaps",
    "Evaluation",
    "ForwardKL",
    "HiddenStates",
    "JensenShannon",
    "Labels",
    "Loss",
    "ModelPair",
    "ModelShape",
    "PairedActivations",
    "Relations",
    "ReverseKL",
    "Rows",
    "Sinkhorn",
    "Total",
    "Wanted",
]
