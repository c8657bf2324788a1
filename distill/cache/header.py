"""Whose predictions a cache holds, and of what: every value must be the same where they are used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Header:
    """What a prediction depends on besides the example.

    Attributes:
        weights: sha256 of each tensor of the teacher, by name.
        config: sha256 of the settings that its forward pass depends on.
        vocabulary: sha256 of the tokenizer's tokens and their ids.
        special_tokens: sha256 of its special tokens.
        tokenizer_rules: sha256 of what else is in its `tokenizer.json` (normaliser, merges, …).
        template: how text is put before the teacher: a format's name or digest.
        token_map: sha256 of the teacher's token for each token of the batches, where these are the student's; "" if
            they are its own.
        dtype: of the teacher's weights.
        architecture: the class of its model.
        labels: the classes, in the order of the columns.
        max_length: the most tokens of an example.
        versions: of the libraries that compute it.
    """

    weights: dict[str, str]
    config: str
    vocabulary: str
    special_tokens: str
    tokenizer_rules: str
    template: str
    token_map: str
    dtype: str
    architecture: str
    labels: tuple[str, ...]
    max_length: int
    versions: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """The header as JSON gives it back."""
        value: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return value

    def differences(self, stored: Mapping[str, Any]) -> list[str]:
        """What a stored header says otherwise, in words."""
        found = []
        mine = self.as_json()
        for field in fields(self):
            here, there = mine[field.name], stored.get(field.name)
            if here == there:
                continue
            name = field.name.replace("_", " ")
            if isinstance(here, dict) and isinstance(there, dict):
                parts = [key for key in sorted({*here, *there}) if here.get(key) != there.get(key)]
                more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
                name = f"{name} of {parts[0]}{more}"
                here, there = here.get(parts[0]), there.get(parts[0])
            found.append(f"{name} ({_short(there)} in the cache, {_short(here)} here)")
        return found


def header_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    labels: Sequence[str],
    max_length: int,
    template: str = "",
    token_map: Sequence[int] | None = None,
) -> Header:
    """The header of what a model says."""
    import safetensors
    import tokenizers
    import transformers

    config = {
        name: value
        for name, value in model.config.to_dict().items()
        if name not in ("_name_or_path", "transformers_version")
    }
    rules: Any = {}
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        rules.get("model", {}).pop("vocab", None)
        for volatile in (
            "padding",
            "truncation",
            "added_tokens",
        ):  # set by every call, or digested by themselves
            rules.pop(volatile, None)
    return Header(
        weights={name: _tensor_digest(tensor) for name, tensor in sorted(model.state_dict().items())},
        config=_digest(config),
        vocabulary=_digest(sorted(tokenizer.get_vocab().items())),
        special_tokens=_digest({name: str(token) for name, token in tokenizer.special_tokens_map.items()}),
        tokenizer_rules=_digest(rules),
        template=template,
        token_map="" if token_map is None else _digest(list(token_map)),
        dtype=str(model.dtype).removeprefix("torch."),
        architecture=type(model).__name__,
        labels=tuple(labels),
        max_length=max_length,
        versions={
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "safetensors": safetensors.__version__,
        },
    )


def _tensor_digest(tensor: torch.Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().flatten()
    hashed = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    hashed.update(flat.view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
