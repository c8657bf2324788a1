"""Which rows a batch-wise loss sees together.

N rows, K rows that count, G rows of one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rows import Rows


@dataclass(frozen=True, eq=False)
class Groups:
    """The rows that count (weight > 0), group by group.

    Attributes:
        order_K: their places, those of a group together and in their old order; None when that is every row where
            it stands already. Then nothing is copied, nor waited for on a GPU unless rows.group is given.
        sizes: rows of each group.
    """

    order_K: Tensor | None
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, rows: Rows, group_size: int | None) -> Groups:
        """Group by rows.group; where that is None, consecutive rows of group_size; without either, all together."""
        if rows.weight is None and rows.group is None:
            count, size = len(rows), group_size or len(rows)
            return cls(
                None, tuple(min(size, count - start) for start in range(0, count, size)) if count else ()
            )
        kept_K = (rows.weights > 0).nonzero().squeeze(-1)
        if rows.group is not None:
            group_K = rows.group[kept_K]
        elif group_size is not None:
            group_K = kept_K.div(group_size, rounding_mode="floor")
        else:
            group_K = torch.zeros_like(kept_K)
        group_K, place_K = group_K.sort(stable=True)
        starts_G = torch.cat([group_K.new_ones(min(1, len(group_K))), group_K.diff()]).nonzero().squeeze(-1)
        sizes = tuple(torch.cat([starts_G, starts_G.new_tensor([len(group_K)])]).diff().tolist())
        order_K = kept_K[place_K]
        if len(order_K) == len(rows) and order_K.device.type == "cpu" and bool((order_K.diff() == 1).all()):
            return cls(None, sizes)
        return cls(order_K, sizes)

    def split(self, part_N: Tensor) -> Sequence[Tensor]:
        """Return each group's rows of a tensor, differentiably."""
        part_K = self.together(part_N)
        return (part_K,) if len(self.sizes) == 1 else torch.split(part_K, list(self.sizes))

    def together(self, part_N: Tensor) -> Tensor:
        """Return all groups' rows of a tensor, one group after the other, differentiably."""
        return part_N if self.order_K is None else part_N[self.order_K]

    def join(self, parts: Sequence[Tensor], rows: Rows) -> Tensor:
        """Put the groups' values (G,) back in their rows' places, (N,); rows that do not count get 0."""
        if self.order_K is None and parts:
            return torch.cat(list(parts)) if len(parts) > 1 else parts[0]
        # A 0 for every row that still hangs on the student's logits, whatever they are.
        values_N = rows.student_logits()[:, 0].where(torch.zeros_like(rows.weights, dtype=torch.bool), 0.0)
        if self.order_K is None or not parts:
            return values_N
        return values_N.index_copy(0, self.order_K, torch.cat(list(parts)))
