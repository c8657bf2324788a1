"""Distillation losses: rows of logits in, one value a row out.

Importing this loads no torch: a recipe is checked against these classes' fields without it.
"""

from __future__ import annotations

from .divergences.forward_kl import ForwardKL
from .divergences.jensen_shannon import JensenShannon
from .divergences.labels import Labels
from .divergences.reverse_kl import ReverseKL
from .loss import Loss
from .rows import Rows
from .total import Evaluation, Total
from .transport.multi_level import MultiLevelTransport
from .transport.sinkhorn import Sinkhorn
from .transport.sorted_transport import SortedTransport

AnyLoss = Labels | ForwardKL | ReverseKL | JensenShannon | Sinkhorn | MultiLevelTransport | SortedTransport
"""Every loss a recipe can name; the field `kind` tells them apart."""

__all__ = [
    "AnyLoss",
    "Evaluation",
    "ForwardKL",
    "JensenShannon",
    "Labels",
    "Loss",
    "MultiLevelTransport",
    "ReverseKL",
    "Rows",
    "Sinkhorn",
    "SortedTransport",
    "Total",
]
