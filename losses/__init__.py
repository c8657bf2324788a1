"""Distillation losses: rows of logits in, one value a row out.

Importing this loads no torch: a recipe is checked against these classes' fields without it.
"""

from __future__ import annotations

from .divergences.adaptive_kl import AdaptiveKL
from .divergences.forward_kl import ForwardKL
from .divergences.ghost_token_kl import GhostTokenKL
from .divergences.jensen_shannon import JensenShannon
from .divergences.labels import Labels
from .divergences.mean_squared_logits import MeanSquaredLogits
from .divergences.reverse_kl import ReverseKL
from .divergences.sampled_targets import SampledTargets
from .divergences.skew_kl import SkewKL
from .divergences.skew_reverse_kl import SkewReverseKL
from .divergences.taid import TAID
from .divergences.total_variation import TotalVariation
from .ensemble import Ensemble
from .features.activations import (
    Activations,
    ModelPair,
    ModelShape,
    PairedActivations,
    TokenStates,
    TokenWeights,
    Vocabularies,
    Wanted,
)
from .features.attention_maps import AttentionMaps
from .features.dual_space import DualSpace
from .features.hidden_states import HiddenStates
from .features.pkd import PKD
from .features.relations import Relations
from .loss import Loss
from .rows import Rows
from .sparse import SparseTeacher, most_likely, sampled
from .total import Evaluation, Total
from .transport.multi_level import MultiLevelTransport
from .transport.sinkhorn import Sinkhorn
from .transport.sorted_transport import SortedTransport

AnyLoss = (
    Labels
    | ForwardKL
    | ReverseKL
    | JensenShannon
    | SkewKL
    | SkewReverseKL
    | AdaptiveKL
    | TAID
    | TotalVariation
    | MeanSquaredLogits
    | GhostTokenKL
    | SampledTargets
    | Sinkhorn
    | MultiLevelTransport
    | SortedTransport
    | HiddenStates
    | AttentionMaps
    | Relations
    | PKD
    | DualSpace
)
"""Every loss a recipe can name; the field `kind` tells them apart."""

__all__ = [
    "PKD",
    "TAID",
    "Activations",
    "AdaptiveKL",
    "AnyLoss",
    "AttentionMaps",
    "DualSpace",
    "Ensemble",
    "Evaluation",
    "ForwardKL",
    "GhostTokenKL",
    "HiddenStates",
    "JensenShannon",
    "Labels",
    "Loss",
    "MeanSquaredLogits",
    "ModelPair",
    "ModelShape",
    "MultiLevelTransport",
    "PairedActivations",
    "Relations",
    "ReverseKL",
    "Rows",
    "SampledTargets",
    "Sinkhorn",
    "SkewKL",
    "SkewReverseKL",
    "SortedTransport",
    "SparseTeacher",
    "TokenStates",
    "TokenWeights",
    "Total",
    "TotalVariation",
    "Vocabularies",
    "Wanted",
    "most_likely",
    "sampled",
]
