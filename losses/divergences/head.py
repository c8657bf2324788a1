"""Which classes belong to the head of the teacher's distribution.

N rows, V vocabulary, K rows where a tie has to be broken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def head(p_NV: Tensor, q_NV: Tensor, least_N1: Tensor, members_N1: Tensor) -> Tensor:
    """Return 1 for each row's `members` largest classes of p and 0 for the others, (N, V), in p's dtype.

    least_N1 is the smallest p among them. Where more classes share that p than there are places, as coarse logits
    make them, those with the larger q come first (all of them, if they share that too): so which number a class has
    does not matter.
    """
    in_head_NV = (p_NV >= least_N1).to(p_NV.dtype)
    crowded_N = in_head_NV.sum(-1) > members_N1.squeeze(-1)
    place_K = crowded_N.nonzero().squeeze(-1)
    if len(place_K) == 0:
        return in_head_NV
    p_KV, q_KV, least_K1 = p_NV[place_K], q_NV[place_K].detach(), least_N1[place_K]
    above_KV = p_KV > least_K1
    wanted_K1 = members_N1[place_K] - above_KV.sum(-1, keepdim=True)
    rank_KV = q_KV.where(p_KV == least_K1, -1.0)
    cut_K1 = rank_KV.sort(descending=True).values.gather(-1, (wanted_K1 - 1).clamp(min=0))
    first_KV = above_KV | ((rank_KV >= cut_K1) & (rank_KV >= 0))
    return in_head_NV.index_copy(0, place_K, first_KV.to(p_NV.dtype))
