"""A model's logits on a whole data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from distill.models import Batch, Features, Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from distill.progress import Progress


def predict(
    model: Callable[[Batch], Prediction],
    features: Features,
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
