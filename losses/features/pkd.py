"""Patient distillation: the first token's hidden state, layer after layer.

S sequences, T positions, H hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .activations import LayerPair, ModelPair, PairedActivations
from .feature_loss import FeatureLoss
from .hidden_states import hidden_of, squared_distance_of_directions

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PKD(FeatureLoss):
    """‖h_s/‖h_s‖ − h_t/‖h_t‖‖² of the first token ([CLS]) of each sequence, mean over layer pairs.

    Layers by default: as `ModelPair.layer_map`, without the student's last layer, whose work the logits' loss sees.
    The paper's sum over layers is this times their number. Its code takes the mean over the H entries besides, so its
    weight β of 100 is here β / H.

    Paper: Sun et al. 2019 (PKD), arXiv:1908.09355, the loss L_PT.
    Shapes: rows.activations hidden (S, T, H) of each layer -> (N,) float32 (float64 for float64), each in [0, 4].
    Units: none; a squared chord, 2 − 2 cos.

    Raises:
        ValueError: models of different widths, a student of one layer without `layers`, a layer that is not there,
            rows without activations, or rows that are single tokens.
    Relations: `HiddenStates(distance="cosine")` compares every token, and models of different widths.

    Example:
        >>> import torch
        >>> from distill.losses import Activations, ModelPair, ModelShape, PairedActivations, PKD, Rows
        >>> models = ModelPair(ModelShape(2, 2, 1), ModelShape(2, 2, 1))
        >>> activations = PairedActivations(
        ...     models,
        ...     Activations(hidden={0: torch.tensor([[[3.0, 0.0], [9.0, 9.0]]])}),
        ...     Activations(hidden={0: torch.tensor([[[0.0, 5.0], [0.0, 0.0]]])}),
        ...     mask=torch.tensor([[1, 1]]),
        ... )
        >>> PKD()(Rows(student=torch.zeros(1, 3), activations=activations))
        tensor([2.])
    """

    reads = "hidden"

    kind: Literal["pkd"] = "pkd"

    @property
    def bound(self) -> float:
        """4: opposite directions."""
        return 4.0

    def pairs(self, models: ModelPair) -> tuple[LayerPair, ...]:
        """Return the layers to compare; by default all but the student's last."""
        if self.layers is not None:
            return super().pairs(models)
        if models.student.layers == 1:
            raise ValueError(
                "pkd: leaves out the student's last layer, and this one has no other; give layers"
            )
        return super().pairs(models)[:-1]

    def check(self, models: ModelPair) -> None:
        """Raise ValueError unless both have one width."""
        if models.student.width != models.teacher.width:
            raise ValueError(
                f"pkd: needs one width, but the student's is {models.student.width} and the teacher's "
                f"{models.teacher.width}; use hidden_states with distance cosine"
            )

    def counted(self, activations: PairedActivations, query_ST: Tensor) -> Tensor:
        """Return the first token of each sequence."""
        if activations.token is not None:
            raise ValueError("pkd: compares the first token of a sequence, but these rows are single tokens")
        return query_ST & (query_ST.cumsum(-1) == 1)

    def position_values(
        self, activations: PairedActivations, pair: LayerPair, query_ST: Tensor, key_ST: Tensor
    ) -> Tensor:
        """Return the squared chord at each position, (S, T)."""
        return squared_distance_of_directions(*hidden_of(activations, pair, query_ST))
