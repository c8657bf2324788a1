"""A weighted sum of losses.

N rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from .features.activations import ModelPair, Wanted
from .features.feature_loss import ActivationLoss
from .loss import Loss

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .rows import Rows

Evaluation = dict[str, tuple["Tensor", dict[str, "Tensor"]]]
"""Of each term by name: its unweighted values, (N,), and its diagnostics."""


class Total:
    """A flat, immutable sum of losses, called like one loss.

    Shapes: rows -> (N,), the weighted sum of the terms' values.
    Units: nats.

    Raises:
        ValueError: no terms, or batch-wise terms that disagree about the size of a group.
        TypeError: a term that is not a loss.

    Example:
        >>> from distill.losses import ForwardKL, Labels
        >>> total = 0.9 * ForwardKL(temperature=2.0) + 0.1 * Labels()
        >>> [(term.kind, term.weight) for term in total]
        [('forward_kl', 0.9), ('labels', 0.1)]
    """

    terms: tuple[Loss, ...]

    def __init__(self, terms: Iterable[Loss | Total]):
        flat: list[Loss] = []
        for term in terms:
            if isinstance(term, Total):
                flat.extend(term.terms)
            elif isinstance(term, Loss):
                flat.append(term)
            else:
                raise TypeError(f"a term must be a loss, got {type(term).__name__}")
        if not flat:
            raise ValueError("a total needs at least one loss")
        object.__setattr__(self, "terms", tuple(flat))
        sizes = self._group_sizes()
        if len(sizes) > 1:
            raise ValueError(
                "batch-wise losses of one total must share one group_size, got "
                + " and ".join(sorted(map(str, sizes)))
            )

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Total cannot be changed (tried to set {name}); build another")

    def _group_sizes(self) -> set[int | None]:
        return {getattr(term, "group_size", None) for term in self.terms if not term.additive}

    @property
    def additive(self) -> bool:
        """Whether every term is: then a batch may be split anywhere."""
        return all(term.additive for term in self.terms)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term reads rows.teacher."""
        return any(term.needs_teacher for term in self.terms)

    @property
    def against_teacher(self) -> Total:
        """The terms that compare with a teacher: what is left of the total on rows without labels.

        Raises:
            ValueError: there are none.
        """
        return Total(term for term in self.terms if term.needs_teacher)

    @property
    def reads_activations(self) -> bool:
        """Whether any term reads rows.activations."""
        return any(term.reads_activations for term in self.terms)

    def wanted(self, models: ModelPair) -> tuple[Wanted, Wanted]:
        """Return what the terms read of the insides of the student and of the teacher.

        Raises:
            ValueError: a term that cannot compare these two models.
        """
        student, teacher = Wanted(), Wanted()
        for term in self.terms:
            if isinstance(term, ActivationLoss):
                more = term.wanted(models)
                student, teacher = student | more[0], teacher | more[1]
        return student, teacher

    def build(self, models: ModelPair) -> nn.ModuleDict:
        """Return the modules of the terms that have weights to train, by name; `evaluate` and calls take them.

        Raises:
            ValueError: a term that cannot compare these two models.
        """
        from torch import nn

        built = {
            name: term.build(models)
            for name, term in zip(self.names, self.terms, strict=True)
            if isinstance(term, ActivationLoss)
        }
        return nn.ModuleDict({name: module for name, module in built.items() if module is not None})

    @property
    def group_size(self) -> int | None:
        """Rows a batch-wise term sees together; None is the whole batch (or nothing to group: `additive`)."""
        return next(iter(self._group_sizes()), None)

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each term: its kind, with _2, _3, … from the second of the same kind on."""
        kinds = [term.kind for term in self.terms]
        return tuple(
            kind if (seen := kinds[:place].count(kind)) == 0 else f"{kind}_{seen + 1}"
            for place, kind in enumerate(kinds)
        )

    def evaluate(self, rows: Rows, modules: nn.ModuleDict | None = None) -> Evaluation:
        """Return each term's unweighted values and diagnostics under its name in `names`.

        Args:
            rows: what to compare.
            modules: as `build` returned them, for terms with weights.
        """
        built = {} if modules is None else dict(modules.items())
        return {
            name: (built.get(name) or term).evaluate(rows)  # type: ignore[operator]
            for name, term in zip(self.names, self.terms, strict=True)
        }

    def combine(self, evaluation: Evaluation) -> Tensor:
        """Return the weighted sum, (N,), of what `evaluate` returned, without computing a term twice."""
        weighted = (
            term.weight * evaluation[name][0] for name, term in zip(self.names, self.terms, strict=True)
        )
        combined = next(weighted)
        for values_N in weighted:
            combined = combined + values_N
        return combined

    def differentiate(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the terms' values, (N,), and its derivative for the student's logits, (N, V).

        Raises:
            TypeError: a term is not row-wise, so that its rows cannot be looked at a few at a time.
        """
        from .row_wise import RowWise

        values_N: Tensor | None = None
        gradient_NV: Tensor | None = None
        for term in self.terms:
            if not isinstance(term, RowWise):
                raise TypeError(f"{type(term).__name__} is not row-wise: it needs whole batches of logits")
            term_N, term_NV = term.differentiate(rows)
            if term.weight != 1:
                term_N, term_NV = term.weight * term_N, term.weight * term_NV
            values_N = term_N if values_N is None else values_N + term_N
            gradient_NV = term_NV if gradient_NV is None else gradient_NV + term_NV
        assert values_N is not None and gradient_NV is not None  # noqa: S101, PT018 (there is a term)
        return values_N, gradient_NV

    @property
    def scheduled(self) -> bool:
        """Whether any term changes from step to step."""
        return any(term.scheduled for term in self.terms)

    def advance(self, values: Mapping[str, float], *, progress: float) -> Total:
        """Return the total to use at the next step, see `Loss.advance`; values are the terms' means by name.

        A term without one has not been looked at in this step, and stays as it is.
        """
        return Total(
            term.advance(values[name], progress=progress) if name in values else term
            for name, term in zip(self.names, self.terms, strict=True)
        )

    def __call__(self, rows: Rows, modules: nn.ModuleDict | None = None) -> Tensor:
        """Return the weighted sum of the terms' values, (N,)."""
        return self.combine(self.evaluate(rows, modules))

    def __mul__(self, factor: float) -> Total:
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            return NotImplemented
        return Total(term * factor for term in self.terms)

    __rmul__ = __mul__

    def __add__(self, other: Loss | Total) -> Total:
        if not isinstance(other, Loss | Total):
            return NotImplemented
        return Total((self, other))

    def __iter__(self) -> Iterator[Loss]:
        return iter(self.terms)

    def __len__(self) -> int:
        return len(self.terms)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Total) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(self.terms)

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.terms))
