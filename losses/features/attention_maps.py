"""Attention maps: the student's heads should look where the teacher's do.

S sequences, T positions (of queries, then of keys), A attention heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..divergences.relative_entropy import excess
from ..ranges import one_of
from ..temperature import log_probability
from .activations import LayerPair, ModelPair, PairedActivations
from .feature_loss import FeatureLoss, computable, of_layer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AttentionMaps(FeatureLoss):
    """The distance of the attention of two models, head by head, at every token: the mean over heads.

    "kl" is KL(teacher's map || student's map) of a query over the tokens it may look at. "mean_squared" is the mean
    square of the difference of the scores before the softmax, over the same tokens. Both models need the same number
    of heads. Scores are compared before any dropout: the maps that a model in training returns are dropped out ones,
    whose rows do not sum to 1.

    Layers by default: as `ModelPair.layer_map`. The value is the mean over pairs.

    Paper: "kl": Wang et al. 2020 (MiniLM), arXiv:2002.10957, section 3.1 (with `layers=((-1, -1),)`);
        "mean_squared": Jiao et al. 2019 (TinyBERT), arXiv:1909.10351, its loss L_attn, here without padding.
    Shapes: rows.activations attention (S, A, T, T) of each layer -> (N,) float32 (float64 for float64), each >= 0.
    Units: "kl": nats; "mean_squared": the square of a score.

    Raises:
        ValueError: an unknown distance, models with different numbers of heads, a layer that is not there, or rows
            without activations.
    Relations: `Relations` is MiniLM's second version, for any number of heads on either side; with
        `Relations(of=("value",))` this is its first.

    Example:
        >>> import torch
        >>> from distill.losses import Activations, AttentionMaps, ModelPair, ModelShape, PairedActivations, Rows
        >>> models = ModelPair(ModelShape(1, 2, 1), ModelShape(1, 2, 1))
        >>> activations = PairedActivations(
        ...     models,
        ...     Activations(attention={0: torch.tensor([[[[2.0, 0.0, -1.0]] * 3]])}),
        ...     Activations(attention={0: torch.tensor([[[[1.0, 1.0, -2.0]] * 3]])}),
        ...     mask=torch.ones(1, 3),
        ... )
        >>> AttentionMaps()(Rows(student=torch.zeros(1, 3), activations=activations))
        tensor([0.4278])
    """

    reads = "attention"

    kind: Literal["attention_maps"] = "attention_maps"
    distance: Literal["kl", "mean_squared"] = "kl"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("distance", self.distance, ("kl", "mean_squared"))

    def check(self, models: ModelPair) -> None:
        """Raise ValueError unless both have as many heads."""
        if models.student.heads != models.teacher.heads:
            raise ValueError(
                f"attention_maps: needs one number of heads, but the student has {models.student.heads} and the "
                f"teacher {models.teacher.heads}; use relations"
            )

    def position_values(
        self, activations: PairedActivations, pair: LayerPair, query_ST: Tensor, key_ST: Tensor
    ) -> Tensor:
        """Return the distance at each query, (S, T), mean over heads."""
        student_SATT = of_layer(activations.student.attention, "student's attention", pair[0])
        teacher_SATT = of_layer(activations.teacher.attention, "teacher's attention", pair[1]).detach()
        counts_S1TT = query_ST[:, None, :, None] & key_ST[:, None, None, :]
        student_SATT = computable(student_SATT, counts_S1TT)
        teacher_SATT = computable(teacher_SATT, counts_S1TT)
        if self.distance == "kl":
            return map_divergence(student_SATT, teacher_SATT, query_ST, key_ST).mean(1)
        seen_SATT = counts_S1TT & (student_SATT != -float("inf")) & (teacher_SATT != -float("inf"))
        difference_SATT = student_SATT.where(seen_SATT, 0.0) - teacher_SATT.where(seen_SATT, 0.0)
        return (difference_SATT.square().sum(-1) / seen_SATT.sum(-1).clamp(min=1)).mean(1)


def map_divergence(student_SATT: Tensor, teacher_SATT: Tensor, query_ST: Tensor, key_ST: Tensor) -> Tensor:
    """Return KL(teacher || student) of each head and query, (S, A, T), of scores over the keys that hold a token."""
    # A query that does not count may look at everything: its rows must not be all −inf.
    hidden_S1TT = query_ST[:, None, :, None] & ~key_ST[:, None, None, :]
    log_p_SATT, log_q_SATT = (
        log_probability(scores_SATT.masked_fill(hidden_S1TT, -float("inf")), 1.0)
        for scores_SATT in (teacher_SATT, student_SATT)
    )
    return excess(log_p_SATT.exp(), log_q_SATT.exp(), log_p_SATT - log_q_SATT).sum(-1)
