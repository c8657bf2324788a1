"""Dual-space distillation: by loops, its laws, where its gradients go, and mistakes that are caught by name.

S sequences, T positions, N counted tokens of the student, M of the teacher, V vocabulary, d and D widths.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from distill.losses.features import dual_space as module_of_loss
from distill.losses.features import dual_space_maps
from distill.losses.features.dual_space_maps import DualSpaceMaps, preserving, spread
from pydantic import TypeAdapter
from torch import Tensor

from distill.errors import NumericsError
from distill.losses import (
    Activations,
    AnyLoss,
    DualSpace,
    ForwardKL,
    HiddenStates,
    Labels,
    ModelPair,
    ModelShape,
    PairedActivations,
    Rows,
    TokenStates,
    TokenWeights,
    Vocabularies,
    Wanted,
)

SMALL, LARGE = 4, 6
STUDENT_V, TEACHER_V = 9, 11
POSITIONS = 6
SHARED = (torch.tensor([0, 1, 2, 3, 5, 7, 8]), torch.tensor([0, 2, 1, 4, 6, 9, 10]))
STUDENT_PLACES = ((1, 2, 3, 4), (0, 2), (0, 1, 2))
TEACHER_PLACES = ((0, 1, 2), (1, 2, 3, 4), (0, 3))
"""Counted positions of the three sequences, on both sides."""

kinds = pytest.mark.parametrize("crossed", [False, True], ids=["one_tokenizer", "two_tokenizers"])


class Drawn:
    """A stream of numbers in float64."""

    def __init__(self, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)

    def numbers(self, *size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=self.generator)

    def tokens(self, below: int, *size: int) -> Tensor:
        return torch.randint(below, size, generator=self.generator)


def drawn_models(crossed: bool, *, bias: bool = True) -> ModelPair:
    draw = Drawn(1)
    said = STUDENT_V, TEACHER_V if crossed else STUDENT_V

    def weights(tokens: int, width: int) -> TokenWeights:
        return TokenWeights(
            draw.numbers(tokens, width).requires_grad_(),
            draw.numbers(tokens, width).requires_grad_(),
            draw.numbers(tokens).requires_grad_() if bias else None,
        )

    vocabularies = Vocabularies(weights(said[0], SMALL), weights(said[1], LARGE), SHARED if crossed else None)
    return ModelPair(ModelShape(2, SMALL, 1), ModelShape(3, LARGE, 1), vocabularies=vocabularies)


def drawn_rows(
    crossed: bool, *, models: ModelPair | None = None, sequences=(0, 1, 2), weight: bool = True
) -> Rows:
    """Rows of some of three sequences of uneven length; each sequence is the same whatever the others are."""
    models = drawn_models(crossed) if models is None else models
    length = len(sequences)
    hidden = [Drawn(10 + s).numbers(POSITIONS, SMALL) for s in sequences]
    taught = [Drawn(20 + s).numbers(POSITIONS, LARGE) for s in sequences]
    token_N = torch.tensor(
        [place * POSITIONS + at for place, s in enumerate(sequences) for at in STUDENT_PLACES[s]],
        dtype=torch.long,
    )
    output_STd, output_STD = torch.stack(hidden), torch.stack(taught)
    rows_of = [Drawn(30 + s) for s in sequences]
    student_NV = torch.cat(
        [draw.numbers(len(STUDENT_PLACES[s]), STUDENT_V) for draw, s in zip(rows_of, sequences, strict=True)]
    )
    label_N = torch.cat(
        [draw.tokens(STUDENT_V, len(STUDENT_PLACES[s])) for draw, s in zip(rows_of, sequences, strict=True)]
    )
    weight_N = torch.cat([Drawn(40 + s).numbers(len(STUDENT_PLACES[s])).abs() + 0.1 for s in sequences])
    said = models.vocabularies.teacher
    own = None
    if crossed:
        places = [(place, at) for place, s in enumerate(sequences) for at in TEACHER_PLACES[s]]
        hidden_MD = torch.stack([output_STD[place, at] for place, at in places])
        read = [Drawn(50 + s).tokens(TEACHER_V, POSITIONS + 1) for s in sequences]
        own = TokenStates(
            hidden_MD,
            said.logits(hidden_MD),
            target=torch.stack([read[place][at + 1] for place, at in places]),
            sequence=torch.tensor([place for place, _ in places]),
            read=torch.stack([read[place][at] for place, at in places]),
        )
    activations = PairedActivations(
        models,
        Activations(output={1: output_STd}),
        Activations() if crossed else Activations(output={2: output_STD}),
        mask=torch.ones(length, POSITIONS),
        token=token_N,
        read=torch.stack([Drawn(60 + s).tokens(STUDENT_V, POSITIONS) for s in sequences]),
        teacher_tokens=own,
    )
    return Rows(
        student=student_NV,
        teacher=None if crossed else said.logits(output_STD.flatten(0, 1)[token_N]),
        label=label_N,
        weight=weight_N if weight else None,
        activations=activations,
    )


def built(loss: DualSpace, models: ModelPair) -> DualSpaceMaps:
    """The maps away from where they start, in float64."""
    torch.manual_seed(3)
    maps = loss.build(models).double()
    with torch.no_grad():
        for parameter in maps.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, dtype=torch.float64)
    return maps


# The definition, by loops that share no code with the library.


def log_softmax(logits: np.ndarray) -> np.ndarray:
    top = max(logits)
    return logits - top - math.log(sum(math.exp(each - top) for each in logits))


def divergence_by_loops(kind: str, teacher: np.ndarray, student: np.ndarray) -> float:
    log_p, log_q = log_softmax(teacher), log_softmax(student)
    p, q = np.exp(log_p), np.exp(log_q)
    if kind == "forward_kl":
        return float(sum(p * (log_p - log_q)))
    if kind == "reverse_kl":
        return float(sum(q * (log_q - log_p)))
    if kind == "jensen_shannon":
        m = np.log((p + q) / 2)
        return float(sum(p * (log_p - m)) + sum(q * (log_q - m))) / 2
    if kind == "skew_kl":
        return float(sum(p * (log_p - np.log(0.1 * p + 0.9 * q))))
    assert kind == "skew_reverse_kl"
    return float(sum(q * (log_q - np.log(0.9 * p + 0.1 * q))))


def by_loops(loss: DualSpace, rows: Rows, maps: DualSpaceMaps) -> tuple[list[float], float]:
    """Each row's cross-entropy and student-space term, and the sum over the teacher's tokens of the third, all unweighted."""
    activations = rows.activations
    vocabularies, crossed = activations.models.vocabularies, activations.teacher_tokens is not None

    def array(tensor: Tensor) -> np.ndarray:
        return tensor.detach().numpy()

    def say(whose: TokenWeights, vector: np.ndarray) -> np.ndarray:
        return np.array([row @ vector for row in array(whose.head)]) + array(whose.bias)

    t2s, s2t = array(maps.t2s.weight), array(maps.s2t.weight)
    counts = [float(weight) > 0 for weight in rows.weights]
    places = [(int(at) // POSITIONS, int(at) % POSITIONS) for at in activations.token]
    hidden = array(activations.student.output[1])
    firsts, third = [], 0.0
    for number, (sequence, at) in enumerate(places):
        if not counts[number]:
            firsts.append(0.0)
            continue
        if not crossed:
            taught = array(activations.teacher.output[2])[sequence, at]
            projected = say(vocabularies.student, t2s @ taught)
            told = say(vocabularies.teacher, s2t @ hidden[sequence, at])
            temperature = loss.temperature
            third += divergence_by_loops(
                "forward_kl", array(rows.teacher)[number] / temperature, told / temperature
            )
        else:
            scores, _ = attention_by_loops(rows, maps, sequence)
            mine = [n for n, place in enumerate(places) if place[0] == sequence and counts[n]].index(number)
            values = values_by_loops(rows, maps, sequence)
            alike = np.exp(log_softmax(scores[mine]))
            projected = say(
                vocabularies.student, sum(w * value for w, value in zip(alike, values, strict=True))
            )
        target = int(rows.label[number])
        if loss.target == "teacher":
            target = int(np.argmax(array(rows.teacher)[number]))
        value = -log_softmax(projected)[target]
        if int(np.argmax(projected)) == target or not loss.agreement:
            value += divergence_by_loops(
                loss.divergence, projected / loss.temperature, array(rows.student)[number] / loss.temperature
            )
        firsts.append(float(value))
    if crossed:
        own = activations.teacher_tokens
        for m in range(len(own)):
            sequence = int(own.sequence[m])
            mine = [n for n, place in enumerate(places) if place[0] == sequence and counts[n]]
            if not mine:
                continue
            scores, members = attention_by_loops(rows, maps, sequence)
            alike = np.exp(log_softmax(scores[:, members.index(m)]))
            mixed = sum(
                w * (s2t @ hidden[places[n][0], places[n][1]]) for w, n in zip(alike, mine, strict=True)
            )
            told = say(vocabularies.teacher, mixed)
            third += divergence_by_loops(
                "forward_kl", array(own.logits)[m] / loss.temperature, told / loss.temperature
            )
    return firsts, third


def attention_by_loops(rows: Rows, maps: DualSpaceMaps, sequence: int) -> tuple[np.ndarray, list[int]]:
    """Scores of the sequence's counted student tokens and its teacher tokens, and which these are."""
    activations = rows.activations
    own, vocabularies = activations.teacher_tokens, activations.models.vocabularies
    embedding_S, embedding_T = (
        side.embedding.detach().numpy() for side in (vocabularies.student, vocabularies.teacher)
    )
    members = [m for m in range(len(own)) if int(own.sequence[m]) == sequence]
    keys = [np.concatenate([embedding_T[int(own.read[m])], embedding_T[int(own.target[m])]]) for m in members]
    keys = np.array(keys) / np.std(np.array(keys), ddof=1)
    queries = []
    for number, at in enumerate(activations.token.tolist()):
        if at // POSITIONS == sequence and float(rows.weights[number]) > 0:
            both = (int(activations.read.flatten()[at]), int(rows.label[number]))
            queries.append(
                maps.query.weight.detach().numpy() @ np.concatenate([embedding_S[t] for t in both])
            )
    scores = [[query @ key / math.sqrt(2 * LARGE) for key in keys] for query in queries]
    return np.array(scores), members


def values_by_loops(rows: Rows, maps: DualSpaceMaps, sequence: int) -> list[np.ndarray]:
    own = rows.activations.teacher_tokens
    members = [m for m in range(len(own)) if int(own.sequence[m]) == sequence]
    embedding_T = rows.activations.models.vocabularies.teacher.embedding.detach().numpy()
    hidden = np.array([own.hidden[m].numpy() for m in members])
    targets = np.array([embedding_T[int(own.target[m])] for m in members])
    summed = hidden / np.std(hidden, ddof=1) + targets / np.std(targets, ddof=1)
    return [maps.t2s.weight.detach().numpy() @ each for each in summed]


CONFIGURATIONS = [
    (False, DualSpace()),
    (False, DualSpace(divergence="reverse_kl", temperature=1.0, agreement=False)),
    (False, DualSpace(target="teacher", divergence="skew_kl", initial="random")),
    (True, DualSpace()),
    (True, DualSpace(divergence="jensen_shannon", agreement=False, initial="random")),
    (True, DualSpace(divergence="skew_reverse_kl", temperature=0.7, agreement=False)),
]


def agreeing(rows: Rows, loss: DualSpace, maps: DualSpaceMaps) -> Rows:
    """The rows with every second label the one that the projected teacher finds likeliest, where labels are free."""
    if rows.activations.teacher_tokens is not None:
        return rows  # there the labels decide what the projected teacher says
    taught = rows.activations.teacher.output[2].flatten(0, 1)[rows.activations.token]
    likeliest = rows.activations.models.vocabularies.student.logits(maps.t2s(taught)).argmax(-1)
    return replace(rows, label=rows.label.where(torch.arange(len(rows)) % 2 == 0, likeliest))


@pytest.mark.parametrize(("crossed", "loss"), CONFIGURATIONS, ids=lambda each: str(each))
@pytest.mark.parametrize("masked", [False, True])
def test_values_are_the_definition_by_loops(crossed, loss, masked):
    rows = drawn_rows(crossed, weight=False)
    maps = built(loss, rows.activations.models)
    rows = agreeing(rows, loss, maps)
    if masked:
        rows = replace(rows, weight=torch.tensor([1.0, 0, 1, 1, 1, 1, 0, 1, 1]))
    parts = loss.parts_of_rows(rows, maps)
    firsts, third = by_loops(loss, rows, maps)
    found = (parts.cross_entropy_N + parts.student_space_N).detach()
    torch.testing.assert_close(found, torch.tensor(firsts, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    assert float(parts.teacher_space_N.detach().sum()) == pytest.approx(third, rel=1e-10)
    # The paper's number: sums over both sides' tokens, over the number of the student's.
    paper = (sum(firsts) + third) / int((rows.weights > 0).sum())
    assert float(rows.mean(maps(rows)).detach()) == pytest.approx(paper, rel=1e-10)


def test_the_agreement_mask_lets_some_rows_of_the_examples_through_and_others_not():
    for crossed in (False, True):
        loss = DualSpace()
        rows = drawn_rows(crossed)
        maps = built(loss, rows.activations.models)
        rows = agreeing(rows, loss, maps)
        if crossed:  # what the labels of the rows would have to be, one at a time
            for n in range(len(rows)):
                for token in range(STUDENT_V):
                    label = rows.label.clone()
                    label[n] = token
                    tried = replace(rows, label=label)
                    if loss.parts_of_rows(tried, maps).agrees_N[n]:
                        rows = tried
                        break
        parts = loss.parts_of_rows(rows, maps)
        assert 0 < int(parts.agrees_N.sum()) < len(rows)
        assert ((parts.student_space_N > 0) == parts.agrees_N).all()
        free = replace(loss, agreement=False).parts_of_rows(rows, maps)
        assert (free.student_space_N > 0).all()
        _, figures = maps.evaluate(rows)
        assert float(figures["disagreement"]) == pytest.approx(1 - float(parts.agrees_N.double().mean()))
        firsts, _ = by_loops(loss, rows, maps)
        found = (parts.cross_entropy_N + parts.student_space_N).detach()
        torch.testing.assert_close(found, torch.tensor(firsts, dtype=torch.float64), rtol=1e-10, atol=1e-12)


# Its laws.


@kinds
def test_any_split_between_sequences_gives_the_same_values_and_gradients(crossed):
    loss = DualSpace(agreement=False)
    models = drawn_models(crossed)
    maps = built(loss, models)
    whole = drawn_rows(crossed, models=models)
    total = float(whole.weights.sum())
    whole.mean(maps(whole), total_weight=total).backward()
    expected = [parameter.grad.clone() for parameter in maps.parameters()]
    maps.zero_grad()
    parts = [drawn_rows(crossed, models=models, sequences=part) for part in ((1,), (2, 0))]
    values = [maps(part) for part in parts]
    for part, values_N in zip(parts, values, strict=True):
        part.mean(values_N, total_weight=total).backward()
    torch.testing.assert_close(
        torch.cat([values[1][3:], values[0], values[1][:3]]), maps(whole), rtol=1e-11, atol=1e-12
    )
    for parameter, gradient in zip(maps.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


@kinds
def test_rows_of_weight_0_change_nothing_whatever_they_hold(crossed):
    loss = DualSpace(agreement=False)
    rows = drawn_rows(crossed)
    maps = built(loss, rows.activations.models)
    weight = rows.weight.clone()
    weight[[0, 2, 4, 5]] = 0  # two of the first sequence, all of the second
    masked = replace(rows, weight=weight)
    kept = masked.select(weight > 0)
    spoilt_NV, label = rows.student.clone(), rows.label.clone()
    spoilt_NV[weight == 0], label[weight == 0] = math.nan, -100
    output = rows.activations.student.output[1].clone()
    output.view(-1, SMALL)[rows.activations.token[weight == 0]] = math.nan
    own = rows.activations.teacher_tokens
    if crossed:
        gone = own.sequence == 1
        own = replace(
            own,
            hidden=own.hidden.masked_fill(gone[:, None], math.nan),
            logits=own.logits.masked_fill(gone[:, None], math.nan),
        )
    spoilt = replace(
        masked,
        student=spoilt_NV.requires_grad_(),
        label=label,
        activations=replace(
            rows.activations, student=Activations(output={1: output.requires_grad_()}), teacher_tokens=own
        ),
    )
    spoilt.check_finite()
    mean = spoilt.mean(maps(spoilt))
    assert float(mean.detach()) == pytest.approx(float(kept.mean(maps(kept)).detach()), rel=1e-12)
    mean.backward()
    found = [parameter.grad.clone() for parameter in maps.parameters()]
    assert not spoilt_NV.grad[weight == 0].any()
    assert spoilt_NV.grad[weight > 0].any(-1).all()
    unseen = torch.ones(output.shape[:2], dtype=torch.bool).flatten()
    unseen[rows.activations.token[weight > 0]] = False
    assert not output.grad.flatten(0, 1)[unseen].any()
    maps.zero_grad()
    kept.mean(maps(kept)).backward()
    for parameter, gradient in zip(maps.parameters(), found, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-10, atol=1e-13)


@kinds
@pytest.mark.parametrize("empty", [False, True])
def test_a_batch_in_which_nothing_counts_costs_0_with_a_gradient_of_zeros(crossed, empty):
    loss = DualSpace()
    rows = drawn_rows(crossed)
    maps = built(loss, rows.activations.models)
    rows = replace(rows, weight=torch.zeros(len(rows)), student=rows.student.requires_grad_())
    if empty:
        rows = rows.select(slice(0, 0))
    mean = rows.mean(maps(rows))
    assert float(mean.detach()) == 0
    mean.backward()
    for parameter in maps.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_a_row_whose_sequence_has_no_token_of_the_teacher_costs_0():
    loss = DualSpace(agreement=False)
    rows = drawn_rows(True)
    maps = built(loss, rows.activations.models)
    own = rows.activations.teacher_tokens
    kept = own.sequence != 1
    fewer = TokenStates(
        own.hidden[kept], own.logits[kept], own.target[kept], own.sequence[kept], own.read[kept]
    )
    found = maps(replace(rows, activations=replace(rows.activations, teacher_tokens=fewer)))
    expected = maps(rows)
    assert not found[4:6].any()
    torch.testing.assert_close(found[:4], expected[:4], rtol=1e-12, atol=0)
    torch.testing.assert_close(found[6:], expected[6:], rtol=1e-12, atol=0)


@pytest.mark.parametrize("divergence", list(module_of_loss.DIVERGENCES))
def test_the_divergences_are_0_for_equal_models_and_the_cross_entropy_stays(divergence):
    loss = DualSpace(divergence=divergence, agreement=False)
    draw = Drawn(5)
    weights = TokenWeights(draw.numbers(STUDENT_V, SMALL), draw.numbers(STUDENT_V, SMALL))
    shape = ModelShape(1, SMALL, 1)
    models = ModelPair(shape, shape, vocabularies=Vocabularies(weights, weights))
    maps = loss.build(models).double()
    with torch.no_grad():  # started in float32
        for each in (maps.t2s, maps.s2t):
            torch.testing.assert_close(each.weight, torch.eye(SMALL).double(), rtol=0, atol=1e-6)
            each.weight.copy_(torch.eye(SMALL))
    hidden = draw.numbers(1, 3, SMALL)
    inside = Activations(output={0: hidden})
    rows = Rows(
        student=weights.logits(hidden[0]),
        teacher=weights.logits(hidden[0]),
        label=torch.tensor([1, 2, 3]),
        activations=PairedActivations(models, inside, inside, mask=torch.ones(1, 3), token=torch.arange(3)),
    )
    parts = loss.parts_of_rows(rows, maps)
    torch.testing.assert_close(parts.student_space_N, torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(parts.teacher_space_N, torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(parts.cross_entropy_N, Labels()(rows), rtol=1e-12, atol=0)
    assert not loss.zero_at_equality


def test_maps_start_where_they_preserve_logits():
    """The teacher's logits are kept exactly where the student's output layer can say them."""
    draw = Drawn(6)
    teacher_VD = draw.numbers(STUDENT_V, LARGE)
    # All that the student's layer says lies in what the teacher's says.
    student_Vd = teacher_VD @ draw.numbers(LARGE, SMALL)
    hidden_Nd = draw.numbers(5, SMALL)
    s2t = preserving(teacher_VD, student_Vd)
    torch.testing.assert_close(
        hidden_Nd @ s2t.T @ teacher_VD.T, hidden_Nd @ student_Vd.T, rtol=1e-9, atol=1e-9
    )
    for own, other in ((teacher_VD, student_Vd), (student_Vd, draw.numbers(STUDENT_V, LARGE))):
        expected = np.linalg.pinv(own.numpy()) @ other.numpy()
        torch.testing.assert_close(preserving(own, other), torch.from_numpy(expected), rtol=1e-9, atol=1e-9)
    # A layer of linearly dependent columns has a pseudo-inverse too.
    twice = torch.cat([student_Vd, student_Vd], 1)
    expected = np.linalg.pinv(twice.numpy(), rcond=1e-6) @ teacher_VD.numpy()
    torch.testing.assert_close(
        preserving(twice, teacher_VD), torch.from_numpy(expected), rtol=1e-6, atol=1e-8
    )


def test_with_two_tokenizers_the_shared_tokens_decide_where_maps_start():
    models = drawn_models(True)
    maps = DualSpace().build(models)
    said_S, said_T = (
        side.head.detach()[ids].numpy()
        for side, ids in zip((models.vocabularies.student, models.vocabularies.teacher), SHARED, strict=True)
    )
    for found, expected in (
        (maps.t2s.weight, np.linalg.pinv(said_S) @ said_T),
        (maps.s2t.weight, np.linalg.pinv(said_T) @ said_S),
    ):
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert tuple(maps.query.weight.shape) == (2 * LARGE, 2 * SMALL)
    assert DualSpace().build(drawn_models(False)).query is None


def test_random_maps_keep_lengths_and_follow_the_generator():
    models = drawn_models(True)
    torch.manual_seed(1)
    first, second = (DualSpace(initial="random").build(models) for _ in range(2))
    assert not torch.equal(first.t2s.weight, second.t2s.weight)
    for each in (first.t2s.weight @ first.t2s.weight.T, first.s2t.weight.T @ first.s2t.weight):
        torch.testing.assert_close(each, torch.eye(SMALL), rtol=0, atol=1e-5)


@kinds
def test_half_precision_and_extreme_logits_stay_finite(crossed):
    loss = DualSpace(agreement=False)
    rows = drawn_rows(crossed)
    maps = built(loss, rows.activations.models).float()
    activations = rows.activations
    own = activations.teacher_tokens
    half = replace(
        rows,
        student=(6e4 * rows.student.sign()).half().requires_grad_(),
        teacher=None if crossed else rows.teacher.half(),
        activations=replace(
            activations,
            student=activations.student.map(Tensor.half),
            teacher=activations.teacher.map(Tensor.half),
            teacher_tokens=own and replace(own, hidden=own.hidden.half(), logits=own.logits.half()),
        ),
    )
    half.student.data[:, 0] = -math.inf
    values = maps(half)
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    half.mean(values).backward()
    assert half.student.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in maps.parameters())
    if not crossed:
        half.teacher[:, 1] = -math.inf
        assert maps(half).isfinite().all()


# Where gradients go.


@kinds
def test_gradients_match_finite_differences(crossed):
    loss = DualSpace(agreement=False)
    rows = drawn_rows(crossed)
    maps = built(loss, rows.activations.models)

    def parts(student_NV: Tensor, output_STd: Tensor, t2s: Tensor, s2t: Tensor, *query: Tensor):
        activations = replace(rows.activations, student=Activations(output={1: output_STd}))
        weights = dict(zip(("t2s.weight", "s2t.weight", "query.weight"), (t2s, s2t, *query), strict=False))

        class Asked(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.maps = maps

            def forward(self):
                return loss.parts_of_rows(
                    replace(rows, student=student_NV, activations=activations), self.maps
                )

        named = {f"maps.{name}": tensor for name, tensor in weights.items()}
        return torch.func.functional_call(Asked(), named, ())

    leaves = [rows.student, rows.activations.student.output[1], maps.t2s.weight, maps.s2t.weight]
    leaves += [maps.query.weight] if crossed else []
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    # What the cross-entropy and the teacher's space see is exact in everything.
    assert torch.autograd.gradcheck(
        lambda *tensors: parts(*tensors)[0] + parts(*tensors)[2], leaves, eps=1e-6, atol=1e-6, fast_mode=True
    )
    # The divergence in the student's space sees the student alone: the projected teacher is a constant to it.
    fixed = [leaf.detach() for leaf in leaves[1:]]
    assert torch.autograd.gradcheck(
        lambda student_NV: parts(student_NV, *fixed)[1], leaves[:1], eps=1e-6, atol=1e-6, fast_mode=True
    )


@kinds
def test_each_term_trains_what_the_paper_says_and_nothing_else(crossed):
    loss = DualSpace(agreement=False)
    rows = drawn_rows(crossed)
    models = rows.activations.models
    maps = built(loss, models)
    sides = models.vocabularies.student, models.vocabularies.teacher
    output = rows.activations.student.output[1].clone().requires_grad_()
    leaves = {
        "student": rows.student.clone().requires_grad_(),
        "output": output,
        "t2s": maps.t2s.weight,
        "s2t": maps.s2t.weight,
    }
    if crossed:
        leaves["query"] = maps.query.weight
        own = rows.activations.teacher_tokens
        taught = [own.hidden.detach().clone().requires_grad_(), own.logits.detach().clone().requires_grad_()]
        activations = replace(
            rows.activations, teacher_tokens=replace(own, hidden=taught[0], logits=taught[1])
        )
    else:
        taught = [
            rows.activations.teacher.output[2].clone().requires_grad_(),
            rows.teacher.detach().clone().requires_grad_(),
        ]
        activations = replace(rows.activations, teacher=Activations(output={2: taught[0]}))
    live = replace(
        rows,
        student=leaves["student"],
        teacher=None if crossed else taught[1],
        activations=replace(activations, student=Activations(output={1: output})),
    )
    never = [*taught, *(m for side in sides for m in (side.head, side.embedding, side.bias))]
    parts = loss.parts_of_rows(live, maps)
    attention = {"query"} if crossed else set()
    for values_N, expected in (
        (parts.cross_entropy_N, {"t2s"} | attention),
        (parts.student_space_N, {"student"}),
        (parts.teacher_space_N, {"output", "s2t"} | attention),
    ):
        found = torch.autograd.grad(
            values_N.sum(), [*leaves.values(), *never], allow_unused=True, retain_graph=True
        )
        moved = {
            name
            for name, gradient in zip(leaves, found, strict=False)
            if gradient is not None and gradient.any()
        }
        assert moved == expected
        assert all(gradient is None for gradient in found[len(leaves) :])


@kinds
def test_a_teacher_in_inference_mode_can_be_learnt_from(crossed):
    loss = DualSpace(agreement=False)
    models = drawn_models(crossed)
    maps = built(loss, models)
    expected = drawn_rows(crossed, models=models)
    with torch.inference_mode():
        made = drawn_rows(crossed, models=models)
    rows = replace(
        expected,
        teacher=made.teacher,
        activations=replace(
            expected.activations,
            teacher=made.activations.teacher,
            teacher_tokens=made.activations.teacher_tokens,
        ),
    )
    values = maps(rows)
    values.sum().backward()
    assert torch.equal(values.detach(), maps(expected).detach())


def test_the_student_is_seen_as_it_is_at_this_step():
    loss = DualSpace()
    rows = drawn_rows(False)
    maps = built(loss, rows.activations.models)
    before = maps(rows).detach()
    with torch.no_grad():
        rows.activations.models.vocabularies.student.head.mul_(2)
    assert not torch.allclose(before, maps(rows).detach())


# Known mistakes, each against a test's own measure.


def differs_from_loops(rows: Rows, maps: DualSpaceMaps, loss: DualSpace) -> bool:
    firsts, third = by_loops(loss, rows, maps)
    return abs(float(maps(rows).sum().detach()) - sum(firsts) - third) > 1e-6


def test_known_mistakes_are_caught(monkeypatch):
    loss = DualSpace(agreement=False)
    rows = drawn_rows(True, weight=False)
    maps = built(loss, rows.activations.models)
    assert not differs_from_loops(rows, maps, loss)
    softmax, spread = dual_space_maps.masked_softmax, dual_space_maps.spread
    mistakes = {
        "wrong axis of the mask": (
            "masked_softmax",
            lambda scores, met: scores.masked_fill(~met, -1e9).T.softmax(-1).T * met,
        ),
        "no mask": ("masked_softmax", lambda scores, met: scores.softmax(-1)),
        "no 1/sqrt(2D)": ("masked_softmax", lambda scores, met: softmax(scores * math.sqrt(2 * LARGE), met)),
        "spread over the whole batch": ("spread", lambda values, one: spread(values, torch.ones_like(one))),
        "no spread": ("spread", lambda values, one: values.new_ones(len(values), 1)),
    }
    for name, (where, mistaken) in mistakes.items():
        with monkeypatch.context() as patch:
            patch.setattr(dual_space_maps, where, mistaken)
            assert differs_from_loops(rows, maps, loss), name
    with monkeypatch.context() as patch:
        patch.setattr(
            TokenWeights, "logits", lambda self, hidden: hidden @ self.head.to(hidden.dtype).T + self.bias
        )
        loss.parts_of_rows(rows, maps).cross_entropy_N.sum().backward()
        assert rows.activations.models.vocabularies.student.head.grad is not None, "the head was not detached"


# What is refused.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DualSpace(divergence="kl"), "divergence must be one of 'forward_kl'"),
        (lambda: DualSpace(initial="zero"), "initial must be one of"),
        (lambda: DualSpace(target="gold"), "target must be one of"),
        (lambda: DualSpace(temperature=0.0), "temperature must be a positive"),
        (lambda: DualSpace().values(drawn_rows(False)), r"call build\(models\)"),
        (
            lambda: DualSpace().wanted(ModelPair(ModelShape(1, 2, 1), ModelShape(1, 2, 1))),
            "compares language models",
        ),
        (lambda: DualSpace(target="teacher").build(drawn_models(True)), "target teacher needs one tokenizer"),
        (
            lambda: DualSpace().build(without(drawn_models(True), shared=(torch.tensor([]),) * 2)),
            "share no token",
        ),
        (
            lambda: DualSpace().wanted(without(drawn_models(True), shared=None)),
            "student says 9 tokens and the teacher 11",
        ),
        (lambda: called(replace(drawn_rows(False), label=None)), "rows.label is None"),
        (
            lambda: called(
                replace(drawn_rows(True), activations=without_tokens(drawn_rows(True).activations))
            ),
            "rows.activations have no teacher_tokens",
        ),
        (lambda: Vocabularies(None, None, shared=(torch.ones(2), torch.ones(3))), "as many ids"),
    ],
)
def test_a_mistake_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def without(models: ModelPair, **changes) -> ModelPair:
    return replace(models, vocabularies=replace(models.vocabularies, **changes))


def without_tokens(activations: PairedActivations) -> PairedActivations:
    return replace(activations, teacher_tokens=None)


def called(rows: Rows) -> Tensor:
    return DualSpace().build(rows.activations.models).double()(rows)


@kinds
def test_numbers_that_are_not_finite_are_named_where_they_count(crossed):
    rows = drawn_rows(crossed)
    rows.check_finite()
    whole = drawn_rows(crossed)
    whole.activations.student.output[1][0, 2, 0] = math.nan
    with pytest.raises(NumericsError, match="student's output of layer 1: sequence 0 of 3, position 2"):
        whole.check_finite()
    if crossed:
        rows.activations.teacher_tokens.logits[3, 1] = math.inf
        with pytest.raises(NumericsError, match="teacher's logits of its own tokens: token 3 of 9"):
            rows.check_finite()
        replace(rows, weight=rows.weight.where(rows.activations.token // POSITIONS != 1, 0.0)).check_finite()


def test_a_recipe_names_it_and_a_total_builds_it():
    written = {"kind": "dual_space", "divergence": "reverse_kl", "weight": 0.5, "target": "teacher"}
    loss = TypeAdapter(AnyLoss).validate_python(written)
    assert loss == DualSpace(divergence="reverse_kl", weight=0.5, target="teacher")
    models = drawn_models(False)
    total = 0.5 * Labels() + loss + 0.1 * ForwardKL()
    assert total.reads_activations
    assert total.additive
    assert total.wanted(models) == (Wanted(output=frozenset({1})), Wanted(output=frozenset({2})))
    modules = total.build(models).double()
    assert [name for name, _ in modules.named_parameters()] == [
        "dual_space.t2s.weight",
        "dual_space.s2t.weight",
    ]
    rows = drawn_rows(False, models=models)
    expected = 0.5 * Labels()(rows) + modules["dual_space"](rows) + 0.1 * ForwardKL()(rows)
    torch.testing.assert_close(total(rows, modules), expected)
    both = (loss + HiddenStates()).wanted(models)
    assert both[0] == Wanted(output=frozenset({1}), hidden=frozenset({0, 1}))


@kinds
def test_training_brings_both_spaces_together(crossed):
    """A student whose hidden states are free learns what the teacher says, and the maps learn beside it."""
    loss = DualSpace(agreement=False, initial="random")
    rows = drawn_rows(crossed, weight=False)
    models = rows.activations.models
    torch.manual_seed(0)
    maps = loss.build(models).double()
    output = rows.activations.student.output[1].clone().requires_grad_()
    optimizer = torch.optim.Adam([output, *maps.parameters()], lr=0.05)
    seen = []
    for _ in range(60):
        hidden = output.flatten(0, 1)[rows.activations.token]
        live = replace(
            rows,
            student=models.vocabularies.student.logits(hidden),
            activations=replace(rows.activations, student=Activations(output={1: output})),
        )
        parts = loss.parts_of_rows(live, maps)
        optimizer.zero_grad()
        live.mean(parts.total_N).backward()
        optimizer.step()
        seen.append([float(part.detach().mean()) for part in parts[:3]])
    for first, last in zip(seen[0], seen[-1], strict=True):
        assert last < 0.6 * first


def test_the_spread_is_the_standard_deviation_of_a_sequences_numbers():
    values_MD = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sequence_M = torch.tensor([0, 0, 1, 0, 1])
    one_MM = (sequence_M[:, None] == sequence_M).double()
    expected = [float(values_MD[sequence_M == number].std()) for number in sequence_M.tolist()]
    assert spread(values_MD, one_MM).squeeze(1).tolist() == pytest.approx(expected, rel=1e-12)
    # Of equal numbers, or of one, there is none: what is divided by it stays as it is.
    assert spread(torch.full((1, 1), 3.0), torch.ones(1, 1)).tolist() == [[1.0]]
    assert spread(torch.full((2, 4), 3.0), torch.eye(2)).tolist() == [[1.0], [1.0]]
