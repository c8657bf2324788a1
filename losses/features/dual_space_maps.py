"""The trained maps between two language models' hidden states, and the attention between their tokens.

N counted tokens of the student, M of the teacher, V vocabulary, K of its tokens, d width of what the student's output
layer reads, D of what the teacher's reads, E width of embeddings.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .activations import ModelPair, TokenStates, Vocabularies
from .dual_space import DualSpace

if TYPE_CHECKING:
    from ..rows import Rows

_BLOCK = 4096


class DualSpaceMaps(nn.Module):
    """`DualSpace` with its maps, called on rows like the loss itself.

    Args:
        loss: its configuration.
        models: with their vocabularies.

    Attributes:
        t2s: from what the teacher's output layer reads to what the student's reads.
        s2t: back.
        query: with two tokenizers, from the student's embeddings of two tokens, side by side, to the teacher's.
    """

    t2s: nn.Linear
    s2t: nn.Linear
    query: nn.Linear | None

    def __init__(self, loss: DualSpace, models: ModelPair):
        super().__init__()
        self.loss = loss
        vocabularies = loss.vocabularies(models)
        student, teacher = vocabularies.student, vocabularies.teacher
        d, D = student.head.shape[1], teacher.head.shape[1]
        self.t2s, self.s2t = nn.Linear(D, d, bias=False), nn.Linear(d, D, bias=False)
        self.query = None
        if vocabularies.shared is not None:
            self.query = nn.Linear(2 * student.embedding.shape[1], 2 * teacher.embedding.shape[1], bias=False)
            nn.init.orthogonal_(self.query.weight)
        if loss.initial == "random":
            nn.init.orthogonal_(self.t2s.weight)
            nn.init.orthogonal_(self.s2t.weight)
            return
        said_S, said_T = student.head.detach(), teacher.head.detach()
        if vocabularies.shared is not None:
            shared_S, shared_T = vocabularies.shared
            said_S, said_T = said_S[shared_S.to(said_S.device)], said_T[shared_T.to(said_T.device)]
        with torch.no_grad():
            self.t2s.weight.copy_(preserving(said_S, said_T))
            self.s2t.weight.copy_(preserving(said_T, said_S))

    def attended(
        self, student: TokenStates, teacher: TokenStates, vocabularies: Vocabularies, met_NM: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the teacher's states at the student's tokens, (N, d), and the student's at the teacher's, (M, D).

        Args:
            student: N tokens.
            teacher: M tokens.
            vocabularies: of both.
            met_NM: which tokens look at each other. One that none is True for gets zeros.

        Raises:
            ValueError: it is not known which tokens were read and are to be predicted.
        """
        assert self.query is not None  # noqa: S101 - built for these vocabularies
        met_N, met_M = met_NM.any(1), met_NM.any(0)
        read_N2E, _ = _embedded(student, vocabularies.student.embedding, met_N)
        key_M2E, predicted_ME = _embedded(teacher, vocabularies.teacher.embedding, met_M)
        one_MM = _sequences(teacher, met_M)
        query_N2E = self.query(read_N2E)
        key_M2E = key_M2E / spread(key_M2E, one_MM)
        value_MD = teacher.hidden / spread(teacher.hidden, one_MM) + predicted_ME / spread(
            predicted_ME, one_MM
        )
        scores_NM = query_N2E @ key_M2E.T / math.sqrt(2 * teacher.hidden.shape[1])
        return (
            masked_softmax(scores_NM, met_NM) @ self.t2s(value_MD),
            masked_softmax(scores_NM.T, met_NM.T) @ self.s2t(student.hidden),
        )

    def evaluate(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, (N,), without the term's weight, and the share of rows where the projected teacher errs."""
        parts = self.loss.parts_of_rows(rows, self)
        counted = (rows.weights > 0).sum().clamp(min=1)
        return parts.total_N, {"disagreement": 1 - parts.agrees_N.sum() / counted}

    def forward(self, rows: Rows) -> Tensor:
        """Return weight times the loss, (N,)."""
        return self.loss.weight * self.evaluate(rows)[0]

    def extra_repr(self) -> str:
        """Name the loss."""
        return repr(self.loss)


def preserving(own_Ka: Tensor, other_Kb: Tensor) -> Tensor:
    """Return own⁺ other, (a, b): the map after which `own` says of K tokens most nearly what `other` said before.

    By the normal equations, in float64 and a block of tokens at a time: a vocabulary is far longer than wide.

    Example:
        >>> import torch
        >>> from distill.losses.features.dual_space_maps import preserving
        >>> preserving(torch.tensor([[2.0], [0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([[0.5000, 0.0000]], dtype=torch.float64)
    """
    gram_aa = own_Ka.new_zeros(own_Ka.shape[1], own_Ka.shape[1], dtype=torch.float64)
    cross_ab = own_Ka.new_zeros(own_Ka.shape[1], other_Kb.shape[1], dtype=torch.float64)
    for start in range(0, len(own_Ka), _BLOCK):
        part_Ka = own_Ka[start : start + _BLOCK].double()
        gram_aa += part_Ka.T @ part_Ka
        cross_ab += part_Ka.T @ other_Kb[start : start + _BLOCK].to(part_Ka)
    map_ab: Tensor = torch.linalg.pinv(gram_aa, hermitian=True) @ cross_ab
    return map_ab


def masked_softmax(scores_NM: Tensor, met_NM: Tensor) -> Tensor:
    """Return the softmax over M of what is met; zeros for a row that meets nothing."""
    lowest = torch.finfo(scores_NM.dtype).min
    return scores_NM.masked_fill(~met_NM, lowest).softmax(-1) * met_NM


def spread(values_MD: Tensor, one_MM: Tensor) -> Tensor:
    """Return (M, 1), the standard deviation (n − 1) of the entries of a token's sequence; 1 where it is 0.

    Args:
        values_MD: what each token has.
        one_MM: 1 where two tokens stand in one sequence, else 0.
    """
    count_M = one_MM.sum(1) * values_MD.shape[1]
    mean_M = one_MM @ values_MD.sum(1) / count_M.clamp(min=1)
    square_M = one_MM @ (values_MD - mean_M[:, None]).square().sum(1)
    deviation_M = (square_M / (count_M - 1).clamp(min=1)).sqrt()
    return deviation_M.where(deviation_M > 0, 1.0)[:, None]


def _sequences(tokens: TokenStates, met_M: Tensor) -> Tensor:
    assert tokens.sequence is not None  # noqa: S101 - what is met was found by it
    one_MM = (tokens.sequence[:, None] == tokens.sequence) & met_M[:, None] & met_M
    return one_MM.to(tokens.hidden.dtype)


def _embedded(tokens: TokenStates, embedding_VE: Tensor, met_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the embeddings of the token read and the one to be predicted, side by side, and of the latter alone."""
    if tokens.read is None or tokens.target is None:
        raise ValueError(
            "dual_space: two tokenizers, but it is not known which tokens were read and are predicted"
        )
    embedding_VE = embedding_VE.detach()
    met_N1 = met_N[:, None]
    read_NE, target_NE = (
        embedding_VE[token_N.where(met_N, 0)].to(tokens.hidden.dtype).where(met_N1, 0.0)
        for token_N in (tokens.read, tokens.target)
    )
    return torch.cat([read_NE, target_NE], -1), target_NE
