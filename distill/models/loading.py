"""A transformers model with the head a task needs, from files or from a config."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from distill.errors import ModelError
from distill.models.adapter import carries_head, load_adapter
from distill.models.source import ModelSource

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
HeadKind = Literal["classification", "multiple_choice", "causal_lm", "masked_lm", "seq2seq_lm"]
AUTO_CLASSES = {
    "classification": "AutoModelForSequenceClassification",
    "multiple_choice": "AutoModelForMultipleChoice",
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
}


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model's weights."""
    from transformers import AutoTokenizer

    has_own = any((Path(source.location) / file).is_file() for file in TOKENIZER_FILES)
    location = source.location if source.base is None or has_own else source.base.location
    try:
        return AutoTokenizer.from_pretrained(location, trust_remote_code=source.trust_remote_code)
    except Exception as error:
        raise _refusal(source, "its tokenizer cannot be loaded", error) from error


def load_model(
    source: ModelSource,
    *,
    kind: HeadKind,
    labels: tuple[str, ...],
    seed: int,
    allow_new_head: bool = True,
    dtype: torch.dtype = torch.float32,
    quantization: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """A model with the head a task needs; a head that the files lack is drawn from `seed`.

    An adapter's files are loaded on their base and merged into it where that can be.

    Args:
        source: the files.
        kind: the head.
        labels: the task's labels.
        seed: of a new head.
        allow_new_head: False refuses files without a trained head.
        dtype: of the weights.
        quantization: what else `from_pretrained` is told to make int8 weights.

    Raises:
        ModelError: the files are missing, damaged or of a model that has no such class; or the head is missing
            and `allow_new_head` is False.
    """
    if source.base is not None:
        return _load_on_base(source, kind, labels, seed, allow_new_head, dtype, quantization)
    auto = _auto_class(kind)
    with quiet_transformers(), torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model, loading = auto.from_pretrained(
                source.location,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=source.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=allow_new_head,
                **_head(kind, labels, keep_names=not allow_new_head),
                **(quantization or {}),
            )
        except Exception as error:
            raise _refusal(source, "cannot be loaded", error) from error
    new = [
        key
        for key in [*loading["missing_keys"], *(k for k, *_ in loading["mismatched_keys"])]
        if "pooler" not in key
    ]
    if new and not allow_new_head:
        missing = f"not fine-tuned for {', '.join(labels)}" if labels else "no language model"
        raise ModelError(
            f"model {source.name}: is {missing} (no weights for {new[0]}); give teacher.train to train it here"
        )
    body = [key for key in new if key.startswith(model.base_model_prefix + ".")]
    if body:
        raise ModelError(
            f"model {source.name}: its files lack {len(body)} of the body's tensors, the first {body[0]}"
        )
    return model  # type: ignore[no-any-return]


def _load_on_base(
    source: ModelSource,
    kind: HeadKind,
    labels: tuple[str, ...],
    seed: int,
    allow_new_head: bool,
    dtype: torch.dtype,
    quantization: Mapping[str, Any] | None,
) -> PreTrainedModel:
    def base(new_head: bool) -> PreTrainedModel:
        assert source.base is not None  # noqa: S101  # the caller asked
        return load_model(
            source.base,
            kind=kind,
            labels=labels,
            seed=seed,
            allow_new_head=new_head,
            dtype=dtype,
            quantization=quantization,
        )

    try:  # a base with a trained head names its own classes
        model = base(False)
    except ModelError:
        if not (allow_new_head or carries_head(source.location)):
            raise
        model = base(True)
    return load_adapter(model, source.location, source.name, merge=quantization is None)


def whole_config(source: ModelSource) -> dict[str, Any]:
    """A model's configuration with what its class adds to the file."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source.location, trust_remote_code=source.trust_remote_code)
    except Exception as error:
        raise _refusal(source, "cannot be loaded", error) from error
    return config.to_dict()  # type: ignore[no-any-return]


def model_from_config(
    config: Mapping[str, Any],
    *,
    kind: HeadKind,
    labels: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
) -> PreTrainedModel:
    """A model with random weights from a transformers config (`model_type` and what differs from its defaults).

    The tokenizer says how many tokens there are, and which are special.
    """
    from transformers import AutoConfig

    settings = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if kind in ("causal_lm", "seq2seq_lm"):
        settings |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    settings |= config
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


def _auto_class(kind: HeadKind) -> Any:
    import transformers

    return getattr(transformers, AUTO_CLASSES[kind])


def _head(kind: HeadKind, labels: tuple[str, ...], *, keep_names: bool = False) -> dict[str, Any]:
    if kind != "classification":
        return {}
    if keep_names:  # a fine-tuned model's own label names decide the order of its classes
        return {}
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def _refusal(source: ModelSource, what: str, error: Exception) -> ModelError:
    """The one line of a model that transformers could not load."""
    if "trust_remote_code" in str(error) and not source.trust_remote_code:
        return ModelError(
            f"model {source.name}: needs Python code of its own, which is not run; read it, and then trust that one "
            "commit: --trust-remote-code OWNER/NAME@COMMIT, or trust_remote_code=True in Python"
        )
    return ModelError(f"model {source.name}: {what} ({_first_line(error)})")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
