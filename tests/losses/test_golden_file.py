"""Every loss of logits beside checked-in numbers, twenty batches each, which plain Python computed from the papers."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Annotated, Any, get_args

import pytest
import torch
from pydantic import Field, TypeAdapter

from distill.losses import AnyLoss, Loss, Rows, SparseTeacher

from . import golden

STORED = json.loads(golden.FILE.read_text(encoding="utf-8"))
READ: TypeAdapter[Loss] = TypeAdapter(Annotated[AnyLoss, Field(discriminator="kind")])
ENTRIES = [(READ.validate_python(entry["loss"]), entry["values"]) for entry in STORED["losses"]]

IDS = [" ".join(str(part) for part in entry["loss"].values()) for entry in STORED["losses"]]
# What a loss does without: a rate at which it moves from step to step, and a limit for what it reports.
SILENT = {"end", "rate", "inertia", "trend", "tolerance", "power"}


def stacked(part: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor([batch[part] for batch in STORED["inputs"]], dtype=dtype).flatten(0, 1)


def values(loss: Loss) -> torch.Tensor:
    """A row for each batch: its rows' values, or the mean of a loss whose rows stand together."""
    rows = Rows(
        student=stacked("student"),
        teacher=stacked("teacher"),
        label=stacked("label", torch.long),
        group=torch.arange(golden.BATCHES).repeat_interleave(golden.ROWS),
    )
    if loss.kind == "sampled_targets":
        drawn = SparseTeacher(stacked("drawn", torch.long), stacked("drawn_probability"))
        rows = replace(rows, teacher=None, sparse=drawn)
    of_batches = loss(rows).unflatten(0, (golden.BATCHES, golden.ROWS))
    return of_batches if loss.additive else of_batches.mean(1)


def off(loss: Loss, expected: list[Any]) -> float:
    """The largest relative error among the values; values below 1e-4 count as 1e-4."""
    wanted, found = torch.tensor(expected, dtype=torch.float64), values(loss)
    assert found.shape == wanted.shape
    assert found.dtype == torch.float64
    return float(((found - wanted).abs() / wanted.abs().clamp(min=1e-4)).amax())


@pytest.mark.parametrize(("loss", "expected"), ENTRIES, ids=IDS)
def test_values_are_the_golden_ones(loss, expected):
    assert len(expected) == 20
    assert off(loss, expected) <= 1e-7


def test_every_loss_of_logits_is_in_the_file():
    of_logits = {kind.kind for kind in get_args(AnyLoss) if not kind.reads_activations}
    assert {loss.kind for loss, _ in ENTRIES} == of_logits


@pytest.mark.parametrize(("loss", "expected"), ENTRIES, ids=IDS)
def test_a_change_of_one_part_in_a_hundred_thousand_anywhere_in_a_loss_is_seen(loss, expected):
    """So that no loss can be edited without its golden values: each number that it is made of shows in them."""
    changed = 0
    for field in fields(loss):
        number = getattr(loss, field.name)
        silent = field.name in SILENT or (field.name == "start" and loss.t is not None)
        if isinstance(number, float) and number and not silent:
            # Downwards: a share may not exceed 1. How much of the teacher counts as its head acts by whole classes.
            factor = 0.5 if field.name == "head" else 1 - 1e-5
            assert off(replace(loss, **{field.name: number * factor}), expected) > 1e-7, field.name
            changed += 1
    assert changed


def test_the_numbers_are_what_the_definitions_give():
    """So that nobody copies a loss's new values into the file without changing the definition too."""
    fresh = golden.golden()
    assert [entry["loss"] for entry in fresh["losses"]] == [entry["loss"] for entry in STORED["losses"]]
    assert fresh["inputs"] == STORED["inputs"]
    for entry, stored in zip(fresh["losses"], STORED["losses"], strict=True):
        for now, then in zip(entry["values"], stored["values"], strict=True):
            assert now == pytest.approx(then, rel=1e-10, abs=1e-14), entry["loss"]
