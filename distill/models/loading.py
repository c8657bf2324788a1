"""A transformers model with the head a task needs, from files or from a config."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch

from distill.errors import ModelError
from distill.models.source import ModelSource

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TaskKind = Literal["classification", "multiple_choice"]


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model's weights."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.location, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model {source.name}: its tokenizer cannot be loaded ({_first_line(error)})"
        ) from error


def load_model(
    source: ModelSource, *, kind: TaskKind, labels: tuple[str, ...], seed: int, allow_new_head: bool = True
) -> PreTrainedModel:
    """A sequence-classification or multiple-choice model in float32; a head that the files lack is drawn from `seed`.

    Raises:
        ModelError: the files are missing, damaged or of a model that has no such class; or the head is missing
            and `allow_new_head` is False.
    """
    auto = _auto_class(kind)
    with quiet_transformers(), torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model, loading = auto.from_pretrained(
                source.location,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=allow_new_head,
                **_head(kind, labels, keep_names=not allow_new_head),
            )
        except Exception as error:
            raise ModelError(f"model {source.name}: cannot be loaded ({_first_line(error)})") from error
    new = [
        key
        for key in [*loading["missing_keys"], *(k for k, *_ in loading["mismatched_keys"])]
        if "pooler" not in key
    ]
    if new and not allow_new_head:
        raise ModelError(
            f"model {source.name}: is not fine-tuned for {', '.join(labels)} (no weights for {new[0]}); "
            "give teacher.train to fine-tune it here"
        )
    body = [key for key in new if key.startswith(model.base_model_prefix + ".")]
    if body:
        raise ModelError(
            f"model {source.name}: its files lack {len(body)} of the body's tensors, the first {body[0]}"
        )
    return model  # type: ignore[no-any-return]


def whole_config(source: ModelSource) -> dict[str, Any]:
    """A model's configuration with what its class adds to the file."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source.location, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {source.name}: cannot be loaded ({_first_line(error)})") from error
    return config.to_dict()  # type: ignore[no-any-return]


def model_from_config(
    config: Mapping[str, Any],
    *,
    kind: TaskKind,
    labels: tuple[str, ...],
    vocabulary: int,
    pad_token_id: int | None,
    seed: int,
) -> PreTrainedModel:
    """A model with random weights from a transformers config (`model_type` and what differs from its defaults)."""
    from transformers import AutoConfig

    settings = {"vocab_size": vocabulary, "pad_token_id": pad_token_id, **dict(config)}
    model_type = settings.pop("model_type", None)
    with quiet_transformers(), torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            full = AutoConfig.for_model(model_type, **settings, **_head(kind, labels))
            return _auto_class(kind).from_config(full, trust_remote_code=False)  # type: ignore[no-any-return]
        except Exception as error:
            raise ModelError(
                f"student.config: no model can be built from it ({_first_line(error)})"
            ) from error


def rebuilt(model: PreTrainedModel, config: PreTrainedConfig, state: Mapping[str, Tensor]) -> PreTrainedModel:
    """A model of the same class with another config and these weights, all of them, in evaluation mode."""
    # Random weights are drawn and thrown away: nobody else's draws may depend on that.
    with quiet_transformers(), torch.random.fork_rng():
        made: PreTrainedModel = type(model)(config)
    made.load_state_dict(state)
    made.train(mode=False)
    return made


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No loading bars and no report of fresh heads: what is missing is checked here, and said in one line."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _auto_class(kind: TaskKind) -> Any:
    from transformers import AutoModelForMultipleChoice, AutoModelForSequenceClassification

    return AutoModelForMultipleChoice if kind == "multiple_choice" else AutoModelForSequenceClassification


def _head(kind: TaskKind, labels: tuple[str, ...], *, keep_names: bool = False) -> dict[str, Any]:
    if kind == "multiple_choice":
        return {}
    if keep_names:  # a fine-tuned model's own label names decide the order of its classes
        return {}
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
