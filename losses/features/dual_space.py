"""Dual-space distillation: each model's hidden states go through the other's output layer.

N counted tokens of the student (the rows), M of the teacher, S sequences, V vocabulary, d width of what the student's
output layer reads, D of what the teacher's reads, E width of embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..divergences.adaptive_kl import AdaptiveKL
from ..divergences.divergence import Divergence
from ..divergences.forward_kl import ForwardKL
from ..divergences.jensen_shannon import JensenShannon
from ..divergences.labels import Labels
from ..divergences.reverse_kl import ReverseKL
from ..divergences.skew_kl import SkewKL
from ..divergences.skew_reverse_kl import SkewReverseKL
from ..divergences.total_variation import TotalVariation
from ..ranges import one_of
from .activations import ModelPair, TokenStates, Vocabularies, Wanted
from .feature_loss import ActivationLoss, activations_of, computable, of_layer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..rows import Rows
    from .dual_space_maps import DualSpaceMaps

Kind = Literal[
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "skew_kl",
    "skew_reverse_kl",
    "adaptive_kl",
    "total_variation",
]
DIVERGENCES: dict[str, Callable[..., Divergence]] = {
    "forward_kl": ForwardKL,
    "reverse_kl": ReverseKL,
    "jensen_shannon": JensenShannon,
    "skew_kl": SkewKL,
    "skew_reverse_kl": SkewReverseKL,
    "adaptive_kl": AdaptiveKL,
    "total_variation": TotalVariation,
}


class Parts(NamedTuple):
    """The three terms of `DualSpace`, one value a row each, whose sum is the loss; and which rows agree.

    Attributes:
        cross_entropy_N: of the projected teacher and the target. It trains the map to the student's space.
        student_space_N: divergence of the student's logits from the projected teacher's. It trains the student.
        teacher_space_N: forward KL of the projected student from the teacher, in the teacher's vocabulary. It trains
            the student and the map to the teacher's space.
        agrees_N: whether the projected teacher's likeliest token is the target.
    """

    cross_entropy_N: Tensor
    student_space_N: Tensor
    teacher_space_N: Tensor
    agrees_N: Tensor

    @property
    def total_N(self) -> Tensor:
        """The loss."""
        return self.cross_entropy_N + self.student_space_N + self.teacher_space_N


@dataclass(frozen=True, kw_only=True)
class DualSpace(ActivationLoss):
    """CE(t2s, y) + 1[argmax t2s = y] · D(student, t2s) + KL(teacher || s2t), each at every counted token.

    t2s are logits of the teacher's last hidden states, brought to the student's width by a trained map and said by the
    student's output layer; s2t those of the student's, brought to the teacher's width and said by the teacher's. So
    distributions are compared that one and the same output layer made, and models may differ in width. D is
    `divergence` with t2s as the teacher; it does not move the map, which the cross-entropy alone trains, and no
    gradient reaches an output layer or the teacher.

    **With two tokenizers** (`ModelPair.vocabularies.shared` is set) the tokens of the two texts do not correspond, and
    cross-model attention brings them together. A = Q Kᵀ / √(2D) between the counted tokens of a sequence, where Q is a
    trained map of the student's embeddings of a position's token and of the one it predicts, side by side, and K those
    of the teacher. Then t2s is said of softmax(A) V with V = t2s-map(h + e(y)), and s2t of softmax(Aᵀ) times the
    mapped hidden states of the student. K, h and e(y), the embedding of the predicted token, are each divided by the
    standard deviation of their entries **over the counted tokens of a sequence**; the paper's code takes it over the
    whole batch with its prompts and padding, so that a value depends on what else is in the batch.

    **Rows and reduction.** The paper's loss is a sum over the student's counted tokens (the first two terms) and the
    teacher's (the third), divided by the number of the student's. With two tokenizers the third term of a sequence is
    shared evenly among its rows that count, so rows of weight 1 have exactly that as their mean. All rows of a
    sequence must be in one forward pass, as they are. A row in whose sequence the teacher has no counted token costs 0.

    **The maps** are trained with the student and are not part of it. "pseudo_inverse" starts them where they preserve
    logits: t2s = W_S⁺ W_T and s2t = W_T⁺ W_S of the output matrices, in least squares over the vocabulary (over the
    shared tokens of two); exact where the maps' output is no narrower than the rank of what is to be said. DSKDv2
    computes s2t anew from that formula at every step; here it is trained from there. "random" starts them orthogonal,
    as the map of the queries always does.

    The paper takes 0.5 of this and 0.5 of `Labels`, and for the maps a learning rate of 1e-3.

    Paper: Zhang et al. 2024 (DSKD), arXiv:2406.17328, here with the agreement mask for one tokenizer too; the start of
        the maps and the target "teacher" from DSKDv2, arXiv:2504.11426. Its mean over the agreeing tokens alone is
        here the mean over all rows.
    Shapes: rows.student (N, V), rows.teacher (N, V) or rows.activations.teacher_tokens, rows.label (N,),
        rows.activations output (S, T, ·) and token (N,) -> (N,) float32 (float64 for float64), each >= 0.
    Units: nats.

    Raises:
        ValueError: an unknown option, models without output layers over a vocabulary, rows that are not single tokens,
            a target that is missing, or maps that were not built.
    Relations: `ForwardKL` for one tokenizer, without maps; `HiddenStates` compares hidden states themselves;
        `SortedTransport` and `MultiLevelTransport` compare two vocabularies without maps.

    Example:
        >>> import torch
        >>> from distill.losses import Activations, DualSpace, ModelPair, ModelShape, PairedActivations, Rows
        >>> from distill.losses import TokenWeights, Vocabularies
        >>> student = TokenWeights(head=torch.eye(3, 2), embedding=torch.eye(3, 2))
        >>> teacher = TokenWeights(head=torch.eye(3), embedding=torch.eye(3))
        >>> vocabularies = Vocabularies(student, teacher)
        >>> models = ModelPair(ModelShape(1, 2, 1), ModelShape(1, 3, 1), vocabularies=vocabularies)
        >>> hidden, taught = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 2.0, 0.0]]])
        >>> rows = Rows(
        ...     student=student.logits(hidden[0]),
        ...     teacher=teacher.logits(taught[0]),
        ...     label=torch.tensor([1]),
        ...     activations=PairedActivations(
        ...         models,
        ...         Activations(output={0: hidden}),
        ...         Activations(output={0: taught}),
        ...         mask=torch.ones(1, 1),
        ...         token=torch.tensor([0]),
        ...     ),
        ... )
        >>> module = DualSpace().build(models)
        >>> module(rows).detach()
        tensor([0.6488])

    Attributes:
        divergence: what D is, with its own defaults.
        temperature: divides the logits of D and of the KL; the cross-entropy has none.
        scale: multiplies D and the KL: a number, or "temperature_squared".
        initial: how the maps start, see above.
        target: y: "labels", the tokens that follow, or "teacher", the teacher's likeliest tokens (one tokenizer).
        agreement: take D only where the projected teacher's likeliest token is y.
    """

    kind: Literal["dual_space"] = "dual_space"
    divergence: Kind = "forward_kl"
    temperature: float = 2.0
    scale: float | Literal["temperature_squared"] = 1.0
    initial: Literal["pseudo_inverse", "random"] = "pseudo_inverse"
    target: Literal["labels", "teacher"] = "labels"
    agreement: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("divergence", self.divergence, tuple(DIVERGENCES))
        one_of("initial", self.initial, ("pseudo_inverse", "random"))
        one_of("target", self.target, ("labels", "teacher"))
        self._divergence(ForwardKL)  # names a temperature or scale that is out of range

    def _divergence(self, kind: Callable[..., Divergence]) -> Divergence:
        return kind(temperature=self.temperature, scale=self.scale)

    @property
    def zero_at_equality(self) -> bool:
        """False: the cross-entropy stays. The other two terms are 0 for equal models and maps that are the identity."""
        return False

    @property
    def exact_gradient(self) -> bool:
        """False: the projected teacher is a constant to the divergence."""
        return False

    def wanted(self, models: ModelPair) -> tuple[Wanted, Wanted]:
        """Return what the output layers read."""
        self.vocabularies(models)
        return (
            Wanted(output=frozenset({models.student.layers - 1})),
            Wanted(output=frozenset({models.teacher.layers - 1})),
        )

    def vocabularies(self, models: ModelPair) -> Vocabularies:
        """Return the models' vocabularies.

        Raises:
            ValueError: there are none, or this loss cannot compare them.
        """
        found = models.vocabularies
        if found is None:
            raise ValueError(
                "dual_space: compares language models whose logits are what an output layer over a vocabulary says, "
                "but one of these is none"
            )
        said, taught = len(found.student.head), len(found.teacher.head)
        if found.shared is None and said != taught:
            raise ValueError(
                f"dual_space: one tokenizer, but the student says {said} tokens and the teacher {taught}; keep the "
                "rows of the output layers that both have"
            )
        if found.shared is not None:
            if self.target == "teacher":
                raise ValueError(
                    "dual_space: target teacher needs one tokenizer, since the teacher's tokens are not the student's; "
                    "use target labels"
                )
            if self.initial == "pseudo_inverse" and len(found.shared[0]) == 0:
                raise ValueError(
                    "dual_space: the tokenizers share no token to start the maps from; use initial random"
                )
            reads, embeds = found.teacher.head.shape[1], found.teacher.embedding.shape[1]
            if reads != embeds:
                raise ValueError(
                    f"dual_space: adds the teacher's hidden states of width {reads} and its embeddings of width "
                    f"{embeds}, which must be one width where tokenizers differ"
                )
        return found

    def build(self, models: ModelPair) -> nn.Module:
        """Return the trained maps, called on rows in this loss's place."""
        from .dual_space_maps import DualSpaceMaps

        return DualSpaceMaps(self, models)

    def values(self, rows: Rows) -> Tensor:
        """Refuse: the maps are missing."""
        raise ValueError("dual_space: has maps to train; call build(models) and use the module")

    def parts_of_rows(self, rows: Rows, maps: DualSpaceMaps) -> Parts:
        """Return the parts of each row."""
        activations = activations_of(rows)
        vocabularies = self.vocabularies(activations.models)
        if activations.token is None:
            raise ValueError("dual_space: compares single tokens, but these rows are sequences")
        token_N, layers = activations.token, activations.models
        student_STd = of_layer(activations.student.output, "student's output", layers.student.layers - 1)
        student = TokenStates(
            hidden=student_STd.flatten(0, 1)[token_N],
            logits=rows.student,
            target=rows.label,
            sequence=token_N // student_STd.shape[1],
            read=None if activations.read is None else activations.read.flatten()[token_N],
        )
        if vocabularies.shared is None:
            teacher_STD = of_layer(activations.teacher.output, "teacher's output", layers.teacher.layers - 1)
            teacher = TokenStates(teacher_STD.flatten(0, 1)[token_N], rows.detached_teacher())
        elif activations.teacher_tokens is not None:
            teacher = activations.teacher_tokens
        else:
            raise ValueError("dual_space: two tokenizers, but rows.activations have no teacher_tokens")
        return self.parts(student, teacher, vocabularies, maps, rows.weights > 0)

    def parts(
        self,
        student: TokenStates,
        teacher: TokenStates,
        vocabularies: Vocabularies,
        maps: DualSpaceMaps,
        counts_N: Tensor,
    ) -> Parts:
        """Return the parts of each of the student's tokens, 0 where it does not count.

        Args:
            student: N positions.
            teacher: with one tokenizer the same positions; with two its own, M of them.
            vocabularies: of both.
            maps: from `build`.
            counts_N: which of the student's tokens count.
        """
        from ..rows import Rows

        if vocabularies.shared is None:
            met_N = met_M = counts_N
        else:
            met_NM = _in_one_sequence(student, teacher) & counts_N[:, None]
            met_N, met_M = met_NM.any(1), met_NM.any(0)
        # What does not count may be NaN.
        student = replace(student, hidden=computable(student.hidden, met_N[:, None]))
        teacher = replace(teacher, hidden=computable(teacher.hidden.detach(), met_M[:, None]))
        if vocabularies.shared is None:
            hidden_Nd, hidden_MD = maps.t2s(teacher.hidden), maps.s2t(student.hidden)
        else:
            hidden_Nd, hidden_MD = maps.attended(student, teacher, vocabularies, met_NM)
        target_N = student.target if self.target == "labels" else teacher.logits.argmax(-1)
        if target_N is None:
            raise ValueError("dual_space: target labels, but rows.label is None; use target teacher")

        projected_NV = vocabularies.student.logits(hidden_Nd)
        fixed_NV = projected_NV.detach()
        agrees_N = met_N & (fixed_NV.argmax(-1) == target_N)
        compared_N = agrees_N if self.agreement else met_N
        student_space = self._divergence(DIVERGENCES[self.divergence])
        teacher_space_M = self._divergence(ForwardKL).values(
            Rows(
                student=vocabularies.teacher.logits(hidden_MD), teacher=teacher.logits.detach(), weight=met_M
            )
        )
        return Parts(
            cross_entropy_N=Labels().values(Rows(student=projected_NV, label=target_N, weight=met_N)),
            student_space_N=student_space.values(
                Rows(student=student.logits, teacher=fixed_NV, weight=compared_N)
            ),
            teacher_space_N=teacher_space_M
            if vocabularies.shared is None
            else _shared_out(teacher_space_M, met_NM),
            agrees_N=agrees_N,
        )


def _in_one_sequence(student: TokenStates, teacher: TokenStates) -> Tensor:
    """Return (N, M): whether two tokens stand in the same sequence."""
    if student.sequence is None or teacher.sequence is None:
        raise ValueError(
            "dual_space: two tokenizers, but it is not known which sequences the tokens stand in"
        )
    return student.sequence[:, None] == teacher.sequence


def _shared_out(values_M: Tensor, met_NM: Tensor) -> Tensor:
    """Return (N,): of each row an equal share of the sum over its sequence's M."""
    shares_NM = met_NM.to(values_M.dtype)
    # The rows that share a teacher's token are those of its sequence that count.
    return (shares_NM / shares_NM.sum(0).clamp(min=1)) @ values_M
