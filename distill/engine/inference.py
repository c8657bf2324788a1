"""What a model says on a whole data set."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from distill.models import Batch, DataSet, Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from distill.progress import Progress


def predict(
    model: Callable[[Batch], Prediction],
    features: DataSet,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Tensor:
    """Logits `[N, C]` in float32 on the CPU, in the order of the features.

    Examples of similar length share a batch, which changes a logit by rounding only. The caller puts the model
    into inference mode.
    """
    order = sorted(range(len(features)), key=lambda i: features.lengths[i])
    parts = []
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = features.batch(order[start : start + batch_size]).to(device)
            parts.append(model(batch).logits_NC.float().cpu())
            if progress is not None:
                progress.advance(min(start + batch_size, len(order)))
    logits_NC = torch.empty_like(torch.cat(parts))
    logits_NC[torch.tensor(order)] = torch.cat(parts)
    return logits_NC


def token_likelihoods(
    model: Callable[[Batch], Prediction],
    data: DataSet,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """Of every row of a language model's data the log-likelihood of its token, and the token found likeliest.

    `[R]` float32 in nats and `[R]` ids, on the CPU, in the order of the data: rows of the first text, of the second, ….
    The caller puts the model into inference mode.
    """
    ends = list(accumulate(data.rows_of([index]) for index in range(len(data))))
    likelihood_R, choice_R = torch.zeros(ends[-1]), torch.zeros(ends[-1], dtype=torch.long)
    order = sorted(range(len(data)), key=lambda i: data.lengths[i])
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            index = order[start : start + batch_size]
            batch = data.batch(index).to(device)
            if batch.label_N is None:
                raise ValueError("a language model's data must say which tokens are to be predicted")
            logits_NV = model(batch).logits_NC.float()
            # Not log_softmax: that would be a second matrix as wide as the vocabulary.
            chosen_N = logits_NV.gather(-1, batch.label_N[:, None])[:, 0] - logits_NV.logsumexp(-1)
            place = torch.cat([torch.arange(ends[i] - data.rows_of([i]), ends[i]) for i in index])
            likelihood_R[place] = chosen_N.cpu()
            choice_R[place] = logits_NV.argmax(-1).cpu()
            if progress is not None:
                progress.advance(min(start + batch_size, len(order)))
    return likelihood_R, choice_R
