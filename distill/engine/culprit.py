"""Which tensor of a step was not finite, and of which example. Nothing here changes a weight."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from distill.engine.batches import MicroBatch
from distill.engine.work import Part, Work
from distill.errors import NumericsError

if TYPE_CHECKING:
    from distill.engine.engine import Beginning, Engine


def agreed_culprit(engine: Engine, work: Work, begun: Beginning) -> NumericsError:
    """What all devices say was not finite at this step: the first that names a tensor of its own."""
    wrapped = engine.student.model
    # Each looks by itself, and the first that finds something stops looking.
    engine.student.model = engine.accelerator.unwrap_model(wrapped)
    try:
        found = engine.processes.gather(_culprit(engine, work, begun))
    finally:
        engine.student.model = wrapped
    named = [(f" on device {rank}", *each) for rank, each in enumerate(found) if each[0]]
    device, _, problem = named[0] if named else ("", *found[0])
    where = f"step {engine.step_number + 1}{device if engine.plan.devices > 1 else ''}"
    return NumericsError(f"{where}: {problem}")


def _culprit(engine: Engine, work: Work, begun: Beginning) -> tuple[bool, str]:
    """Which tensor of this device was not finite at this step, and of which example; whether it began there.

    The weights have not been touched.
    """
    unharmed = "the weights are those of the step before"
    wrong = _gradients_not_finite(engine)
    engine._back_to(begun)  # the same dropout
    problems: list[str] = []
    # To the end: where the student is divided among devices, all must read as often.
    with torch.no_grad():
        for micro in engine.plan.split(work.micro_batches):
            for part in engine._parts(work, micro):
                try:
                    part.rows.check_finite()
                except NumericsError as error:
                    of = _example(engine, work, micro, part, error)
                    problems.append(f"{of}{error}; {unharmed}")
                    continue
                for name, (values_N, _) in part.terms.evaluate(part.rows, engine.projections).items():
                    wrong_N = ~values_N.isfinite() & (part.rows.weights > 0)
                    if bool(wrong_N.any()):
                        row = int(wrong_N.nonzero()[0])
                        of = _example(engine, work, micro, part, NumericsError("", row=row))
                        problems.append(
                            f"{of}loss term {name} is not finite, got {float(values_N[row])}; {unharmed}; lower its "
                            "temperature's extremes or its weight"
                        )
    if problems:
        return True, problems[0]
    cure = "lower learning_rate or use precision: fp32"
    if not wrong:
        return False, f"the gradient's norm is beyond float32; {unharmed}; {cure}"
    return False, (
        f"{_example_of_gradient(engine, work)}the gradient of {wrong[0]} is not finite ({len(wrong)} tensors in all); "
        f"{unharmed}; {cure}"
    )


def _gradients_not_finite(engine: Engine) -> list[str]:
    return [
        name
        for name, parameter in engine._trained()
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
    ]


def _example(engine: Engine, work: Work, micro: MicroBatch, part: Part, found: NumericsError) -> str:
    """Of which example a row or sequence of a forward pass is, as the beginning of an error; empty if unknown."""
    index, *_ = micro
    at = found.sequence
    if found.row is not None:
        if engine.comparison is not None and part.terms.needs_teacher:
            counts = [engine.comparison.rows_of([i], engine.epoch) for i in index]
        else:
            counts = [work.data.rows_of([i], engine.epoch) for i in index]
        known = sum(counts) == len(part.rows)
        at = bisect.bisect_right(list(itertools.accumulate(counts)), found.row) if known else None
    if at is None or at >= len(index):
        return ""
    return _named(engine, work, index[at])


def _named(engine: Engine, work: Work, index: int) -> str:
    if work.prompts is None:
        return f"{engine.example_name(index)}: "
    return f"the student's own text behind the prompt of {engine.example_name(work.prompts[index])}: "


def _example_of_gradient(engine: Engine, work: Work) -> str:
    """The first example whose gradient alone is not finite, as the beginning of an error; empty if there is none."""
    if engine.plan.devices > 1 or not engine.loss.additive:
        return ""
    for index, group, weight in work.micro_batches:
        for each in zip(index, group, strict=True):
            engine._add_up(replace(work, micro_batches=[([each[0]], [each[1]], weight)]))
            found = _gradients_not_finite(engine)
            engine.optimizer.zero_grad()
            if found:
                return _named(engine, work, each[0])
    return ""
