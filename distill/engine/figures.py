"""The figures of training between two lines of its log."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from distill.engine.work import Part
from distill.losses import Rows, Total

if TYPE_CHECKING:
    from torch import Tensor

    from distill.losses import Evaluation

# Diagnostics of which the log keeps the least; of all others the largest.
WORST_IS_LEAST = ("converged", "kept_mass")


@dataclass
class Figures:
    """What has been added up since the last line.

    Attributes:
        sums: by name: of the terms' weighted values, and of diagnostics the worst.
        weights: of the rows where a term counted; a figure without one is not a mean.
        pulled: by term, of one step: the squared norm of its gradient for the student's logits.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    pulled: dict[str, float] = field(default_factory=dict)

    def add(self, rows: Rows, terms: Evaluation) -> dict[str, Tensor]:
        """Count what the terms found; return the sum of each term's weighted values."""
        totals = {
            name: rows.mean(values_N.detach(), total_weight=1.0) for name, (values_N, _) in terms.items()
        }
        weight = rows.weights.sum()
        for name, total in totals.items():
            key = f"loss/{name}"
            self.weights[key] = self.weights.get(key, torch.zeros_like(weight)) + weight
            self.sums[key] = self.sums.get(key, torch.zeros_like(total)) + total
            for what, figure in terms[name][1].items():
                worst = torch.minimum if what in WORST_IS_LEAST else torch.maximum
                key = f"{name}/{what}"
                self.sums[key] = worst(figure.detach(), self.sums.get(key, figure.detach()))
        return totals

    def copied(self) -> Figures:
        """The same, not changed by what is added here."""
        return Figures({**self.sums}, {**self.weights}, {**self.pulled})

    def taken(self, gather: Callable[[Any], list[Any]], loss: Total) -> dict[str, float]:
        """Means since the last call: each term unweighted over the rows where it counted, their weighted sum as `loss`.

        Over the rows of all devices, which must all call this.

        Args:
            gather: brings a plain value of every device together.
            loss: whose terms they are.
        """
        mine = ({name: float(t) for name, t in each.items()} for each in (self.sums, self.weights))
        figures: dict[str, float] = {}
        weights: dict[str, float] = {}
        squares: dict[str, float] = {}
        for sums, counted, pulled in gather((*mine, self.pulled)):
            for name, square in pulled.items():
                squares[name] = squares.get(name, 0.0) + square
            for name, figure in sums.items():
                if name in counted:
                    figures[name] = figures.get(name, 0.0) + figure
                    weights[name] = weights.get(name, 0.0) + counted[name]
                else:
                    worst = min if name.rpartition("/")[2] in WORST_IS_LEAST else max
                    figures[name] = worst(figure, figures.get(name, figure))
        self.sums, self.weights, self.pulled = {}, {}, {}
        for name, weight in weights.items():
            # A term may have met no row in all these steps.
            figures[name] /= max(weight, 1e-38)
        weighted = sum(
            term.weight * figures.get(f"loss/{name}", 0.0)
            for name, term in zip(loss.names, loss, strict=True)
        )
        norms = {name: math.sqrt(square) for name, square in squares.items()}
        whole = sum(norms.values())
        shares = {f"gradient_share/{name}": norm / whole for name, norm in norms.items() if whole}
        return {"loss": float(weighted), **figures, **shares}

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of them."""
        return {
            **{f"sum:{name}": total for name, total in self.sums.items()},
            **{f"weight:{name}": weight for name, weight in self.weights.items()},
        }

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from what `tensors` said."""
        for name, tensor in tensors.items():
            kind, _, figure = name.partition(":")
            (self.sums if kind == "sum" else self.weights)[figure] = tensor.to(device)


def pulls(part: Part) -> dict[str, Tensor]:
    """Of each term's weighted mean the squared norm of its gradient for the logits that the student gave here.

    On a copy that stands outside the training's graph, so that nothing of this reaches the weights.
    """
    logits_NC = part.rows.student.detach().requires_grad_()
    rows = replace(part.rows, student=logits_NC)
    squares = {}
    for name, term in zip(part.terms.names, part.terms, strict=True):
        mean = rows.mean(term(rows), total_weight=part.total)
        if mean.requires_grad:
            (gradient_NC,) = torch.autograd.grad(mean, logits_NC)
            square_N = gradient_NC.float().square().sum(1)
            squares[name] = (square_N if part.own is None else square_N * part.own).sum()
        else:  # it has met no row
            squares[name] = mean.new_zeros(())
    return squares
