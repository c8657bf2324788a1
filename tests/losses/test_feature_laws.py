"""The laws of the losses between layers, on generated activations; and mistaken ones, each caught by a law by name.

S sequences, T positions, N rows, H hidden width, A attention heads, R relation heads, d width of a relation head.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from distill.losses.features.attention_maps import map_divergence
from distill.losses.features.feature_loss import FeatureLoss, positions_that_count
from distill.losses.features.hidden_states import hidden_of
from distill.losses.laws import LawBroken
from distill.losses.precision import wide
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.errors import NumericsError
from distill.losses import (
    PKD,
    Activations,
    AttentionMaps,
    HiddenStates,
    ModelPair,
    ModelShape,
    PairedActivations,
    Relations,
    Rows,
)

EMBEDDINGS = -1


class Projected:
    """HiddenStates with random maps, called like the other losses on numbers of any precision."""

    def __init__(self, loss: HiddenStates, models: ModelPair, seed: int = 0):
        self.loss = loss
        module = loss.build(models)
        generator = torch.Generator().manual_seed(seed)
        for each in module.maps:
            torch.nn.init.normal_(each.weight, generator=generator)
        self.modules = {torch.float32: module, torch.float64: copy.deepcopy(module).double()}

    def module_for(self, rows: Rows) -> torch.nn.Module:
        return self.modules[wide(next(iter(rows.activations.student.hidden.values()))).dtype]

    def __call__(self, rows: Rows) -> Tensor:
        return self.module_for(rows)(rows)


def unbuilt(loss: FeatureLoss | Projected) -> Any:
    return loss.loss if isinstance(loss, Projected) else loss


# What laws do to rows.


def changed(
    rows: Rows,
    student: Callable[[Tensor], Tensor] | None = None,
    teacher: Callable[[Tensor], Tensor] | None = None,
) -> Rows:
    activations = rows.activations
    sides = {"student": student, "teacher": teacher}
    return replace(
        rows,
        activations=replace(
            activations,
            **{whose: getattr(activations, whose).map(change) for whose, change in sides.items() if change},
        ),
    )


def both_changed(rows: Rows, change: Callable[[Tensor], Tensor]) -> Rows:
    return changed(rows, change, change)


def in_double(rows: Rows) -> Rows:
    return both_changed(replace(rows, student=rows.student.double()), Tensor.double)


def as_sequences(rows: Rows) -> Rows:
    """A row for each sequence."""
    activations = replace(rows.activations, token=None)
    return Rows(student=rows.student.new_zeros(len(activations.mask), 2), activations=activations)


def as_tokens(rows: Rows) -> Rows:
    """A row for each token of each sequence."""
    token_N = (rows.activations.mask.flatten() > 0).nonzero().squeeze(-1)
    return Rows(
        student=rows.student.new_zeros(len(token_N), 2),
        activations=replace(rows.activations, token=token_N),
    )


def moved(tensor: Tensor, source: list[int | None], fill: float) -> Tensor:
    """The tensor with other positions: at each the old one named, or `fill` for a new one."""
    index = torch.tensor([place or 0 for place in source])
    new = torch.tensor([place is None for place in source])
    if tensor.dim() == 4:
        return tensor[:, :, index][..., index].masked_fill(new[:, None] | new, fill)
    return tensor[:, index].masked_fill(new[:, None], fill)


def with_positions(rows: Rows, source: list[int | None]) -> Rows:
    """The rows with their positions moved; a new one is padding and full of NaN."""
    activations = rows.activations
    length = activations.mask.shape[1]
    mask = moved(activations.mask[..., None], source, 0)[..., 0]
    token = activations.token
    if token is not None:
        token = token // length * len(source) + torch.tensor(
            [source.index(place) for place in (token % length).tolist()], dtype=torch.long
        )
    student, teacher = (
        getattr(activations, whose).map(lambda tensor: moved(tensor, source, math.nan))
        for whose in ("student", "teacher")
    )
    return replace(rows, activations=PairedActivations(activations.models, student, teacher, mask, token))


def mean_and_gradients(loss: Any, rows: Rows) -> tuple[Tensor, list[Tensor]]:
    """The mean and its derivatives: for the student's activations, in their order, and then for the maps."""
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        leaves.append(tensor.detach().clone().requires_grad_())
        return leaves[-1]

    live = changed(rows, leaf)
    return gradients(live.mean(loss(live)), leaves, loss, rows)


def gradients(mean: Tensor, leaves: list[Tensor], loss: Any, rows: Rows) -> tuple[Tensor, list[Tensor]]:
    if isinstance(loss, Projected):
        leaves = [*leaves, *loss.module_for(rows).parameters()]
    if not mean.requires_grad:
        raise LawBroken("the mean does not depend on the student's activations: nothing can be trained on it")
    found = torch.autograd.grad(mean, leaves, allow_unused=True)
    return mean.detach(), [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, found, strict=True)
    ]


def counted(loss: Any, rows: Rows) -> Tensor:
    """The values of the rows, 0 where the weight is: what stands there counts nowhere."""
    return loss(rows).detach().where(rows.weights > 0, 0.0)


def expect(what: str, actual: Tensor, expected: Tensor, allowed: float) -> None:
    if actual.shape != expected.shape:
        raise LawBroken(f"{what}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}")
    worst = float((actual - expected).abs().amax()) if expected.numel() else 0.0
    if not worst <= allowed:
        raise LawBroken(f"{what}: off by {worst:.3g}, allowed {allowed:.3g}")


def expect_values(what: str, loss: Any, rows: Rows, actual: Tensor, expected: Tensor) -> None:
    """Equal but for float64 rounding: of the numbers compared, and of those that they are differences of."""
    largest = float(expected.abs().amax()) if expected.numel() else 0.0
    expect(what, actual, expected, 1e-9 * largest + 1e-13 * ceiling(loss, rows))


def expect_gradients(what: str, actual: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    for found, wanted in zip(actual, expected, strict=True):
        largest = float(wanted.abs().amax()) if wanted.numel() else 0.0
        expect(what, found, wanted, 1e-7 * largest + 1e-10)


def ceiling(loss: Any, rows: Rows) -> float:
    """What no row's value exceeds."""

    def largest(activations: Activations) -> float:
        tensors = [t for part in fields(Activations) for t in getattr(activations, part.name).values()]
        return max(float(each[each.isfinite()].double().abs().amax()) for each in tensors)

    config, models = unbuilt(loss), rows.activations.models
    if isinstance(config, PKD):
        return 4.0
    if isinstance(config, HiddenStates) and config.distance == "cosine":
        return 2.0
    student, teacher = largest(rows.activations.student), largest(rows.activations.teacher)
    if isinstance(config, Relations):
        # KL(p || q) is at most the range of the scores' differences, and x·y/√d at most √d times the largest entry².
        heads = config.heads or models.teacher.heads
        wide_s, wide_t = (
            max(getattr(models, whose).width_of(part) for part in config.of) / heads
            for whose in ("student", "teacher")
        )
        return len(config.of) * 2 * (math.sqrt(wide_s) * student**2 + math.sqrt(wide_t) * teacher**2)
    if isinstance(config, AttentionMaps) and config.distance == "kl":
        return 2 * (student + teacher)
    if isinstance(loss, Projected):
        student *= max(float(each.weight.detach().abs().sum(1).amax()) for each in loss.module_for(rows).maps)
    return (student + teacher) ** 2


# The definitions, by loops that share no code with the library.


def pairs_by_loops(config: FeatureLoss, models: ModelPair) -> list[tuple[int, int]]:
    deep, deeper = models.student.layers, models.teacher.layers
    if config.layers is None:
        found = [(layer, math.ceil((layer + 1) * deeper / deep) - 1) for layer in range(deep)]
        if isinstance(config, PKD):
            found.pop()
    else:
        found = [(range(deep)[s], range(deeper)[t]) for s, t in config.layers]
    if getattr(config, "embeddings", False):
        found.insert(0, (EMBEDDINGS, EMBEDDINGS))
    return found


def kl_by_loops(teacher: list[float], student: list[float]) -> float:
    def logarithms(scores: list[float]) -> list[float]:
        total = math.log(sum(math.exp(score - max(scores)) for score in scores))
        return [score - max(scores) - total for score in scores]

    terms = zip(logarithms(teacher), logarithms(student), strict=True)
    return sum(math.exp(p) * (p - q) for p, q in terms if p > -math.inf)


def by_loops(loss: Any, rows: Rows) -> list[float]:
    """Each row's value by its definition, position after position, head after head, key after key."""
    config, activations = unbuilt(loss), rows.activations
    arrays = {
        (whose, part.name, layer): tensor.double().numpy()
        for whose in ("student", "teacher")
        for part in fields(Activations)
        for layer, tensor in getattr(getattr(activations, whose), part.name).items()
    }
    holds = (activations.mask > 0).tolist()
    length = len(holds[0])
    pairs = pairs_by_loops(config, activations.models)

    def unit(vector: np.ndarray) -> np.ndarray:
        norm = math.sqrt(sum(x * x for x in vector))
        return vector / norm if norm else vector

    def hidden(sequence: int, position: int, place: int) -> float:
        s = arrays["student", "hidden", pairs[place][0]][sequence, position]
        t = arrays["teacher", "hidden", pairs[place][1]][sequence, position]
        if isinstance(loss, Projected):
            weight = loss.modules[torch.float64].maps[place].weight.detach().numpy()
            s = np.array([sum(w * x for w, x in zip(line, s, strict=True)) for line in weight])
        if isinstance(config, PKD):
            return sum((u - v) ** 2 for u, v in zip(unit(s), unit(t), strict=True))
        if config.distance == "cosine":
            return sum((u - v) ** 2 for u, v in zip(unit(s), unit(t), strict=True)) / 2
        return sum((u - v) ** 2 for u, v in zip(s, t, strict=True)) / len(t)

    def attention(sequence: int, position: int, place: int) -> float:
        s_ATT, t_ATT = (
            arrays[whose, "attention", layer][sequence]
            for whose, layer in zip(("student", "teacher"), pairs[place], strict=True)
        )
        found = 0.0
        for s_T, t_T in zip(s_ATT[:, position], t_ATT[:, position], strict=True):
            seen = [key for key in range(length) if holds[sequence][key] and s_T[key] > -math.inf]
            s, t = [s_T[key] for key in seen], [t_T[key] for key in seen]
            if config.distance == "kl":
                found += kl_by_loops(t, s)
            else:
                found += sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(seen)
        return found / len(s_ATT)

    def relations(sequence: int, position: int, place: int) -> float:
        heads = config.heads or activations.models.teacher.heads
        seen = [key for key in range(length) if holds[sequence][key]]
        found = 0.0
        for part in config.of:
            for head in range(heads):
                scores = []
                for whose, layer in zip(("student", "teacher"), pairs[place], strict=True):
                    x_TH = arrays[whose, part, layer][sequence]
                    size = x_TH.shape[1] // heads
                    x_Td = x_TH[:, head * size : (head + 1) * size]
                    scores.append([float(x_Td[position] @ x_Td[key]) / math.sqrt(size) for key in seen])
                found += kl_by_loops(scores[1], scores[0]) / heads
        return found

    at = {HiddenStates: hidden, PKD: hidden, AttentionMaps: attention, Relations: relations}
    value = next(function for kind, function in at.items() if isinstance(config, kind))
    values = []
    for row in range(len(rows)):
        if activations.token is not None:
            places = [divmod(int(activations.token[row]), length)]
        else:
            each = len(holds) // len(rows)
            places = []
            for sequence in range(row * each, (row + 1) * each):
                tokens = [(sequence, position) for position in range(length) if holds[sequence][position]]
                places += tokens[:1] if isinstance(config, PKD) else tokens
        found = [[value(*place, pair) for pair in range(len(pairs))] for place in places]
        values.append(float(np.mean(found)))
    return values


# The laws: each takes a loss and ordinary rows, and raises LawBroken.


def law_one_value_a_row(loss: Any, rows: Rows) -> None:
    """Values have shape (N,), in float32, or float64 for float64 activations."""
    part = next(part for part in fields(Activations) if getattr(rows.activations.student, part.name))
    dtype = next(iter(getattr(rows.activations.student, part.name).values())).dtype
    values_N = loss(rows)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    if values_N.shape != (len(rows),) or values_N.dtype != expected:
        raise LawBroken(f"expected ({len(rows)},) {expected}, got {tuple(values_N.shape)} {values_N.dtype}")


def law_by_loops(loss: Any, rows: Rows) -> None:
    """Values are those of the definition."""
    rows = in_double(rows)
    expected_N = torch.tensor(by_loops(loss, rows), dtype=torch.float64).where(rows.weights > 0, 0.0)
    expect_values("values beside loops", loss, rows, counted(loss, rows), expected_N)


def law_zero_at_equality(loss: Any, rows: Rows) -> None:
    """A student whose layers are all like the teacher's costs exactly nothing and is pulled nowhere."""
    activations = rows.activations
    models = replace(
        activations.models,
        student=replace(activations.models.teacher, layers=activations.models.student.layers),
    )

    def alike(layers: Iterable[int], part: str) -> dict[int, Tensor]:
        of_teacher = getattr(activations.teacher, part)
        return {layer: of_teacher[max(of_teacher)] for layer in layers}

    student, teacher = (
        Activations(
            **{
                part.name: alike(getattr(getattr(activations, whose), part.name), part.name)
                for part in fields(Activations)
            }
        )
        for whose in ("student", "teacher")
    )
    equal = replace(
        rows, activations=PairedActivations(models, student, teacher, activations.mask, activations.token)
    )
    expect("values at equality", counted(loss, equal), torch.zeros(len(rows)), 0.0)
    _, pulls = mean_and_gradients(loss, equal)
    for pull in pulls:
        expect("gradient at equality", pull, torch.zeros_like(pull), 0.0)


def law_zero_through_the_map(loss: Any, rows: Rows) -> None:
    """A teacher that is where the map takes the student costs nothing: the map is applied to the student alone."""
    rows = in_double(rows)
    activations = rows.activations
    pairs = pairs_by_loops(unbuilt(loss), activations.models)
    reached: dict[int, Tensor] = {}
    for (student, teacher), each in zip(pairs, loss.module_for(rows).maps, strict=True):
        if teacher in reached:
            return  # two maps lead to one layer, which cannot be in two places
        reached[teacher] = each(activations.student.hidden[student]).detach()
    reached = {**activations.teacher.hidden, **reached}
    there = replace(rows, activations=replace(activations, teacher=Activations(hidden=reached)))
    expect_values("values at the map's end", loss, there, counted(loss, there), torch.zeros(len(rows)))


def law_never_negative(loss: Any, rows: Rows) -> None:
    values_N = counted(loss, rows)
    if not bool((values_N >= 0).all()):
        raise LawBroken(f"expected nothing below 0, got {float(values_N.amin()):.3g}")


def law_bounded(loss: Any, rows: Rows) -> None:
    """No value exceeds what the activations' sizes allow, nor the bound that the loss states."""
    limit = min(ceiling(loss, rows), getattr(unbuilt(loss), "bound", math.inf))
    largest = float(counted(loss, rows).amax())
    if not largest <= limit * (1 + 1e-5):
        raise LawBroken(f"expected at most {limit:.6g}, got {largest:.6g}")


def law_masked_positions(loss: Any, rows: Rows) -> None:
    """Positions without a token change nothing and get a gradient of 0, whatever they hold."""
    rows = in_double(rows)
    mean, pulls = mean_and_gradients(loss, rows)
    hole_ST = rows.activations.mask <= 0

    def holes(tensor: Tensor) -> Tensor:
        if tensor.dim() == 4:
            return hole_ST[:, None, :, None] | hole_ST[:, None, None, :]
        return hole_ST[..., None]

    for number in (math.nan, math.inf, 1e3):
        spoilt = both_changed(rows, lambda tensor, to=number: tensor.masked_fill(holes(tensor), to))
        found, found_pulls = mean_and_gradients(loss, spoilt)
        expect(f"mean beside padding of {number}", found, mean, 0.0)
        expect_gradients(f"gradient beside padding of {number}", found_pulls, pulls)
        student = [
            t for part in fields(Activations) for t in getattr(spoilt.activations.student, part.name).values()
        ]
        for tensor, pull in zip(student, found_pulls[: len(student)], strict=True):
            expect("gradient of padding", pull.where(holes(tensor), 0.0), torch.zeros_like(pull), 0.0)


def law_padding_length(loss: Any, rows: Rows) -> None:
    """More padding, on the left and on the right, changes nothing."""
    rows = in_double(rows)
    mean, pulls = mean_and_gradients(loss, rows)
    positions = list(range(rows.activations.mask.shape[1]))
    for source in ([*positions, None], [None, None, *positions, None]):
        padded = with_positions(rows, source)
        found, found_pulls = mean_and_gradients(loss, padded)
        expect_values("mean beside more padding", loss, rows, found, mean)
        expected = [moved(pull, source, 0.0) if pull.dim() > 2 else pull for pull in pulls]
        expect_gradients("gradient beside more padding", found_pulls, expected)


def law_rows_of_weight_0(loss: Any, rows: Rows) -> None:
    """Rows of weight 0 change nothing and get a gradient of 0, whatever they hold."""
    rows = in_double(rows)
    mean, pulls = mean_and_gradients(loss, rows)
    activations = rows.activations
    sequences, positions = activations.mask.shape
    each = sequences // len(rows) if activations.token is None else 1

    def longer(tensor: Tensor, fill: float = math.nan) -> Tensor:
        return torch.cat([tensor, torch.full_like(tensor[:each], fill)])

    more, token = 1, None
    if activations.token is not None:
        more = positions
        token = torch.cat([activations.token, sequences * positions + torch.arange(positions)])
    padded = Rows(
        student=rows.student.new_zeros(len(rows) + more, rows.student.shape[1]),
        weight=torch.cat([rows.weights, rows.weights.new_zeros(more)]),
        activations=PairedActivations(
            activations.models,
            activations.student.map(longer),
            activations.teacher.map(longer),
            longer(activations.mask, 1),
            token,
        ),
    )
    found, found_pulls = mean_and_gradients(loss, padded)
    expect_values("mean beside a row of weight 0", loss, rows, found, mean)
    expected = [longer(pull, 0.0) if pull.dim() > 2 else pull for pull in pulls]
    expect_gradients("gradient beside a row of weight 0", found_pulls, expected)
    for pull in found_pulls:
        if pull.dim() > 2:
            expect("gradient of a row of weight 0", pull[sequences:], torch.zeros_like(pull[sequences:]), 0.0)


def law_weight_counts_rows(loss: Any, rows: Rows) -> None:
    """A row of weight 2 counts like the same row twice."""
    rows = in_double(rows)
    twice = rows.select(torch.cat([torch.arange(len(rows)), torch.zeros(1, dtype=torch.long)]))
    weight_N = rows.weights.clone()
    weight_N[0] *= 2
    heavier = replace(rows, weight=weight_N)
    expect_values(
        "mean of a doubled row",
        loss,
        rows,
        twice.mean(loss(twice)).detach(),
        heavier.mean(loss(heavier)).detach(),
    )


def law_split_invariance(loss: Any, rows: Rows) -> None:
    """Micro-batches add up to the batch: mean and gradients do not depend on where it is cut."""
    rows = in_double(rows)
    mean, pulls = mean_and_gradients(loss, rows)
    total = rows.weights.sum()
    for size in {1, (len(rows) + 1) // 2}:
        leaves: list[Tensor] = []

        def leaf(tensor: Tensor, kept: list[Tensor] = leaves) -> Tensor:
            kept.append(tensor.detach().clone().requires_grad_())
            return kept[-1]

        live = changed(rows, leaf)
        pieces = [live.select(slice(start, start + size)) for start in range(0, len(rows), size)]
        added = torch.stack([piece.mean(loss(piece), total_weight=total) for piece in pieces]).sum()
        found, found_pulls = gradients(added, leaves, loss, rows)
        expect_values(f"mean from micro-batches of {size}", loss, rows, found, mean)
        expect_gradients(f"gradient from micro-batches of {size}", found_pulls, pulls)


def law_row_order(loss: Any, rows: Rows) -> None:
    """Values follow their rows when the rows change places."""
    rows = in_double(rows)
    order_N = torch.randperm(len(rows), generator=torch.Generator().manual_seed(len(rows)))
    again_N = torch.arange(len(rows)).roll(1)
    for order in (order_N, again_N):
        moved_rows = rows.select(order)
        expect_values(
            "values in another order", loss, rows, counted(loss, moved_rows), counted(loss, rows)[order]
        )


def law_position_order(loss: Any, rows: Rows) -> None:
    """Where in the sequence a token stands does not matter."""
    rows = in_double(rows)
    order = torch.randperm(
        rows.activations.mask.shape[1], generator=torch.Generator().manual_seed(4)
    ).tolist()
    turned = with_positions(rows, order[::-1])
    expect_values("values with positions moved", loss, rows, counted(loss, turned), counted(loss, rows))


def law_first_token_alone(loss: Any, rows: Rows) -> None:
    """Nothing but the first token of each sequence is seen, wherever it stands."""
    rows = in_double(rows)
    holds_ST = rows.activations.mask > 0
    first_ST = holds_ST & (holds_ST.cumsum(-1) == 1)
    others = both_changed(rows, lambda tensor: tensor.masked_fill(~first_ST[..., None], math.nan))
    expect_values("values with other tokens spoilt", loss, rows, counted(loss, others), counted(loss, rows))


def law_a_row_is_the_mean_of_its_tokens(loss: Any, rows: Rows) -> None:
    rows = in_double(rows)
    sequences, tokens = as_sequences(rows), as_tokens(rows)
    lengths = (rows.activations.mask > 0).sum(-1).tolist()
    means = torch.stack([each.mean() for each in loss(tokens).detach().split(lengths)])
    expect_values("values beside the means of their tokens", loss, rows, counted(loss, sequences), means)


def law_its_layers_alone(loss: Any, rows: Rows) -> None:
    """Layers and parts that the loss does not name do not matter, whatever they hold."""
    rows = in_double(rows)
    config, activations = unbuilt(loss), rows.activations
    pairs = pairs_by_loops(config, activations.models)
    read = getattr(config, "of", ("hidden", "attention"))

    def spoilt(whose: str) -> Activations:
        wanted = {pair[whose == "teacher"] for pair in pairs}
        return Activations(
            **{
                part.name: {
                    layer: tensor
                    if layer in wanted and part.name in read
                    else torch.full_like(tensor, math.nan)
                    for layer, tensor in getattr(getattr(activations, whose), part.name).items()
                }
                for part in fields(Activations)
            }
        )

    others = replace(
        rows, activations=replace(activations, student=spoilt("student"), teacher=spoilt("teacher"))
    )
    expect("values with other layers spoilt", counted(loss, others), counted(loss, rows), 0.0)
    named = config.wanted(activations.models)
    for whose, wanted in zip((0, 1), named, strict=True):
        layers = {pair[whose] for pair in pairs}
        if getattr(wanted, config.reads) != layers:
            raise LawBroken(
                f"reads layers {sorted(layers)}, but names {sorted(getattr(wanted, config.reads))}"
            )


def law_scale(loss: Any, rows: Rows) -> None:
    """A mean square grows with the square of a factor on both sides; a direction sees no factor on either."""
    rows = in_double(rows)
    config = unbuilt(loss)
    if getattr(config, "distance", "cosine") == "mean_squared":
        scaled, factor = both_changed(rows, lambda tensor: 3 * tensor), 9.0
    else:
        scaled, factor = changed(rows, lambda tensor: 3 * tensor, lambda tensor: tensor / 7), 1.0
    expect_values(
        "values of longer vectors", loss, scaled, counted(loss, scaled), factor * counted(loss, rows)
    )


def law_copies_of_the_features(loss: Any, rows: Rows) -> None:
    """Models of twice the width or the heads that hold everything twice cost the same: values are means over those."""
    rows = in_double(rows)
    models = rows.activations.models

    def twice(shape: ModelShape) -> ModelShape:
        return ModelShape(
            shape.layers,
            2 * shape.width,
            2 * shape.heads,
            query_width=2 * shape.width_of("query"),
            key_width=2 * shape.width_of("key"),
        )

    doubled = replace(
        rows,
        activations=PairedActivations(
            ModelPair(twice(models.student), twice(models.teacher), models.origin),
            *(
                getattr(rows.activations, whose).map(
                    lambda tensor: torch.cat([tensor, tensor], dim=1 if tensor.dim() == 4 else -1)
                )
                for whose in ("student", "teacher")
            ),
            rows.activations.mask,
            rows.activations.token,
        ),
    )
    heads = getattr(loss, "heads", None)
    wider = loss if heads is None else replace(loss, heads=2 * heads)
    expect_values("values of doubled features", loss, rows, counted(wider, doubled), counted(loss, rows))


def law_head_order(loss: Any, rows: Rows) -> None:
    """Heads renumbered on both sides change nothing."""
    rows = in_double(rows)
    models = rows.activations.models
    heads = models.teacher.heads if getattr(loss, "heads", None) is None else loss.heads
    order = torch.arange(heads).roll(1)

    def renumbered(tensor: Tensor) -> Tensor:
        if tensor.dim() == 4:
            return tensor[:, order]
        return tensor.unflatten(-1, (heads, -1))[..., order, :].flatten(-2)

    turned = both_changed(rows, renumbered)
    expect_values("values with heads renumbered", loss, rows, counted(loss, turned), counted(loss, rows))


def law_rotation_inside_a_head(loss: Any, rows: Rows) -> None:
    """Relations do not see a rotation of a head's vectors on either side."""
    rows = in_double(rows)
    heads = loss.heads or rows.activations.models.teacher.heads

    def turned(tensor: Tensor) -> Tensor:
        split = tensor.unflatten(-1, (heads, -1))
        generator = torch.Generator().manual_seed(5)
        size = split.shape[-1]
        turn, _ = torch.linalg.qr(torch.randn(heads, size, size, dtype=torch.float64, generator=generator))
        return torch.einsum("strd,rde->stre", split, turn).flatten(-2)

    for rotated in (changed(rows, turned), changed(rows, None, turned)):
        expect_values("values after a rotation", loss, rows, counted(loss, rotated), counted(loss, rows))


def law_shift_of_scores(loss: Any, rows: Rows) -> None:
    """A constant added to all scores of a query changes nothing: softmax runs over keys."""
    rows = in_double(rows)

    def shifted(tensor: Tensor) -> Tensor:
        return tensor + torch.linspace(-3, 5, tensor.shape[2], dtype=torch.float64)[:, None]

    moved_rows = changed(rows, shifted, lambda tensor: shifted(-tensor).neg())
    expect_values("values of shifted scores", loss, rows, counted(loss, moved_rows), counted(loss, rows))


def law_finite_at_extremes(loss: Any, rows: Rows) -> None:
    """Values and gradients stay finite for ±6e4, for zeros and for tiny numbers, on one side or both."""

    def sized(number: float) -> Callable[[Tensor], Tensor]:
        # Attention scores keep their −inf, where a query may not look.
        return lambda tensor: (number * tensor.sign()).where(tensor.isfinite(), tensor)

    def of_student(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        # A true gradient may be more than float16 holds.
        return lambda tensor: change(tensor).to(torch.promote_types(tensor.dtype, torch.bfloat16))

    def everywhere(tensor: Tensor) -> Tensor:
        return torch.full_like(tensor, 6e4).where(tensor.isfinite(), tensor)

    same = sized(6e4)
    for case, student, teacher in (
        ("6e4 everywhere", everywhere, everywhere),
        ("±6e4 in the student", same, None),
        ("±6e4 in the teacher", lambda tensor: tensor, same),
        ("±6e4 that disagree", same, sized(-6e4)),
        ("±6e4 that agree", same, same),
        ("a student of zeros", sized(0.0), None),
        ("a teacher of zeros", lambda tensor: tensor, sized(0.0)),
        ("nothing but zeros", sized(0.0), sized(0.0)),
        ("a tiny student", sized(1e-6), None),
    ):
        mean, pulls = mean_and_gradients(loss, changed(rows, of_student(student), teacher))
        if not bool(mean.isfinite()) or not all(bool(pull.isfinite().all()) for pull in pulls):
            raise LawBroken(f"{case}: mean {float(mean):.4g}, or its gradient, is not finite")


def law_nothing_counts(loss: Any, rows: Rows) -> None:
    """No rows, no row that counts, or no token: 0, with a gradient of zeros."""
    activations = rows.activations
    cases = {
        "no rows": rows.select(slice(0)),
        "every row masked": replace(rows, weight=torch.zeros(len(rows))),
    }
    if activations.token is None:
        no_tokens = replace(activations, mask=torch.zeros_like(activations.mask))
        cases["no tokens"] = replace(rows, activations=no_tokens)
    for case, empty in cases.items():
        mean, pulls = mean_and_gradients(loss, empty)
        if float(mean) != 0:
            raise LawBroken(f"{case}: expected 0, got {float(mean)}")
        for pull in pulls:
            expect(f"{case}: gradient", pull, torch.zeros_like(pull), 0.0)


def law_nan_shows_and_is_named(loss: Any, rows: Rows) -> None:
    """NaN or inf in a token that counts is not passed over, and `check_finite` names the tensor and the place."""
    config, activations = unbuilt(loss), rows.activations
    query_ST, _ = positions_that_count(rows, activations)
    sequence, position = config.counted(activations, query_ST).nonzero()[-1].tolist()
    part = getattr(config, "of", (config.reads,))[0]
    pair = pairs_by_loops(config, activations.models)[-1]
    rows.check_finite()
    place, named = (sequence, position, 0), f"position {position}"
    if part == "attention":
        place, named = (sequence, 0, position, position), f"{named} looking at {position}"
    for whose, layer in zip(("student", "teacher"), pair, strict=True):
        for number in (math.nan, math.inf):
            side = getattr(activations, whose)
            tensor = getattr(side, part)[layer].clone()
            tensor[place] = number
            layers = {**getattr(side, part), layer: tensor}
            spoilt = replace(
                rows, activations=replace(activations, **{whose: replace(side, **{part: layers})})
            )
            mean = float(spoilt.mean(loss(spoilt)).detach())
            if math.isfinite(mean):
                raise LawBroken(f"{number} in the {whose}'s {part} left a mean of {mean}")
            expected = rf"{whose}'s {part} of layer {layer}: sequence {sequence} of {len(tensor)}, {named}: "
            with pytest.raises(NumericsError, match=expected):
                spoilt.check_finite()


def law_teacher_gets_no_gradient(loss: Any, rows: Rows) -> None:
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        leaves.append(tensor.detach().clone().requires_grad_())
        return leaves[-1]

    live = changed(rows, lambda tensor: tensor.detach().requires_grad_(), leaf)
    live.mean(loss(live)).backward()
    for each in leaves:
        if each.grad is not None and bool((each.grad != 0).any()):
            raise LawBroken(f"the teacher got a gradient, up to {float(each.grad.abs().amax()):.3g}")


def law_gradient_is_the_slope(loss: Any, rows: Rows) -> None:
    """The gradient for the student's activations is the derivative of the mean, by finite differences."""
    rows = in_double(rows)
    generator = torch.Generator().manual_seed(6)
    directions: list[Tensor] = []

    def direction(tensor: Tensor) -> Tensor:
        size = tensor[tensor.isfinite()].abs().amax()
        directions.append(size * torch.randn(tensor.shape, dtype=torch.float64, generator=generator))
        return directions[-1]

    changed(rows, direction)
    step = 1e-6

    def at(distance: float) -> float:
        along = iter(directions)
        there = changed(rows, lambda tensor: tensor + distance * next(along))
        return float(there.mean(loss(there)).detach())

    _, pulls = mean_and_gradients(loss, rows)
    products = torch.stack([(a * b).sum() for a, b in zip(pulls[: len(directions)], directions, strict=True)])
    slope = (at(step) - at(-step)) / (2 * step)
    allowed = 1e-4 * float(products.abs().sum()) + 1e-8 * ceiling(loss, rows)
    expect("derivative along a direction", products.sum(), torch.tensor(slope, dtype=torch.float64), allowed)


def law_half_precision(loss: Any, rows: Rows) -> None:
    """Half-precision activations cost exactly what the same numbers do in float32, and pull as those do."""
    for dtype in (torch.bfloat16, torch.float16):
        coarse = both_changed(rows, lambda tensor, to=dtype: tensor.to(to))
        single = both_changed(coarse, Tensor.float)
        expect(f"values of {dtype}", counted(loss, coarse), counted(loss, single), 0.0)
        precise = in_double(coarse)
        exact_N = counted(loss, precise)
        # Float32's rounding of the scores or sums that a value is made of.
        allowed = 5e-5 * float(exact_N.abs().amax()) + 2e-6 * ceiling(loss, precise)
        expect(f"values of {dtype} beside float64", counted(loss, coarse).double(), exact_N, allowed)
        _, pulls = mean_and_gradients(loss, coarse)
        _, single_pulls = mean_and_gradients(loss, single)
        for pull, whole in zip(pulls, single_pulls, strict=True):
            # Rounded once for each pair that reads the layer, and once more when they are added.
            rounding = 4 * torch.finfo(dtype).eps * float(whole.abs().amax()) + torch.finfo(dtype).tiny
            expect(f"gradient of {dtype} beside float32", pull.float(), whole, rounding)


Law = Callable[[Any, Rows], None]
LAWS: dict[str, Law] = {
    name.removeprefix("law_"): law for name, law in list(globals().items()) if name.startswith("law_")
}


def laws_of(loss: Any) -> dict[str, Law]:
    """The laws that hold for this loss."""
    config, projected = unbuilt(loss), isinstance(loss, Projected)
    hidden, maps, relations = (isinstance(config, kind) for kind in (HiddenStates, AttentionMaps, Relations))
    pkd = isinstance(config, PKD)
    claimed = {
        "zero_at_equality": not projected,
        "zero_through_the_map": projected,
        "copies_of_the_features": not projected,
        "position_order": not pkd,
        "a_row_is_the_mean_of_its_tokens": not pkd,
        "first_token_alone": pkd,
        "scale": hidden or pkd or (maps and config.distance == "mean_squared"),
        "head_order": maps or relations,
        "rotation_inside_a_head": relations,
        "shift_of_scores": maps and config.distance == "kl",
    }
    return {name: law for name, law in LAWS.items() if claimed.get(name, True)}


# Generated cases.


def random_activations(
    shape: ModelShape, reads: str, size: tuple[int, int], numbers: Callable[..., Tensor]
) -> Activations:
    """Every layer's activations of the kind that a loss reads."""
    layers = range(shape.layers)
    if reads == "hidden":
        return Activations(hidden={layer: numbers(*size, shape.width) for layer in (EMBEDDINGS, *layers)})
    if reads == "attention":
        return Activations(
            attention={layer: numbers(size[0], shape.heads, size[1], size[1]) for layer in layers}
        )
    return Activations(
        **{
            part: {i: numbers(*size, shape.width_of(part)) for i in layers}
            for part in ("query", "key", "value")
        }
    )


@st.composite
def cases(draw: Callable[..., Any], kind: str) -> tuple[Any, Rows]:
    """A loss of a kind in one of its configurations, and rows of activations: all shapes, scales and precisions."""
    of_one_kind, _, distance = kind.partition(" ")
    small = st.integers(1, 3)
    heads, deep, deeper = draw(small), draw(small), draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**31))
    projected = of_one_kind == "hidden_states" and draw(st.booleans())
    width = heads * draw(small)
    other_width = heads * draw(small) if projected or of_one_kind == "relations" else width
    key_width = heads * draw(small) if of_one_kind == "relations" else None
    models = ModelPair(
        ModelShape(deep, width, heads, key_width=key_width), ModelShape(deeper, other_width, heads)
    )

    pair = st.tuples(st.integers(-deep, deep - 1), st.integers(-deeper, deeper - 1))
    named = st.lists(pair, min_size=1, max_size=2).map(tuple)
    layers = draw(named if of_one_kind == "pkd" and deep == 1 else st.none() | named)
    loss: Any
    if of_one_kind == "pkd":
        loss = PKD(layers=layers)
    elif of_one_kind == "attention_maps":
        loss = AttentionMaps(layers=layers, distance=distance)
    elif of_one_kind == "relations":
        of = draw(st.sampled_from([("query", "key", "value"), ("value",), ("key", "query")]))
        loss = Relations(layers=layers, heads=draw(st.sampled_from([None, 1, heads])), of=of)
    else:
        projection = "linear" if projected else "identity"
        loss = HiddenStates(
            layers=layers, distance=distance, projection=projection, embeddings=draw(st.booleans())
        )
        loss = Projected(loss, models, seed) if projected else loss

    each, count, length = draw(st.integers(1, 2)), draw(small), draw(st.integers(1, 4))
    sequences = each * count
    generator = torch.Generator().manual_seed(seed)
    spread = draw(st.sampled_from([0.01, 1.0, 30.0]))
    away = draw(st.sampled_from([1e-3, 0.1, 1.0]))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))

    def numbers(*shape: int) -> Tensor:
        return spread * torch.randn(*shape, generator=generator, dtype=torch.float64)

    reads, size = unbuilt(loss).reads, (sequences, length)
    teacher = random_activations(models.teacher, reads, size, numbers)
    student = random_activations(models.student, reads, size, numbers)
    if models.student.width == models.teacher.width and key_width in (None, other_width):
        near = {**dict(models.layer_map), EMBEDDINGS: EMBEDDINGS}
        student = Activations(
            **{
                part.name: {
                    layer: away * tensor + (1 - away) * getattr(teacher, part.name)[near[layer]]
                    for layer, tensor in getattr(student, part.name).items()
                }
                for part in fields(Activations)
            }
        )
    # At least one token a sequence: a prefix, a suffix, or with holes.
    mask = torch.rand(size, generator=generator) < 0.7
    mask[torch.arange(sequences), torch.randint(length, (sequences,), generator=generator)] = True
    order = draw(st.sampled_from(["right", "left", "holes"]))
    if order != "holes":
        mask = mask.long().sort(descending=order == "right", stable=True).values
    token = None
    if of_one_kind != "pkd" and draw(st.booleans()):
        token = (mask.flatten() > 0).nonzero().squeeze(-1)
        token = token[torch.randperm(len(token), generator=generator)][: draw(st.integers(1, 4))]
    count = count if token is None else len(token)
    weight = None
    if draw(st.booleans()):
        weight = (torch.rand(count, generator=generator) + 0.1) * (
            torch.rand(count, generator=generator) < 0.7
        )
        weight[int(torch.randint(count, (1,), generator=generator))] = 1.0
    rows = Rows(
        student=torch.zeros(count, 2),
        weight=weight,
        activations=PairedActivations(models, student, teacher, mask, token),
    )
    if reads == "attention" and draw(st.booleans()):
        ahead = torch.ones(length, length, dtype=torch.bool).triu(1)
        rows = both_changed(rows, lambda tensor: tensor.masked_fill(ahead, -math.inf))
    return loss, both_changed(rows, lambda tensor: tensor.to(dtype))


KINDS = (
    "hidden_states mean_squared",
    "hidden_states cosine",
    "pkd",
    "attention_maps kl",
    "attention_maps mean_squared",
    "relations",
)
generated = settings(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


def obeys(kind: str, examples: int) -> None:
    """One generated case after another, each under one of the laws that hold for its loss."""

    @settings(generated, max_examples=examples)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        loss, rows = data.draw(cases(kind))
        laws = laws_of(loss)
        name = data.draw(st.sampled_from(sorted(laws)))
        laws[name](loss, rows)

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_every_feature_loss_obeys_its_laws(kind):
    obeys(kind, 400)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_feature_loss_obeys_its_laws_in_many_cases(kind):
    obeys(kind, 2000)


# Mistakes that published code has made, each in one place of a loss that is otherwise the library's.


class MeanOverPaddingToo(HiddenStates):
    def values(self, rows):
        pairs = self.pairs(rows.activations.models)
        query_ST, _ = positions_that_count(rows, rows.activations)
        found = [self.position_values(rows.activations, pair, query_ST, query_ST).mean(-1) for pair in pairs]
        return torch.stack(found).mean(0)


class PaddingCompared(HiddenStates):
    def position_values(self, activations, pair, query_ST, key_ST):
        return super().position_values(activations, pair, torch.ones_like(query_ST), key_ST)

    def counted(self, activations, query_ST):
        return torch.ones_like(query_ST)


class MaskMultiplied(HiddenStates):
    def position_values(self, activations, pair, query_ST, key_ST):
        return super().position_values(activations, pair, torch.ones_like(query_ST), key_ST) * query_ST


class RowsOfWeight0Compared(HiddenStates):
    def values(self, rows):
        values_N = super().values(replace(rows, weight=None))
        return values_N + 0 * values_N.sum()


class SummedOverTheWidth(HiddenStates):
    def distances(self, student_STH, teacher_STH):
        return (student_STH - teacher_STH).square().sum(-1)


class DividedByTheWidthTwice(HiddenStates):
    def distances(self, student_STH, teacher_STH):
        return super().distances(student_STH, teacher_STH) / student_STH.shape[-1]


class RootOfTheSquare(HiddenStates):
    def distances(self, student_STH, teacher_STH):
        return (super().distances(student_STH, teacher_STH) + 1e-12).sqrt()


class MapOnTheTeacherToo(HiddenStates):
    def projected_values(self, rows, maps):
        through = iter(maps)

        def compare(activations, pair, query_ST, key_ST):
            each = next(through)
            return self.distances(*(each(hidden) for hidden in hidden_of(activations, pair, query_ST)))

        return self.mean_over_pairs(rows, compare)


class SummedOverLayers(HiddenStates):
    def values(self, rows):
        return super().values(rows) * len(self.pairs(rows.activations.models))


class EveryLayerRead(HiddenStates):
    def values(self, rows):
        unread = sum(tensor.float().mean() for tensor in rows.activations.student.hidden.values())
        return super().values(rows) + 0 * unread


class DividedByTheBatch(HiddenStates):
    def values(self, rows):
        return super().values(rows) / len(rows)


class OneNumber(HiddenStates):
    def values(self, rows):
        return super().values(rows).mean()


class HalfPrecision(HiddenStates):
    def distances(self, student_STH, teacher_STH):
        if student_STH.dtype == torch.float32:
            return super().distances(student_STH.bfloat16(), teacher_STH.bfloat16()).float()
        return super().distances(student_STH, teacher_STH)


class NanToNum(HiddenStates):
    def values(self, rows):
        return super().values(rows).nan_to_num(0.0, 0.0)


class DetachedTerm(HiddenStates):
    def distances(self, student_STH, teacher_STH):
        difference_STH = student_STH - teacher_STH
        return (difference_STH * difference_STH.detach()).mean(-1)


class TrainedTeacher(HiddenStates):
    def position_values(self, activations, pair, query_ST, key_ST):
        student, teacher = activations.student.hidden[pair[0]], activations.teacher.hidden[pair[1]]
        return self.distances(student, teacher)


class ZeroWithoutGradient(HiddenStates):
    def values(self, rows):
        if not bool((rows.weights > 0).any()):
            return torch.zeros(len(rows))
        return super().values(rows)


class WeightsCountedTwice(HiddenStates):
    def values(self, rows):
        return super().values(rows) * rows.weights


class RowsNumbered(HiddenStates):
    def values(self, rows):
        return super().values(rows) * torch.arange(1, len(rows) + 1)


class TextbookCosine(HiddenStates):
    def distances(self, student_STH, teacher_STH):
        return 1 - torch.nn.functional.cosine_similarity(student_STH, teacher_STH, dim=-1)


class DividedByALengthOf0(HiddenStates):
    def distances(self, student_STH, teacher_STH):
        u_STH, v_STH = (each / each.norm(dim=-1, keepdim=True) for each in (student_STH, teacher_STH))
        return (u_STH - v_STH).square().sum(-1) / 2


class SquaredChord(HiddenStates):
    def distances(self, student_STH, teacher_STH):
        return 2 * super().distances(student_STH, teacher_STH)


class PositionZero(PKD):
    def counted(self, activations, query_ST):
        return query_ST & (torch.arange(query_ST.shape[1]) == 0)


class EveryToken(PKD):
    def counted(self, activations, query_ST):
        return query_ST


class MeanOverTheDirection(PKD):
    def position_values(self, activations, pair, query_ST, key_ST):
        values_ST = super().position_values(activations, pair, query_ST, key_ST)
        return values_ST / activations.models.teacher.width


class MaskedKeysCompared(AttentionMaps):
    def position_values(self, activations, pair, query_ST, key_ST):
        return super().position_values(activations, pair, query_ST, torch.ones_like(key_ST))


class SoftmaxOverQueries(AttentionMaps):
    def position_values(self, activations, pair, query_ST, key_ST):
        return super().position_values(activations_transposed(activations), pair, query_ST, key_ST)


class SummedOverHeads(AttentionMaps):
    def position_values(self, activations, pair, query_ST, key_ST):
        heads = activations.models.teacher.heads
        return heads * super().position_values(activations, pair, query_ST, key_ST)


class StudentToTeacher(AttentionMaps):
    def position_values(self, activations, pair, query_ST, key_ST):
        swapped = replace(activations, student=activations.teacher, teacher=activations.student)
        return super().position_values(swapped, (pair[1], pair[0]), query_ST, key_ST)


class TextbookDivergence(AttentionMaps):
    def position_values(self, activations, pair, query_ST, key_ST):
        log_p, log_q = (
            getattr(activations, whose)
            .attention[layer]
            .masked_fill(~key_ST[:, None, None], -1e4)
            .log_softmax(-1)
            for whose, layer in (("teacher", pair[1]), ("student", pair[0]))
        )
        return (log_p.exp() * (log_p - log_q)).sum(-1).mean(1)


class FirstHeadAlone(AttentionMaps):
    def position_values(self, activations, pair, query_ST, key_ST):
        student, teacher = activations.student.attention[pair[0]], activations.teacher.attention[pair[1]]
        return map_divergence(student[:, :1], teacher[:, :1], query_ST, key_ST).mean(1)


class KeysNumbered(Relations):
    def position_values(self, activations, pair, query_ST, key_ST):
        values_ST = super().position_values(activations, pair, query_ST, key_ST)
        return values_ST * torch.arange(1, values_ST.shape[1] + 1)


class HeadsInterleaved(Relations):
    def position_values(self, activations, pair, query_ST, key_ST):
        heads = self._heads(activations.models)

        def cut(tensor: Tensor) -> Tensor:
            return tensor.unflatten(-1, (-1, heads)).transpose(-1, -2).flatten(-2)

        interleaved = replace(
            activations, student=activations.student.map(cut), teacher=activations.teacher.map(cut)
        )
        return super().position_values(interleaved, pair, query_ST, key_ST)


class DividedByTheWholeWidth(Relations):
    def position_values(self, activations, pair, query_ST, key_ST):
        shrink = float(self._heads(activations.models)) ** -0.25
        smaller = replace(
            activations,
            student=activations.student.map(lambda tensor: shrink * tensor),
            teacher=activations.teacher.map(lambda tensor: shrink * tensor),
        )
        return super().position_values(smaller, pair, query_ST, key_ST)


class MeanOfTheTokensOfAll(Relations):
    def values(self, rows):
        values_N = super().values(rows)
        return values_N.mean().expand(len(rows))


def activations_transposed(activations: PairedActivations) -> PairedActivations:
    """Scores with queries and keys exchanged, so that a softmax over the last axis runs over queries."""
    student, teacher = (
        getattr(activations, whose).map(lambda tensor: tensor.transpose(-1, -2))
        for whose in ("student", "teacher")
    )
    return replace(activations, student=student, teacher=teacher)


IDENTITY = {"projection": "identity"}
COSINE = {"projection": "identity", "distance": "cosine"}
MISTAKES = [
    (MeanOverPaddingToo(**IDENTITY), "padding_length"),
    (PaddingCompared(**IDENTITY), "masked_positions"),
    (MaskMultiplied(**IDENTITY), "masked_positions"),
    (RowsOfWeight0Compared(**IDENTITY), "rows_of_weight_0"),
    (SummedOverTheWidth(**IDENTITY), "copies_of_the_features"),
    (SummedOverTheWidth(**IDENTITY), "by_loops"),
    (DividedByTheWidthTwice(**IDENTITY), "copies_of_the_features"),
    (RootOfTheSquare(**IDENTITY), "scale"),
    (MapOnTheTeacherToo(), "zero_through_the_map"),
    (MapOnTheTeacherToo(), "by_loops"),
    (SummedOverLayers(**IDENTITY), "by_loops"),
    (EveryLayerRead(**IDENTITY, layers=((0, 0),)), "its_layers_alone"),
    (DividedByTheBatch(**IDENTITY), "split_invariance"),
    (DividedByTheBatch(**IDENTITY), "a_row_is_the_mean_of_its_tokens"),
    (OneNumber(**IDENTITY), "one_value_a_row"),
    (HalfPrecision(**IDENTITY), "half_precision"),
    (NanToNum(**IDENTITY), "nan_shows_and_is_named"),
    (DetachedTerm(**IDENTITY), "gradient_is_the_slope"),
    (TrainedTeacher(**IDENTITY), "teacher_gets_no_gradient"),
    (ZeroWithoutGradient(**IDENTITY), "nothing_counts"),
    (WeightsCountedTwice(**IDENTITY), "weight_counts_rows"),
    (RowsNumbered(**IDENTITY), "row_order"),
    (TextbookCosine(**COSINE), "zero_at_equality"),
    (DividedByALengthOf0(**COSINE), "finite_at_extremes"),
    (SquaredChord(**COSINE), "bounded"),
    (PositionZero(), "padding_length"),
    (EveryToken(), "first_token_alone"),
    (MeanOverTheDirection(), "copies_of_the_features"),
    (MaskedKeysCompared(), "masked_positions"),
    (MaskedKeysCompared(distance="mean_squared"), "padding_length"),
    (SoftmaxOverQueries(), "shift_of_scores"),
    (SummedOverHeads(), "copies_of_the_features"),
    (StudentToTeacher(), "by_loops"),
    (StudentToTeacher(), "teacher_gets_no_gradient"),
    (TextbookDivergence(), "never_negative"),
    (FirstHeadAlone(), "head_order"),
    (KeysNumbered(), "position_order"),
    (HeadsInterleaved(), "rotation_inside_a_head"),
    (DividedByTheWholeWidth(), "by_loops"),
    (MeanOfTheTokensOfAll(), "split_invariance"),
]


def far_rows(reads: str) -> Rows:
    """Three sequences of 4 positions at most, the second with padding; the student is far from its teacher."""
    generator = torch.Generator().manual_seed(0)
    models = ModelPair(ModelShape(2, 4, 2), ModelShape(3, 4, 2))
    student, teacher = (
        random_activations(
            shape,
            reads,
            (3, 4),
            lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64).float(),
        )
        for shape in (models.student, models.teacher)
    )
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    return Rows(
        student=torch.zeros(3, 2),
        weight=torch.tensor([1.0, 0.5, 2.0]),
        activations=PairedActivations(models, student, teacher, mask),
    )


def near_rows(reads: str) -> Rows:
    """A student so near its teacher that rounding decides the sign of a sum of differences."""
    rows = far_rows(reads)
    generator = torch.Generator().manual_seed(1)
    near = dict(rows.activations.models.layer_map)
    student = Activations(
        **{
            part.name: {
                layer: getattr(rows.activations.teacher, part.name)[near.get(layer, EMBEDDINGS)]
                + 1e-5 * torch.randn(tensor.shape, generator=generator)
                for layer, tensor in getattr(rows.activations.student, part.name).items()
            }
            for part in fields(Activations)
        }
    )
    return replace(rows, activations=replace(rows.activations, student=student))


@pytest.mark.parametrize(
    ("mistaken", "law"),
    MISTAKES,
    ids=[f"{type(mistaken).__name__}-{law}" for mistaken, law in MISTAKES],
)
def test_a_known_mistake_breaks_a_named_law(mistaken, law):
    rows = (near_rows if law == "never_negative" else far_rows)(mistaken.reads)
    right = type(mistaken).__base__(
        **{field.name: getattr(mistaken, field.name) for field in fields(mistaken)}
    )
    if isinstance(mistaken, HiddenStates) and mistaken.projection == "linear":
        mistaken, right = (Projected(loss, rows.activations.models) for loss in (mistaken, right))
    with pytest.raises(LawBroken):
        LAWS[law](mistaken, rows)
    assert law in laws_of(right)
    LAWS[law](right, rows)


def test_each_law_is_broken_by_some_mistake():
    assert {law for _, law in MISTAKES} == set(LAWS)


def test_losses_are_excused_only_from_what_cannot_hold_for_them():
    models = far_rows("hidden").activations.models
    of_tokens = {"first_token_alone"}
    of_maps = {"head_order", "rotation_inside_a_head", "shift_of_scores"}
    unmapped = {"zero_through_the_map"}
    mapped = {"zero_at_equality", "copies_of_the_features"}
    for loss, excused in (
        (HiddenStates(**IDENTITY), of_tokens | of_maps | unmapped),
        (Projected(HiddenStates(), models), of_tokens | of_maps | mapped),
        (PKD(), {"position_order", "a_row_is_the_mean_of_its_tokens"} | of_maps | unmapped),
        (AttentionMaps(), of_tokens | unmapped | {"scale", "rotation_inside_a_head"}),
        (
            AttentionMaps(distance="mean_squared"),
            of_tokens | unmapped | {"rotation_inside_a_head", "shift_of_scores"},
        ),
        (Relations(), of_tokens | unmapped | {"scale", "shift_of_scores"}),
    ):
        assert set(LAWS) - set(laws_of(loss)) == excused
