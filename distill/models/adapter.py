"""Adapters of peft: a student that trains little beside a frozen model, and a model that comes with one.

peft's own words are kept: a recipe's `student.adapter` holds the fields of peft's configuration class for its
`peft_type`. Only what distill itself knows is chosen here: the task type, and that a new head is trained too.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.errors import ModelError
from distill.recipe.patterns import REVISION

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import nn
    from transformers import PreTrainedModel

    from distill.models.loading import HeadKind

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE_FOLDER = "base"
INSTALL = 'peft is not installed; type: pip install "distill[peft]"'
TASK_TYPES = {"classification": "SEQ_CLS", "causal_lm": "CAUSAL_LM", "seq2seq_lm": "SEQ_2_SEQ_LM"}
# These make peft import a module, unpickle a file or read other adapters that a file names.
REFUSED_KEYS = ("megatron_config", "arrow_config", "prompt_tuning_init_state_dict_path", "tokenizer_kwargs")
REFUSED_TYPES = ("XLORA", "MULTITASK_PROMPT_TUNING")
# What is distill's to say.
OWN_KEYS = (
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
)


def adapter_config(settings: Mapping[str, Any], kind: HeadKind) -> PeftConfig:
    """The configuration of peft that a recipe's `student.adapter` means, for a student with a head of this kind.

    Raises:
        ModelError: peft is missing, has no such type or key, cannot read a value, or the type cannot adapt this
            kind of head.
    """
    try:
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PromptLearningConfig
    except ImportError:
        raise ModelError(f"student.adapter: {INSTALL}") from None
    types = {str(name.value): made for name, made in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    values = dict(settings)
    name = str(values.pop("peft_type", None))
    if name not in types or name in REFUSED_TYPES:
        known = ", ".join(sorted(types.keys() - set(REFUSED_TYPES)))
        raise ModelError(f"student.adapter.peft_type: must be one of {known}, found {name}")
    owner = types[name]
    keys = {field.name for field in dataclasses.fields(owner) if field.init} - {*OWN_KEYS, *REFUSED_KEYS}
    for key in values:
        if key not in keys - {"peft_type"}:
            near = difflib.get_close_matches(key, keys, 1)
            hint = f"; did you mean {near[0]}?" if near else "; see its class in peft's documentation"
            raise ModelError(f"student.adapter.{key}: is no key of {owner.__name__} to set here{hint}")
    if issubclass(owner, PromptLearningConfig) and kind not in ("classification", "causal_lm"):
        raise ModelError(
            f"student.adapter.peft_type: {name} adds virtual tokens, which a {kind} model does not take here; "
            "use one that does not, such as LORA"
        )
    try:
        return owner(task_type=TASK_TYPES.get(kind), **values)
    except (TypeError, ValueError) as error:
        raise ModelError(f"student.adapter: {owner.__name__} takes no such value ({_line(error)})") from error


def adapt(model: PreTrainedModel, settings: Mapping[str, Any], kind: HeadKind, seed: int) -> PeftModel:
    """A model with a new adapter, drawn from `seed`: the adapter and a task's head are trained, the rest is frozen.

    The model's modules become the adapter's.

    Raises:
        ModelError: `adapter_config`'s, or peft cannot put such an adapter into this model.
    """
    config = adapter_config(settings, kind)
    from peft import get_peft_model

    heads = [name for name, _ in model.named_children() if name in ("classifier", "score")]
    if kind in ("classification", "multiple_choice") and heads:
        theirs = getattr(config, "modules_to_save", None) or ()
        config.modules_to_save = sorted({*theirs, *heads})  # type: ignore[attr-defined]
    with torch.random.fork_rng(), _quiet_peft():
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config)
        except Exception as error:
            raise ModelError(
                f"student.adapter: {settings['peft_type']} does not fit a {type(model).__name__} ({_line(error)})"
            ) from error
    if not _can_pass_prefix(adapted):
        raise ModelError(f"student.adapter: {_no_prefix(model)}")
    return adapted


def is_adapted(model: nn.Module) -> bool:
    """Whether peft wrapped a model."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def unwrapped_adapter(model: nn.Module) -> PreTrainedModel:
    """The transformers model that peft wrapped."""
    base: Callable[[], PreTrainedModel] = model.get_base_model  # type: ignore[assignment]
    return base()


def adds_tokens(model: nn.Module) -> bool:
    """Whether an adapter puts virtual tokens before the sequence, in the input or in every layer's keys and values."""
    return is_adapted(model) and bool(model.active_peft_config.is_prompt_learning)  # type: ignore[union-attr]


def is_mergeable(model: nn.Module) -> bool:
    """Whether the adapter can be computed into the model's own weights."""
    return is_adapted(model) and not adds_tokens(model) and hasattr(model.base_model, "merge_and_unload")


def merged(model: PeftModel, *, in_place: bool = False) -> PreTrainedModel:
    """The plain model that says the same, to rounding (1e-5 of a logit), without peft.

    Raises:
        ModelError: an adapter of this type cannot be merged.
    """
    copied = model if in_place else copy.deepcopy(model)
    with _quiet_peft():
        try:
            plain: PreTrainedModel = copied.merge_and_unload(safe_merge=True)
        except Exception as error:
            raise ModelError(
                f"adapter {model.active_peft_config.peft_type.value}: cannot be merged into the model "
                f"({_line(error)})"
            ) from error
    plain.requires_grad_(True)
    return plain


def save_adapter(model: PeftModel, folder: Path, base: str | None, home: Path) -> None:
    """Write an adapter that cannot be merged, in peft's own format.

    Args:
        model: what was trained.
        folder: where to.
        base: the folder or hub id of the model under it; None writes that model too, into `base/`.
        home: where the folder will stand.
    """
    if base is None:
        plain = copy.deepcopy(unwrapped_adapter(model))
        _without_wrappers(plain)
        plain.save_pretrained(folder / BASE_FOLDER)
        base = str((home / BASE_FOLDER).resolve())
    config = model.active_peft_config
    config.base_model_name_or_path = base
    with _quiet_peft():
        # "auto" would ask the hub whether the base's vocabulary grew.
        model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty form of a model card


def load_adapter(base: PreTrainedModel, folder: str, name: str, *, merge: bool = True) -> PreTrainedModel:
    """A base model with the adapter of a folder, merged where it can be unless `merge` is False, for inference.

    Raises:
        ModelError: peft is missing, the adapter does not belong to this base, or peft cannot run it there.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise ModelError(f"model {name}: is an adapter, and {INSTALL}") from None
    with _quiet_peft():
        try:
            model = PeftModel.from_pretrained(base, folder, is_trainable=False, torch_device="cpu")
        except Exception as error:
            raise ModelError(f"model {name}: its adapter cannot be loaded ({_line(error)})") from error
    if not _can_pass_prefix(model):
        raise ModelError(f"model {name}: {_no_prefix(base)}")
    return merged(model, in_place=True) if merge and is_mergeable(model) else model  # type: ignore[return-value]


def carries_head(folder: str | Path) -> bool:
    """Whether an adapter's weights hold a task's head, as those of peft's classifiers do."""
    from safetensors import safe_open

    with safe_open(Path(folder) / ADAPTER_WEIGHTS, "pt") as file:
        return any({"classifier", "score"} & set(key.split(".")) for key in file.keys())  # noqa: SIM118


def weights_file(folder: Path) -> Path:
    """The one file of weights in the folder of an exported student, an adapter or a whole model."""
    adapter = folder / ADAPTER_WEIGHTS
    return adapter if adapter.is_file() else folder / "model.safetensors"


def check_adapter_file(name: str, said: Mapping[str, Any]) -> tuple[str, str | None]:
    """The base model that an adapter_config.json names, and its revision.

    Raises:
        ModelError: it names none, or asks for what is not done for a file: importing modules, unpickling.
    """
    if str(said.get("peft_type")).upper() in REFUSED_TYPES:
        raise ModelError(f"model {name}: adapters of type {said['peft_type']} are not read")
    for key in REFUSED_KEYS:
        if said.get(key):
            raise ModelError(
                f"model {name}: its {ADAPTER_CONFIG} sets {key}, which is not followed; remove it"
            )
    base = said.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"model {name}: its {ADAPTER_CONFIG} names no base_model_name_or_path")
    revision = said.get("revision")
    if revision is not None and not (isinstance(revision, str) and re.fullmatch(REVISION, revision)):
        raise ModelError(f"model {name}: its {ADAPTER_CONFIG} sets revision to no git revision")
    return base, revision


def _can_pass_prefix(model: PeftModel) -> bool:
    """Whether peft can hand a prefix, if the adapter is one, to this classifier.

    It looks for the argument `past_key_values`, which transformers 5.24 calls `cache`, and raises in the first forward
    pass where there is none. A language model is handed it without that look.
    """
    config = model.active_peft_config
    if config.peft_type != "PREFIX_TUNING" or config.task_type != TASK_TYPES["classification"]:
        return True
    inside = model.base_model.get_submodule(model.transformer_backbone_name)
    return any(
        "past_key_values" in inspect.signature(module.forward).parameters
        for module in (model.base_model, inside)
    )


def _no_prefix(model: nn.Module) -> str:
    versions = " and ".join(f"{name} {version(name)}" for name in ("peft", "transformers"))
    return (
        f"PREFIX_TUNING does not fit a {type(model).__name__} with {versions}, because its past_key_values are called "
        "otherwise; use a newer peft, an older transformers, or PROMPT_TUNING"
    )


def _without_wrappers(model: nn.Module) -> None:
    """Put the modules that peft copied to train them back to what they were before."""
    for name, module in list(model.named_children()):
        if hasattr(module, "original_module"):
            setattr(model, name, module.original_module)
        else:
            _without_wrappers(module)


class _quiet_peft(warnings.catch_warnings):
    """No advice of peft's: what matters is an error here."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
