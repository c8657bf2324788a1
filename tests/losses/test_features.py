"""Feature losses: their derivatives, what they are blind to, their layers, and the mistakes they name.

Their definitions and laws are in test_feature_laws.py.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from distill.losses.features.hidden_states import _direction
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from distill.errors import NumericsError
from distill.losses import (
    PKD,
    Activations,
    AnyLoss,
    AttentionMaps,
    ForwardKL,
    HiddenStates,
    Labels,
    ModelPair,
    ModelShape,
    PairedActivations,
    Relations,
    Rows,
    Wanted,
)

SEQUENCES, POSITIONS, HEADS = 4, 5, 2
LENGTHS = (5, 3, 1, 4)
EMBEDDINGS = -1
STUDENT, TEACHER = ModelShape(2, 8, HEADS), ModelShape(4, 8, HEADS)


def random_activations(shape: ModelShape, sequences: int, positions: int, seed: int) -> Activations:
    """Activations of every layer and kind, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    def vectors(part: str) -> dict[int, Tensor]:
        return {layer: draw(sequences, positions, shape.width_of(part)) for layer in range(shape.layers)}

    return Activations(
        hidden={layer: draw(sequences, positions, shape.width) for layer in range(EMBEDDINGS, shape.layers)},
        attention={
            layer: draw(sequences, shape.heads, positions, positions) for layer in range(shape.layers)
        },
        query=vectors("query"),
        key=vectors("key"),
        value=vectors("value"),
    )


def random_rows(
    student: ModelShape = STUDENT,
    teacher: ModelShape = TEACHER,
    *,
    lengths: tuple[int, ...] = LENGTHS,
    origin: tuple[int, ...] | None = None,
    weight: bool = True,
    each: int = 1,
) -> Rows:
    """Rows of sequences of uneven length; `each` sequences a row."""
    sequences = len(lengths)
    activations = PairedActivations(
        ModelPair(student, teacher, origin),
        random_activations(student, sequences, POSITIONS, 1),
        random_activations(teacher, sequences, POSITIONS, 2),
        mask=torch.tensor([[place < length for place in range(POSITIONS)] for length in lengths]),
    )
    count = sequences // each
    generator = torch.Generator().manual_seed(3)
    return Rows(
        student=torch.zeros(count, 3, dtype=torch.float64),
        weight=torch.rand(count, generator=generator).double() + 0.1 if weight else None,
        activations=activations,
    )


def as_tokens(rows: Rows) -> Rows:
    """The same activations with a row for every token."""
    activations = rows.activations
    token_N = (activations.mask.flatten() > 0).nonzero().squeeze(-1)
    return Rows(
        student=torch.zeros(len(token_N), 3, dtype=torch.float64),
        activations=replace(activations, token=token_N),
    )


def with_parts(rows: Rows, whose: str, change) -> Rows:
    activations = rows.activations
    return replace(rows, activations=replace(activations, **{whose: getattr(activations, whose).map(change)}))


def with_equal_models(rows: Rows) -> Rows:
    """The student's layers are the teacher's, in the loss's own pairs."""
    activations = rows.activations
    pairs = (*activations.models.layer_map, (EMBEDDINGS, EMBEDDINGS))
    student = Activations(
        **{
            part.name: {
                s: getattr(activations.teacher, part.name)[t]
                for s, t in pairs
                if t in getattr(activations.teacher, part.name)
            }
            for part in fields(Activations)
        }
    )
    return replace(rows, activations=replace(activations, student=student))


def live(rows: Rows) -> tuple[Rows, list[Tensor]]:
    """The rows with student activations that take a gradient, and those leaves."""
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        leaves.append(tensor.detach().clone().requires_grad_())
        return leaves[-1]

    return with_parts(rows, "student", leaf), leaves


def mean_and_gradients(loss, rows: Rows, total: float | None = None) -> tuple[Tensor, list[Tensor]]:
    rows, leaves = live(rows)
    mean = rows.mean(loss(rows), total_weight=total)
    if not mean.requires_grad:
        return mean, [torch.zeros_like(leaf) for leaf in leaves]
    gradients = torch.autograd.grad(mean, leaves, allow_unused=True)
    return mean.detach(), [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ]


class Projected:
    """A linear HiddenStates with random maps, called like the others."""

    def __init__(self, distance: str, width: int = 8):
        torch.manual_seed(0)
        loss = HiddenStates(distance=distance, projection="linear", embeddings=True)
        models = ModelPair(ModelShape(2, width, HEADS), ModelShape(4, 8, HEADS))
        self.module = loss.build(models).double()
        for each in self.module.maps:
            torch.nn.init.normal_(each.weight)

    def __call__(self, rows: Rows) -> Tensor:
        return self.module(rows)


LOSSES: dict[str, Any] = {
    "hidden": HiddenStates(projection="identity"),
    "hidden_and_embeddings": HiddenStates(projection="identity", embeddings=True),
    "hidden_cosine": HiddenStates(projection="identity", distance="cosine"),
    "hidden_linear": Projected("mean_squared"),
    "hidden_linear_cosine": Projected("cosine"),
    "pkd": PKD(),
    "attention_kl": AttentionMaps(),
    "attention_scores": AttentionMaps(distance="mean_squared"),
    "relations_1": Relations(heads=1),
    "relations_4": Relations(heads=4, layers=((0, 1), (1, -1))),
    "relations_8_values": Relations(heads=8, of=("value",)),
}
ALL = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
TOKENWISE = {name: loss for name, loss in LOSSES.items() if name != "pkd"}
BY_TOKEN = pytest.mark.parametrize("loss", TOKENWISE.values(), ids=TOKENWISE)


@ALL
def test_no_value_is_negative_and_no_bound_is_passed(loss):
    for scale in (1e-4, 1.0, 1e4):
        rows = with_parts(random_rows(), "student", lambda t, scale=scale: scale * t)
        near = with_parts(
            with_equal_models(random_rows()), "student", lambda t, scale=scale: t * (1 + 1e-8 * scale)
        )
        for each in (rows, with_parts(rows, "teacher", torch.neg), near):
            values = loss(each).detach()
            assert (values >= 0).all()
            assert (values <= getattr(loss, "bound", math.inf) + 1e-12).all()


@BY_TOKEN
def test_tokens_of_weight_0_get_no_gradient_of_their_own(loss):
    rows = as_tokens(random_rows())
    weight = torch.ones(len(rows), dtype=torch.float64)
    weight[1::2] = 0
    masked = replace(rows, weight=weight)
    mean, _ = mean_and_gradients(loss, masked)
    kept = rows.select(weight > 0)
    assert len(kept) < len(rows)
    expected, _ = mean_and_gradients(loss, kept)
    torch.testing.assert_close(mean, expected, rtol=1e-12, atol=0)


@BY_TOKEN
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_sequence_whose_tokens_all_have_weight_0_may_hold_anything(loss, number):
    rows = as_tokens(random_rows())
    sequence_N = rows.activations.token // POSITIONS
    masked = replace(rows, weight=(sequence_N != 1).double())
    mean, gradients = mean_and_gradients(loss, masked)

    def spoil(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[1] = number
        return tensor

    spoilt = with_parts(with_parts(masked, "student", spoil), "teacher", spoil)
    spoilt.check_finite()
    found, found_gradients = mean_and_gradients(loss, spoilt)
    assert torch.equal(found, mean)
    for gradient, expected in zip(found_gradients, gradients, strict=True):
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize("whose", ["student", "teacher"])
@pytest.mark.parametrize(
    ("loss", "part", "place", "named"),
    [
        (AttentionMaps(), "attention", (0, 1, 3, 2), "position 3 looking at 2"),
        *((Relations(heads=1), part, (0, 2, 5), "position 2") for part in ("query", "key", "value")),
    ],
    ids=["attention", "query", "key", "value"],
)
def test_a_token_of_weight_0_that_others_look_at_is_named(loss, part, place, named, whose):
    rows = as_tokens(random_rows())
    weight = torch.ones(len(rows), dtype=torch.float64)
    weight[2] = 0
    rows = replace(rows, weight=weight)
    layer = max(getattr(getattr(rows.activations, whose), part))
    getattr(getattr(rows.activations, whose), part)[layer][place] = math.nan
    assert rows.mean(loss(rows)).isnan()
    with pytest.raises(
        NumericsError, match=rf"{whose}'s {part} of layer {layer}: sequence 0 of 4, {named}: .* got 1 that"
    ):
        rows.check_finite()


@pytest.mark.parametrize("whose", ["student", "teacher"])
@pytest.mark.parametrize("part", ["hidden", "attention", "query", "key", "value"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_named_where_it_counts(whose, part, number):
    rows = random_rows()
    getattr(getattr(rows.activations, whose), part)[1][2, 0, 0] = number
    with pytest.raises(
        NumericsError, match=rf"{whose}'s {part} of layer 1: sequence 2 of 4, position 0.* got \d+ that"
    ):
        rows.check_finite()
    replace(rows, weight=torch.tensor([1.0, 1.0, 0.0, 1.0])).check_finite()
    padding = random_rows()
    getattr(getattr(padding.activations, whose), part)[1][2, ..., -1, :] = number
    padding.activations.student.attention[0][:, :, 0, 1:] = -math.inf
    padding.check_finite()


@ALL
def test_first_and_second_derivatives_match_finite_differences(loss):
    rows = random_rows(lengths=(3, 2), weight=True)
    rows = rows.select(torch.tensor([0, 1]))
    student = rows.activations.student
    wanted = [(part.name, layer) for part in fields(Activations) for layer in getattr(student, part.name)]
    read = []
    base, leaves = live(rows)
    grads = torch.autograd.grad(base.mean(loss(base)), leaves, allow_unused=True)
    read = [place for place, gradient in zip(wanted, grads, strict=True) if gradient is not None]
    assert read

    def values(*tensors: Tensor) -> Tensor:
        parts = {part.name: dict(getattr(student, part.name)) for part in fields(Activations)}
        for (part, layer), tensor in zip(read, tensors, strict=True):
            parts[part][layer] = tensor
        return loss(replace(rows, activations=replace(rows.activations, student=Activations(**parts))))

    inputs = tuple(getattr(student, part)[layer].clone().requires_grad_() for part, layer in read)
    assert torch.autograd.gradcheck(values, inputs, eps=1e-6, atol=1e-6, fast_mode=True)
    assert torch.autograd.gradgradcheck(
        lambda *tensors: rows.mean(values(*tensors)), inputs, eps=1e-6, atol=1e-6, fast_mode=True
    )


@ALL
def test_a_teacher_in_inference_mode_can_be_learnt_from(loss):
    with torch.inference_mode():
        teacher = random_activations(ModelShape(4, 8, HEADS), SEQUENCES, POSITIONS, 2)
    rows = random_rows()
    mean, gradients = mean_and_gradients(loss, rows)
    found, found_gradients = mean_and_gradients(
        loss, replace(rows, activations=replace(rows.activations, teacher=teacher))
    )
    assert torch.equal(found, mean)
    assert all(torch.equal(a, b) for a, b in zip(found_gradients, gradients, strict=True))


# What each loss is blind to, and what not.


def orthogonal(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))[0]


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_relations_do_not_see_a_rotation_inside_a_head_or_the_order_of_heads_on_both_sides(heads):
    rows, loss, width = random_rows(), Relations(heads=heads), 8
    turn = torch.block_diag(*[orthogonal(width // heads)] * heads)
    base = loss(rows)

    def turned(tensor: Tensor) -> Tensor:
        return tensor @ turn if tensor.dim() == 3 else tensor

    torch.testing.assert_close(loss(with_parts(rows, "student", turned)), base, rtol=1e-11, atol=0)
    order = torch.randperm(heads, generator=torch.Generator().manual_seed(1))

    def shuffled(tensor: Tensor) -> Tensor:
        if tensor.dim() != 3:
            return tensor
        return tensor.unflatten(-1, (heads, -1))[..., order, :].flatten(-2)

    both = with_parts(with_parts(rows, "student", shuffled), "teacher", shuffled)
    torch.testing.assert_close(loss(both), base, rtol=1e-11, atol=0)
    if heads > 1:
        across = with_parts(rows, "student", lambda t: t @ orthogonal(width) if t.dim() == 3 else t)
        assert float((loss(across) - base).abs().max()) > 1e-3


def test_relations_compare_models_of_any_width_and_heads():
    student = ModelShape(2, 12, 3)
    teacher = ModelShape(4, 16, 8, query_width=32, key_width=8)
    rows = random_rows(student, teacher)
    for heads in (1, 2, 4):
        # A token alone is related to itself alone, in any model.
        assert (Relations(heads=heads)(rows) > 0).tolist() == [length > 1 for length in LENGTHS]
    assert Relations(heads=4).wanted(rows.activations.models) == (
        Wanted(relations=frozenset({1})),
        Wanted(relations=frozenset({3})),
    )
    with pytest.raises(ValueError, match="student's query width 12 is no multiple of 8 relation heads"):
        Relations().wanted(rows.activations.models)
    with pytest.raises(ValueError, match="width 12 is no multiple of 8"):
        Relations()(rows)


def test_relations_with_the_models_own_heads_are_those_of_the_values_themselves():
    """MiniLM's first version: softmax(V Vᵀ / √d) of the attention heads, as matrix products."""
    rows = random_rows(lengths=(5, 5, 5, 5))
    student, teacher = rows.activations.student.value[1], rows.activations.teacher.value[3]
    maps = [
        (
            x.unflatten(-1, (HEADS, 4)).transpose(1, 2) @ x.unflatten(-1, (HEADS, 4)).permute(0, 2, 3, 1) / 2
        ).softmax(-1)
        for x in (teacher, student)
    ]
    expected = (maps[0] * (maps[0].log() - maps[1].log())).sum(-1).mean((1, 2))
    torch.testing.assert_close(Relations(of=("value",))(rows), expected, rtol=1e-12, atol=0)


def test_attention_maps_do_not_see_the_order_of_heads_on_both_sides_but_on_one():
    rows, loss = random_rows(), AttentionMaps()

    def flipped(tensor: Tensor) -> Tensor:
        return tensor.flip(1) if tensor.dim() == 4 else tensor

    one = with_parts(rows, "student", flipped)
    torch.testing.assert_close(loss(with_parts(one, "teacher", flipped)), loss(rows), rtol=1e-12, atol=0)
    assert float((loss(one) - loss(rows)).abs().max()) > 1e-3


def test_attention_maps_take_logarithms_of_probabilities_for_scores():
    rows = random_rows(lengths=(5, 5, 5, 5))
    logs = with_parts(
        with_parts(rows, "student", lambda t: t.log_softmax(-1)), "teacher", lambda t: t.log_softmax(-1)
    )
    torch.testing.assert_close(AttentionMaps()(logs), AttentionMaps()(rows), rtol=1e-12, atol=0)


def test_pkd_sees_the_first_token_alone_wherever_the_padding_stands():
    rows = random_rows()

    def others_changed(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[:, 1:] += 1
        return tensor

    assert torch.equal(PKD()(with_parts(rows, "student", others_changed)), PKD()(rows))
    left = replace(
        rows,
        activations=replace(
            rows.activations,
            student=rows.activations.student.map(lambda t: t.roll(1, 1)),
            teacher=rows.activations.teacher.map(lambda t: t.roll(1, 1)),
            mask=torch.tensor([[0, 1, 1, 1, 1]]).expand(SEQUENCES, -1),
        ),
    )
    torch.testing.assert_close(PKD()(left), PKD()(rows), rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="single tokens"):
        PKD()(as_tokens(rows))


# Layers, projections, configuration.


@pytest.mark.parametrize(
    ("student", "teacher", "origin", "expected"),
    [
        (6, 12, None, (1, 3, 5, 7, 9, 11)),
        (4, 12, None, (2, 5, 8, 11)),
        (4, 6, None, (1, 2, 4, 5)),
        (1, 6, None, (5,)),
        (6, 6, None, (0, 1, 2, 3, 4, 5)),
        (6, 3, None, (0, 0, 1, 1, 2, 2)),
        (3, 6, (0, 2, 5), (0, 2, 5)),
        (3, 6, (0, 2), (1, 3, 5)),  # of another student
        (3, 6, (0, 2, 11), (1, 3, 5)),  # of another teacher
    ],
)
def test_layers_meet_as_the_student_was_made_or_evenly_spaced(student, teacher, origin, expected):
    models = ModelPair(ModelShape(student, 8, 2), ModelShape(teacher, 8, 2), origin)
    assert models.layer_map == tuple(enumerate(expected))


def test_losses_follow_the_origin_and_their_own_layers():
    models = ModelPair(ModelShape(3, 8, 2), ModelShape(6, 8, 2), (0, 2, 5))
    assert HiddenStates(embeddings=True).pairs(models) == ((-1, -1), (0, 0), (1, 2), (2, 5))
    assert PKD().pairs(models) == ((0, 0), (1, 2))
    assert AttentionMaps(layers=((-1, -2),)).pairs(models) == ((2, 4),)
    assert Relations().pairs(models) == ((2, 5),)
    assert Relations(layers=None).pairs(models) == models.layer_map
    with pytest.raises(ValueError, match="the teacher has no layer 6; its 6 are 0 to 5"):
        AttentionMaps(layers=((0, 6),)).pairs(models)
    with pytest.raises(ValueError, match="the student has no layer 3; its 3 are 0 to 2"):
        AttentionMaps(layers=((3, 5),)).pairs(models)


def test_a_total_wants_what_its_terms_want():
    models = ModelPair(ModelShape(2, 8, 2), ModelShape(4, 8, 2))
    total = Labels() + ForwardKL() + HiddenStates(layers=((0, 1),)) + PKD(layers=((1, 3),)) + Relations()
    assert total.reads_activations
    assert total.wanted(models) == (
        Wanted(hidden=frozenset({0, 1}), relations=frozenset({1})),
        Wanted(hidden=frozenset({1, 3}), relations=frozenset({3})),
    )
    assert list(total.build(models)) == ["hidden_states"]
    assert not (Labels() + ForwardKL()).reads_activations
    assert (Labels() + ForwardKL()).wanted(models) == (Wanted(), Wanted())
    assert len((Labels() + ForwardKL()).build(models)) == 0


def test_a_total_weighs_a_module_like_any_term():
    rows = replace(random_rows(), label=torch.tensor([0, 1, 2, 0]))
    total = 0.5 * Labels() + 2.0 * HiddenStates() + 0.25 * HiddenStates(projection="identity")
    modules = total.build(rows.activations.models).double()
    assert list(modules) == ["hidden_states"]
    expected = 0.5 * Labels()(rows) + 2.0 * modules["hidden_states"].evaluate(rows)[0] + total.terms[2](rows)
    torch.testing.assert_close(total(rows, modules), expected, rtol=1e-12, atol=0)
    assert torch.equal(modules["hidden_states"](rows), 2.0 * modules["hidden_states"].evaluate(rows)[0])
    with pytest.raises(ValueError, match="call build"):
        total(rows)


def test_maps_start_as_the_identity_or_keep_lengths_and_learn():
    equal = HiddenStates().build(ModelPair(ModelShape(2, 8, 2), ModelShape(4, 8, 2)))
    assert all(torch.equal(each.weight, torch.eye(8)) for each in equal.maps)
    assert len(equal.maps) == 2
    narrow = random_rows(student=ModelShape(2, 6, 2))
    torch.manual_seed(0)
    module = HiddenStates(embeddings=True).build(narrow.activations.models).double()
    assert len(module.maps) == 3
    for each in module.maps:
        torch.testing.assert_close(
            each.weight.T @ each.weight, torch.eye(6, dtype=torch.float64), atol=1e-6, rtol=0
        )
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    before = float(narrow.mean(module(narrow)).detach())
    for _ in range(50):
        optimizer.zero_grad()
        narrow.mean(module(narrow)).backward()
        optimizer.step()
    assert float(narrow.mean(module(narrow)).detach()) < 0.7 * before
    with pytest.raises(ValueError, match="needs one width"):
        HiddenStates(projection="identity").wanted(narrow.activations.models)


def test_a_student_cut_from_the_teacher_meets_the_channels_it_was_cut_from():
    channels = (0, 2, 3, 4, 5, 7)
    wide = random_rows()
    activations = wide.activations
    models = ModelPair(ModelShape(2, 6, 2), TEACHER, (0, 3), channels)
    cut = Activations(
        hidden={
            layer: activations.teacher.hidden[old][..., list(channels)] for layer, old in ((0, 0), (1, 3))
        }
    )
    rows = replace(
        wide, activations=PairedActivations(models, cut, activations.teacher, mask=activations.mask)
    )
    for distance in ("mean_squared", "cosine"):
        loss = HiddenStates(projection="channels", distance=distance)
        assert loss.build(models) is None
        assert float(rows.mean(loss(rows))) == pytest.approx(0, abs=1e-12)
    moved = replace(
        rows,
        activations=replace(
            rows.activations, student=Activations(hidden={layer: h + 1 for layer, h in cut.hidden.items()})
        ),
    )
    assert float(moved.mean(HiddenStates(projection="channels")(moved))) == pytest.approx(1)
    # A trained map starts where the channels were.
    weight = HiddenStates().build(models).maps[0].weight
    assert torch.equal(weight, torch.eye(8)[:, list(channels)])
    unknown = ModelPair(ModelShape(2, 6, 2), TEACHER)
    with pytest.raises(ValueError, match="needs a student whose channels were cut"):
        HiddenStates(projection="channels").wanted(unknown)
    same = ModelPair(TEACHER, TEACHER)
    assert HiddenStates(projection="channels").wanted(same) == HiddenStates(projection="identity").wanted(
        same
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"kind": "hidden_states"}, HiddenStates()),
        (
            {"kind": "hidden_states", "layers": [[0, 1], [-1, -1]], "distance": "cosine"},
            HiddenStates(layers=((0, 1), (-1, -1)), distance="cosine"),
        ),
        ({"kind": "relations", "heads": 48, "of": ["value"]}, Relations(heads=48, of=("value",))),
        ({"kind": "relations", "layers": None}, Relations(layers=None)),
        ({"kind": "attention_maps", "distance": "mean_squared"}, AttentionMaps(distance="mean_squared")),
        ({"kind": "pkd", "weight": 0.1}, PKD(weight=0.1)),
    ],
)
def test_a_recipes_dict_becomes_the_loss(written, meant):
    adapter: TypeAdapter = TypeAdapter(AnyLoss)
    assert adapter.validate_python(written) == meant
    assert adapter.validate_python(adapter.dump_python(meant)) == meant
    assert hash(adapter.validate_python(written)) == hash(meant)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"kind": "relations", "heads": 0}, "heads must be at least 1"),
        ({"kind": "relations", "of": []}, "of must be some of"),
        ({"kind": "relations", "of": ["query", "query"]}, "each once"),
        ({"kind": "pkd", "layers": []}, "at least one pair"),
        ({"kind": "pkd", "layers": [[0]]}, "Field required"),
        ({"kind": "hidden_states", "projection": "mlp"}, "'linear', 'identity' or 'channels'"),
        ({"kind": "hidden_states", "layer": [[0, 1]]}, "Unexpected keyword"),
    ],
)
def test_a_mistake_is_named(written, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(AnyLoss).validate_python(written)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Relations(layers=((0, 1, 2),)), "pairs of a student and a teacher layer"),
        (lambda: PKD(layers=((0.5, 1),)), "pairs of a student and a teacher layer"),
        (
            lambda: PKD().pairs(ModelPair(ModelShape(1, 8, 2), ModelShape(4, 8, 2))),
            "has no other; give layers",
        ),
        (lambda: PKD().wanted(ModelPair(ModelShape(2, 6, 2), ModelShape(4, 8, 2))), "needs one width"),
        (
            lambda: AttentionMaps().wanted(ModelPair(ModelShape(2, 8, 1), ModelShape(4, 8, 2))),
            "needs one number of heads, but the student has 1 and the teacher 2",
        ),
        (lambda: PKD()(Rows(student=torch.zeros(2, 3))), "rows.activations is None"),
        (lambda: PKD(layers=((0, 2),))(rows_without(2)), "no teacher's hidden states of layer 2"),
    ],
)
def test_what_cannot_be_compared_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def rows_without(layer: int) -> Rows:
    rows = random_rows()
    teacher = rows.activations.teacher
    hidden = {place: tensor for place, tensor in teacher.hidden.items() if place != layer}
    return replace(rows, activations=replace(rows.activations, teacher=replace(teacher, hidden=hidden)))


def test_shapes_that_do_not_belong_together_are_named():
    rows = random_rows()
    activations = rows.activations
    models = activations.models
    with pytest.raises(
        ValueError, match=r"student's hidden of layer 0: expected shape \(4, 5, 8\), got \(4, 5, 7\)"
    ):
        PairedActivations(
            models, Activations(hidden={0: torch.zeros(4, 5, 7)}), activations.teacher, activations.mask
        )
    with pytest.raises(ValueError, match=r"teacher's attention of layer 1: expected shape \(4, 2, 5, 5\)"):
        PairedActivations(
            models, activations.student, Activations(attention={1: torch.zeros(4, 1, 5, 5)}), activations.mask
        )
    with pytest.raises(ValueError, match=r"mask must have shape \(S, T\)"):
        replace(activations, mask=torch.ones(4))
    with pytest.raises(TypeError, match="must be floating-point"):
        replace(activations, student=Activations(hidden={0: torch.zeros(4, 5, 8, dtype=torch.long)}))
    with pytest.raises(ValueError, match="4 sequences cannot be shared out among 3 rows"):
        Rows(student=torch.zeros(3, 2), activations=activations)
    with pytest.raises(ValueError, match=r"token must have shape \(3,\), got \(4,\)"):
        Rows(student=torch.zeros(3, 2), activations=replace(activations, token=torch.arange(4)))


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e30])
def test_a_direction_is_the_same_for_vectors_whose_squares_float32_cannot_hold(size):
    vector_H = torch.tensor([3.0, -4.0, 0.0])
    torch.testing.assert_close(_direction(size * vector_H), torch.tensor([0.6, -0.8, 0.0]), rtol=1e-6, atol=0)
    assert _direction(torch.zeros(3)).tolist() == [0, 0, 0]
