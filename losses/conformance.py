"""The laws, run on somebody else's loss: a function of the student's and the teacher's logits.

Most published losses return one number for a batch and take no weights, so not every law of `laws.py` can be put to
them. A number is read as the mean of its rows' values: then every law about values or their mean can be stated, on
whole batches and on batches of one row. What cannot be stated is reported as such, with the reason.

    conformance("textbrewer.losses:kd_ce_loss").as_text()

N rows, V vocabulary or classes.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill.errors import LossError

from .laws import (
    LAWS,
    LawBroken,
    LossFunction,
    expect_close,
    expect_finite,
    extremes,
    in_double,
    laws_of,
    mean_and_gradient,
    with_class,
)
from .loss import Loss
from .rows import Rows

Verdict = Literal["obeyed", "broken", "not stated"]
_FLOAT32_ACCURACY = 2e-5
_PADDING = -100
_MASK_NAMES = ("mask", "labels")


@dataclass(frozen=True)
class Finding:
    """What became of one law: obeyed on every batch tried, broken (and how), or not stated (and why)."""

    law: str
    states: str
    verdict: Verdict
    found: str


@dataclass(frozen=True)
class Conformance:
    """What a loss obeys and what it breaks.

    Attributes:
        name: what was asked for.
        called: how the loss was called, as far as that was found out from its parameters.
        returns: "one number" or "one value a row".
        computes_in: "float64" where float64 logits keep their digits, else "float32".
        findings: one a law.
    """

    name: str
    called: str
    returns: str
    computes_in: str
    findings: tuple[Finding, ...]

    def count(self, verdict: Verdict) -> int:
        """How many laws have this verdict."""
        return sum(finding.verdict == verdict for finding in self.findings)

    @property
    def obeyed(self) -> bool:
        """Whether no law that can be stated is broken."""
        return self.count("broken") == 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "loss": self.name,
            "called": self.called,
            "returns": self.returns,
            "computes_in": self.computes_in,
            **{
                verdict.replace(" ", "_"): self.count(verdict)
                for verdict in ("obeyed", "broken", "not stated")
            },
            "laws": [vars(finding) for finding in self.findings],
        }

    def as_text(self) -> str:
        """Two lines about the loss and a line a law."""
        width = max(len(finding.law) for finding in self.findings)
        lines = [
            f"{self.name}: {self.count('obeyed')} laws obeyed, {self.count('broken')} broken, "
            f"{self.count('not stated')} not stated",
            f"  called {self.called}; returns {self.returns}, computed in {self.computes_in}",
            "",
        ]
        for finding in self.findings:
            about = finding.states if finding.verdict == "obeyed" else finding.found
            lines.append(f"  {finding.verdict:<10}  {finding.law:<{width}}  {about}")
        return "\n".join(lines)


def conformance(named: str | Callable[..., Any]) -> Conformance:
    """Run every law that can be stated on a loss.

    The loss is called with student and teacher logits, (N, V), and returns one number or one value a row. Where its
    parameters say so by their names it is called accordingly: `teacher…` before `student…`; `mask` (True counts) or
    `labels` (−100 does not count), (N,); `temperature`. A loss that takes no (N, V) gets (1, N, V). A class is called
    without arguments first. A `Loss` of this library is held to the laws it claims.

    Args:
        named: the loss, or where it is: "package.module:callable". Nothing but that module is imported.

    Raises:
        LossError: no such module or name, an import that fails, or something that cannot be called on logits.
    """
    name = named if isinstance(named, str) else getattr(named, "__qualname__", type(named).__name__)
    found = _find(named) if isinstance(named, str) else named
    if isinstance(found, type):
        try:
            found = found()
        except Exception as error:
            raise LossError(
                f"{name}: a class that cannot be made without arguments ({_line(error)}); name an instance"
            ) from error
    if not callable(found):
        raise LossError(f"{name}: a {type(found).__name__}, which cannot be called")
    if isinstance(found, Loss):
        if found.reads_activations:
            raise LossError(f"{name}: compares what models compute inside; these laws are about logits")
        claimed = laws_of(found)
        return Conformance(
            name,
            "on rows",
            "one value a row",
            "float64",
            tuple(
                _put(law, LAWS[law], found, _batches())
                if law in claimed
                else Finding(law, _states(LAWS[law]), "not stated", "this loss does not claim it")
                for law in LAWS
            ),
        )
    loss = ForeignLoss(name, found)
    return Conformance(name, loss.called, loss.returns, loss.computes_in, tuple(_findings(loss)))


class ForeignLoss:
    """A function of logits, as something that is called on rows: a number stands for each of its rows.

    Args:
        name: for messages.
        function: called with student and teacher logits, see `conformance`.

    Raises:
        LossError: it fails on ordinary logits, or returns neither one number nor one value a row.
    """

    accuracy: float
    per_row: bool

    def __init__(self, name: str, function: Callable[..., Any]):
        self.function = function
        parameters = _parameters(function)
        first_two = (*parameters[:2], "", "")
        self.teacher_first = "teacher" in first_two[0].lower() and "student" in first_two[1].lower()
        self.masked_by = next((each for each in _MASK_NAMES if each in parameters), None)
        self.has_temperature = "temperature" in parameters
        rows = _random_rows(3, 5, seed=7)
        returned, refusal = None, ""
        for self.flat in (True, False):
            try:
                returned = self._raw(rows)
                break
            except Exception as error:  # noqa: BLE001 - whatever it raises, it does not take these logits
                refusal = refusal or _line(error)
        else:
            raise LossError(f"{name}: cannot be called on (student, teacher) logits: {refusal}")
        if not isinstance(returned, Tensor):
            raise LossError(f"{name}: expected a tensor, got {type(returned).__name__}")
        self.per_row = returned.shape in ((3,), (1, 3))
        if not self.per_row and returned.numel() != 1:
            raise LossError(
                f"{name}: expected one number or one value a row, got shape {tuple(returned.shape)} for 3 rows"
            )
        self.accuracy = 0.0 if self._keeps_float64() else _FLOAT32_ACCURACY

    def __call__(self, rows: Rows) -> Tensor:
        """Return one value a row; of a loss that returns one number, that number for every row."""
        returned: Tensor = self._raw(rows)
        return returned.reshape(-1) if self.per_row else returned.reshape(()).expand(len(rows))

    def number(self, rows: Rows, shape: tuple[int, ...] | None = None, **more: float) -> Tensor:
        """Return one number, the mean of values if need be, for logits reshaped to (*shape, V)."""
        number: Tensor = self._raw(rows, shape, **more).mean()
        return number

    @property
    def called(self) -> str:
        """How the function is called."""
        order = "teacher, student" if self.teacher_first else "student, teacher"
        more = "" if self.masked_by is None else f", {self.masked_by}="
        return f"({order}{more}) on {'(N, V)' if self.flat else '(1, N, V)'} logits"

    @property
    def returns(self) -> str:
        """What a call returns."""
        return "one value a row" if self.per_row else "one number"

    @property
    def computes_in(self) -> str:
        """The precision of float64 logits after the function has used them."""
        return "float32" if self.accuracy else "float64"

    def _raw(self, rows: Rows, shape: tuple[int, ...] | None = None, **more: float) -> Any:
        if rows.teacher is None:
            raise LossError("a loss of two models was called on rows without a teacher")
        shape = shape or ((len(rows),) if self.flat else (1, len(rows)))
        student, teacher = (
            logits.reshape(*shape, logits.shape[-1]) for logits in (rows.student, rows.teacher)
        )
        named: dict[str, Any] = dict(more)
        if self.masked_by is not None:
            counts = (rows.weights > 0).reshape(shape)
            if self.masked_by == "labels":
                label_N = rows.student.new_zeros(len(rows)).long() if rows.label is None else rows.label
                named["labels"] = label_N.reshape(shape).masked_fill(~counts, _PADDING)
            else:
                named["mask"] = counts
        if self.teacher_first:
            return self.function(teacher, student, **named)
        return self.function(student, teacher, **named)

    def _keeps_float64(self) -> bool:
        """Whether a change that float32 cannot hold changes the value."""
        rows = in_double(_random_rows(3, 5, seed=7))
        moved = replace(rows, student=rows.student + 1e-9 * torch.arange(15).reshape(3, 5))
        return not torch.equal(self.number(rows), self.number(moved))


# Laws that only a function of plain logits can break.


def law_repeatable(loss: ForeignLoss, rows: Rows) -> None:
    """The same logits give the same value."""
    first, second = loss.number(rows), loss.number(rows)
    if not torch.equal(first, second):
        raise LawBroken(f"the same logits gave {float(first)} and then {float(second)}")


def law_leaves_its_inputs(loss: ForeignLoss, rows: Rows) -> None:
    """The logits it was given are the same afterwards."""
    student_NV, teacher_NV = rows.student.clone(), rows.teacher_logits().clone()
    loss(rows)
    if not torch.equal(student_NV, rows.student) or not torch.equal(teacher_NV, rows.teacher_logits()):
        raise LawBroken("the logits were overwritten")


def law_finite_at_6e4(loss: ForeignLoss, rows: Rows) -> None:
    """Mean and gradient stay finite for logits of ±6e4."""
    for case, extreme in extremes(rows).items():
        if "6e4" in case:
            expect_finite(loss, case, extreme)


def law_finite_at_minus_infinity(loss: ForeignLoss, rows: Rows) -> None:
    """Mean and gradient stay finite for classes of logit −inf, on one side or on both."""
    for case, extreme in extremes(rows).items():
        if "one-hot" in case:
            expect_finite(loss, case, extreme)


def law_one_class(loss: ForeignLoss, rows: Rows) -> None:
    """One class costs a finite amount, and has a finite gradient."""
    expect_finite(loss, "one class", extremes(rows)["one class"])


def law_no_rows(loss: ForeignLoss, rows: Rows) -> None:
    """No rows cost 0, not NaN."""
    value = loss._raw(rows.select(slice(0))).sum()
    if float(value) != 0:
        raise LawBroken(f"no rows: expected 0, got {float(value)}")


def law_all_masked(loss: ForeignLoss, rows: Rows) -> None:
    """A batch in which nothing counts costs 0, with a gradient of zeros."""
    expect_finite(loss, "every row masked", extremes(rows)["every row masked"])


def law_masked_rows(loss: ForeignLoss, rows: Rows) -> None:
    """Rows that do not count change neither the number nor the gradient, at finite logits."""
    padded = Rows(
        student=torch.cat([rows.student, 3 * rows.student.flip(0)]).double(),
        teacher=torch.cat([rows.teacher_logits(), -rows.teacher_logits()]).double(),
        weight=torch.cat([rows.weights, torch.zeros_like(rows.weights)]),
    )
    _same_mean(loss, "rows that do not count", padded, rows)


def law_sequences_are_rows(loss: ForeignLoss, rows: Rows) -> None:
    """(B, T, V) logits cost what their B·T rows cost: the mean is over positions, however they are laid out."""
    rows = in_double(rows)
    count = len(rows)
    expected = loss.number(rows)
    for shape in ((1, count), (count, 1)):
        expect_close(loss, f"value of {(*shape, 'V')} logits", loss.number(rows, shape), expected, 1e-7)


def law_padded_vocabulary(loss: ForeignLoss, rows: Rows) -> None:
    """A teacher with two more columns that nothing uses (logits −1e4) changes nothing."""
    rows = in_double(rows)
    wider = _Wider(rows)
    expect_close(loss, "value beside unused columns", loss.number(wider), loss.number(rows), 1e-7)


def law_unused_class(loss: ForeignLoss, rows: Rows) -> None:
    """A class that neither side uses (logit −1e4, probability 0) changes nothing: no division by their number."""
    rows = in_double(rows)
    wider = replace(
        rows, student=with_class(rows.student, -1e4), teacher=with_class(rows.teacher_logits(), -1e4)
    )
    expect_close(loss, "value with a class nobody uses", loss.number(wider), loss.number(rows), 1e-7)


def law_temperature(loss: ForeignLoss, rows: Rows) -> None:
    """A temperature divides both sides' logits; the value may be multiplied by T² besides."""
    rows = in_double(rows)
    divided = replace(rows, student=rows.student / 3, teacher=rows.teacher_logits() / 3)
    plain = loss.number(divided, temperature=1.0)
    hot = loss.number(rows, temperature=3.0)
    if not any(torch.allclose(hot, factor * plain, rtol=1e-4, atol=1e-6) for factor in (1.0, 9.0)):
        raise LawBroken(
            f"temperature 3 gave {float(hot)}; the logits divided by 3 give {float(plain)}, times 9 {9 * float(plain)}"
        )


def law_large_vocabulary(loss: ForeignLoss, rows: Rows) -> None:
    """At V = 152,064 the float32 value is that of float64 arithmetic to 1e-4."""
    large = _random_rows(2, 152_064, seed=3)
    precise = in_double(large)
    expect_close(
        loss, "value at V = 152064", loss.number(large).double(), loss.number(precise).double(), 1e-4, 1e-6
    )


class _Wider(Rows):
    """Rows whose teacher has more columns than the student, which `Rows` itself refuses."""

    def __init__(self, rows: Rows):
        super().__init__(student=rows.student, teacher=rows.teacher, weight=rows.weight)
        object.__setattr__(self, "teacher", with_class(with_class(rows.teacher_logits(), -1e4), -1e4))


_OWN = {
    "repeatable": law_repeatable,
    "leaves_its_inputs": law_leaves_its_inputs,
    "finite_at_6e4": law_finite_at_6e4,
    "finite_at_minus_infinity": law_finite_at_minus_infinity,
    "one_class": law_one_class,
    "no_rows": law_no_rows,
    "all_masked": law_all_masked,
    "masked_rows": law_masked_rows,
    "nan_in_masked_rows": LAWS["masked_rows"],
    "unused_class": law_unused_class,
    "sequences_are_rows": law_sequences_are_rows,
    "padded_vocabulary": law_padded_vocabulary,
    "temperature": law_temperature,
    "large_vocabulary": law_large_vocabulary,
}
_REPLACED = {"finite_at_extremes", "masked_rows"}
_NEED_A_MASK = {"all_masked", "masked_rows", "nan_in_masked_rows"}
_MAY_REFUSE = {"sequences_are_rows", "padded_vocabulary"}


def _findings(loss: ForeignLoss) -> list[Finding]:
    stated: dict[str, Any] = {name: law for name, law in LAWS.items() if name not in _REPLACED} | _OWN
    without: dict[str, str] = {
        "bounded": "no bound is known of it",
        "weight_counts_rows": "it takes no weights",
    }
    if not loss.per_row:
        without["one_value_a_row"] = "it returns one number"
    if loss.masked_by is None:
        without |= dict.fromkeys(_NEED_A_MASK, "it has no parameter mask or labels")
    if not loss.has_temperature:
        without["temperature"] = "it has no parameter temperature"
    return [
        Finding(name, _states(law), "not stated", without[name])
        if name in without
        else _put(name, law, loss, _batches(labels=False))
        for name, law in stated.items()
    ]


def _put(name: str, law: Callable[..., None], loss: LossFunction, batches: dict[str, Rows]) -> Finding:
    """Try one law on every batch, up to the first that breaks it."""
    for batch, rows in batches.items():
        try:
            law(loss, rows)
        except LawBroken as broken:
            return Finding(name, _states(law), "broken", f"{_short(str(broken))} ({batch})")
        except Exception as error:  # noqa: BLE001 - whatever a foreign loss raises is a finding
            if name in _MAY_REFUSE:
                return Finding(name, _states(law), "not stated", f"it refuses: {_line(error)}")
            return Finding(name, _states(law), "broken", f"raised {_line(error)} ({batch})")
    return Finding(name, _states(law), "obeyed", f"on {len(batches)} batches")


def _batches(*, labels: bool = True) -> dict[str, Rows]:
    """Batches that between them show every mistake the laws are about."""
    near_NV = _random_rows(50, 20, seed=1).teacher_logits()
    noise_NV = _random_rows(50, 20, seed=2).student
    batches = {
        "ordinary rows": _random_rows(5, 7, seed=0),
        "nearly equal rows": Rows(student=near_NV + 1e-5 * noise_NV, teacher=near_NV),
        "confident rows": _random_rows(4, 6, seed=4, spread=10.0),
        "two classes": _random_rows(6, 2, seed=5),
        "one row": _random_rows(1, 5, seed=6),
    }
    if not labels:
        return batches
    return {
        name: replace(rows, label=torch.arange(len(rows)) % rows.student.shape[1])
        for name, rows in batches.items()
    }


def _random_rows(count: int, classes: int, *, seed: int, spread: float = 2.0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    student_NV, teacher_NV = spread * torch.randn(2, count, classes, generator=generator)
    return Rows(student=student_NV, teacher=teacher_NV)


def _same_mean(loss: ForeignLoss, what: str, changed: Rows, rows: Rows) -> None:
    """Compare number and gradient of `rows` with those of the same rows at the head of `changed`."""
    changed_mean, changed_NV = mean_and_gradient(loss, changed)
    mean, gradient_NV = mean_and_gradient(loss, in_double(rows))
    expect_close(loss, f"number beside {what}", changed_mean, mean, 1e-9)
    expect_close(loss, f"gradient beside {what}", changed_NV[: len(rows)], gradient_NV, 1e-9)
    if bool((changed_NV[len(rows) :] != 0).any()):
        raise LawBroken(f"{what} get a gradient, up to {float(changed_NV[len(rows) :].abs().amax())}")


def _find(named: str) -> Any:
    module_name, _, attribute = named.partition(":")
    if not module_name or not attribute:
        raise LossError(f"{named}: expected package.module:callable")
    # A module beside the caller's script is found as `python -m` finds it, but never instead of an installed one.
    here = os.getcwd()
    sys.path.append(here)
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise LossError(f"{named}: {module_name} cannot be imported ({_line(error)})") from error
    finally:
        sys.path.remove(here)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise LossError(f"{named}: {module_name} has no {attribute}")
        found = getattr(found, part)
    return found


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):  # a builtin without a signature
        return ()
    return tuple(signature.parameters)


def _states(law: Callable[..., None]) -> str:
    return (law.__doc__ or "").strip().splitlines()[0]


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return _short(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)


def _short(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
