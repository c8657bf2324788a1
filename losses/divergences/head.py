"""Which classes belong to the head of the teacher's distribution.

N rows, V vocabulary, K classes of the head, M rows where a tie has to be broken.
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
    place_M = crowded_N.nonzero().squeeze(-1)
    if len(place_M) == 0:
        return in_head_NV
    p_MV, q_MV, least_M1 = p_NV[place_M], q_NV[place_M].detach(), least_N1[place_M]
    above_MV = p_MV > least_M1
    wanted_M1 = (members_N1[place_M] - above_MV.sum(-1, keepdim=True)).clamp(min=1)
    rank_MV = q_MV.where(p_MV == least_M1, -1.0)
    cut_M1 = rank_MV.topk(int(wanted_M1.amax())).values.gather(-1, wanted_M1 - 1)
    first_MV = above_MV | ((rank_MV >= cut_M1) & (rank_MV >= 0))
    return in_head_NV.index_copy(0, place_M, first_MV.to(p_NV.dtype))


def classes_of_head(p_NV: Tensor, q_NV: Tensor, members: int) -> tuple[Tensor, Tensor]:
    """Return the classes of which `head` says 1, (N, K), and 1 for each of them, or 0: then it is padding.

    Of classes with p = 0 any may be among them, ties or not.
    """
    import torch

    classes = p_NV.shape[1]
    members = min(members, classes)
    top = p_NV.topk(min(members + 1, classes))
    index_NK, kept_NK = top.indices[:, :members], top.values.new_ones(len(p_NV), members)
    if members == classes:
        return index_NK, kept_NK
    least_N, next_N = top.values[:, members - 1], top.values[:, members]
    place_M = ((least_N == next_N) & (least_N > 0)).nonzero().squeeze(-1)
    if len(place_M) == 0:
        return index_NK, kept_NK
    least_M1 = least_N[place_M].unsqueeze(-1)
    in_head_MV = head(
        p_NV[place_M], q_NV[place_M], least_M1, least_M1.new_full(least_M1.shape, members).long()
    )
    # More than `members`, where classes share q too.
    most = int(in_head_MV.sum(-1).amax())
    kept_MK, index_MK = in_head_MV.topk(most)
    more = (0, most - members)
    return (
        torch.nn.functional.pad(index_NK, more).index_copy(0, place_M, index_MK),
        torch.nn.functional.pad(kept_NK, more).index_copy(0, place_M, kept_MK),
    )
