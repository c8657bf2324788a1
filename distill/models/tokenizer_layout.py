"""What tokenizer.json says of a fast tokenizer, and the tokenizer that a changed tokenizer.json makes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import ModelError
from distill.models.loading import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIELD = "student.from_teacher.vocabulary"
KINDS = ("WordPiece", "Unigram", "BPE")


def layout_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The content of tokenizer.json; merges of BPE are pairs.

    Raises:
        ModelError: the tokenizer is slow, or neither WordPiece nor Unigram nor BPE, or BPE that marks words otherwise
            than by a first letter.
    """
    kind = "slow"
    if tokenizer.is_fast:
        layout: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        model = layout["model"]
        kind = model.get("type") or "unnamed"
        if kind == "BPE":
            model["merges"] = [
                pair.split(" ") if isinstance(pair, str) else list(pair) for pair in model["merges"]
            ]
            if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
                kind = "BPE with marked word parts,"
        if kind in KINDS:
            return layout
    raise ModelError(
        f"{FIELD}: only WordPiece, Unigram and BPE tokenizers can be changed, found a {kind} tokenizer "
        f"({type(tokenizer).__name__}); leave vocabulary out"
    )


def token_ids(model: Mapping[str, Any]) -> dict[str, int]:
    """The id of each token of a tokenizer's model; added tokens outside of it are not among them."""
    if model["type"] == "Unigram":
        return {piece: number for number, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def byte_level(layout: Mapping[str, Any]) -> bool:
    """Whether tokens are bytes written as letters, as GPT-2's."""
    return '"ByteLevel"' in json.dumps([layout.get("pre_tokenizer"), layout.get("normalizer")])


def renumber(layout: dict[str, Any], place: Mapping[int, int]) -> None:
    """Put new ids into everything but the model's tokens.

    Raises:
        ModelError: a special token has no new id, or a part is not known.
    """
    try:
        for added in layout["added_tokens"]:
            added["id"] = place[added["id"]]
        if layout["model"].get("unk_id") is not None:
            layout["model"]["unk_id"] = place[layout["model"]["unk_id"]]
        if layout.get("padding"):
            layout["padding"]["pad_id"] = place[layout["padding"]["pad_id"]]
        _renumber_processor(layout.get("post_processor"), place)
    except KeyError as error:
        raise ModelError(f"{FIELD}: the special token {error.args[0]} must be kept") from None
    layout["added_tokens"].sort(key=lambda added: added["id"])


def load_layout(
    tokenizer: PreTrainedTokenizerBase, layout: Mapping[str, Any], wanted: Mapping[str, int]
) -> PreTrainedTokenizerBase:
    """A tokenizer of the same class, with the same settings and chat template, and this tokenizer.json.

    Args:
        tokenizer: whose class and settings to take.
        layout: the content of tokenizer.json.
        wanted: the id that each token must have.

    Raises:
        ModelError: the class numbers its tokens in another way.
    """
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        # The files decide: what is loaded here is what the saved student's folder will give anyone.
        tokenizer.save_pretrained(folder)
        for table in {*type(tokenizer).vocab_files_names.values(), "vocab.txt", "vocab.json", "merges.txt"}:
            (Path(folder) / table).unlink(missing_ok=True)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(layout, ensure_ascii=False), encoding="utf-8")
        made = type(tokenizer).from_pretrained(folder)
    made.name_or_path = tokenizer.name_or_path
    if made.get_vocab() != wanted:
        raise ModelError(f"{FIELD}: a changed {type(tokenizer).__name__} does not number its tokens as asked")
    return made  # type: ignore[no-any-return]


def _renumber_processor(processor: Any, place: Mapping[int, int]) -> None:
    """Put new ids into a post-processor, which adds the special tokens."""
    if processor is None:
        return
    kind = processor["type"]
    if kind == "TemplateProcessing":
        for special in processor["special_tokens"].values():
            special["ids"] = [place[token] for token in special["ids"]]
    elif kind in ("BertProcessing", "RobertaProcessing"):
        for end in ("sep", "cls"):
            name, token = processor[end]
            processor[end] = [name, place[token]]
    elif kind == "Sequence":
        for part in processor["processors"]:
            _renumber_processor(part, place)
    elif kind != "ByteLevel":  # which adds none
        raise ModelError(
            f"{FIELD}: a tokenizer with the post-processor {kind} cannot be changed; leave vocabulary out"
        )
