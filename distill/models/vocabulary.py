"""The tokens a student keeps: which ones, and the tokenizer and the model that have no others.

A model with fewer rows in its embedding table reads the same tokens under other ids. Token ids are renumbered in
their old order; `tokens[i]` is the teacher's id of the student's token i.
"""

from __future__ import annotations

import copy
import json
import string
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.errors import ModelError
from distill.models.loading import quiet_transformers, rebuilt

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FIELD = "student.from_teacher.vocabulary"


def needed_tokens(tokenizer: PreTrainedTokenizerBase, used: Iterable[int]) -> tuple[int, ...]:
    """The ids, in increasing order, that a trimmed tokenizer must keep to read texts made of the tokens `used`.

    Added beside them are the special tokens, and every letter of a used token and of ASCII at the beginning and
    inside of words: a word in these letters that was cut into one dropped piece is then read in smaller ones.
    Words in other letters become the unknown token.

    Raises:
        ModelError: the tokenizer is not a WordPiece tokenizer.
    """
    layout = _wordpiece_layout(tokenizer)
    model = layout["model"]
    ids, inside = model["vocab"], model["continuing_subword_prefix"]
    names = {number: name for name, number in ids.items()}
    kept = {int(token) for token in used}
    letters = set(string.printable).union(
        *(names[token].removeprefix(inside) for token in kept if token in names)
    )
    kept |= {ids[form] for letter in letters for form in (letter, inside + letter) if form in ids}
    kept |= {token["id"] for token in layout["added_tokens"]} | set(tokenizer.all_special_ids)
    kept.add(ids[model["unk_token"]])
    return tuple(sorted(kept))


def keep_tokenizer_tokens(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]
) -> PreTrainedTokenizerBase:
    """A tokenizer with only the tokens of these ids, renumbered from 0 in the order given.

    WordPiece takes the longest token that fits, from left to right. A text whose pieces are all kept is therefore
    cut into the same pieces: what was longest before is still there, and nothing longer came to be.

    Raises:
        ModelError: the tokenizer is not a WordPiece tokenizer, or ids do not increase, or a special token is missing.
    """
    layout = _wordpiece_layout(tokenizer)
    place = {token: number for number, token in enumerate(tokens)}
    if list(tokens) != sorted(place):
        raise ModelError(f"{FIELD}: the token ids to keep must increase")
    wanted = {name: place[token] for name, token in tokenizer.get_vocab().items() if token in place}
    try:
        layout["model"]["vocab"] = {
            name: place[token] for name, token in layout["model"]["vocab"].items() if token in place
        }
        for added in layout["added_tokens"]:
            added["id"] = place[added["id"]]
        if layout.get("padding"):
            layout["padding"]["pad_id"] = place[layout["padding"]["pad_id"]]
        _renumber(layout.get("post_processor"), place)
    except KeyError as error:
        raise ModelError(f"{FIELD}: the special token {error.args[0]} must be kept") from None
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        # The files decide: what is loaded here is what the saved student's folder will give anyone.
        tokenizer.save_pretrained(folder)
        for table in ("vocab.txt", "vocab.json"):
            (Path(folder) / table).unlink(missing_ok=True)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(layout, ensure_ascii=False), encoding="utf-8")
        trimmed = type(tokenizer).from_pretrained(folder)
    trimmed.name_or_path = tokenizer.name_or_path
    if trimmed.get_vocab() != wanted:
        raise ModelError(f"{FIELD}: a trimmed {type(tokenizer).__name__} does not number its tokens as asked")
    return trimmed  # type: ignore[no-any-return]


def keep_tokens(model: PreTrainedModel, tokens: Sequence[int]) -> PreTrainedModel:
    """A new model of the same class with only these rows of the word embeddings, and of the output layer if it has one.

    Every other weight is copied. For a text of kept tokens its body computes bitwise what `model`'s computes.

    Raises:
        ModelError: the tokenizer has tokens without a row, or the config's padding (or other special) token is not kept.
    """
    body: Any = model  # transformers leaves these two methods untyped
    table: Tensor = body.get_input_embeddings().weight
    rows = len(table)
    if max(tokens) >= rows:
        raise ModelError(
            f"{FIELD}: the tokenizer has a token {max(tokens)}, the model's {rows} embeddings end at {rows - 1}"
        )
    place = {token: number for number, token in enumerate(tokens)}
    config = copy.deepcopy(model.config)
    config.vocab_size = len(tokens)
    for name, value in list(vars(config).items()):
        if name.endswith("_token_id") and isinstance(value, int):
            # An id that no tokenizer gives (a default of the config's class) names no row: None says so.
            setattr(config, name, place.get(value))
    if model.config.pad_token_id is not None and config.pad_token_id is None:
        raise ModelError(f"{FIELD}: the padding token {model.config.pad_token_id} must be kept")
    output = body.get_output_embeddings()
    by_token = {table.data_ptr()} | {
        p.data_ptr() for p in (output.parameters() if output is not None else ())
    }
    index = torch.tensor(tokens)
    state = {
        name: tensor[index.to(tensor.device)] if tensor.data_ptr() in by_token else tensor
        for name, tensor in model.state_dict().items()
    }
    return rebuilt(model, config, state)


def _wordpiece_layout(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What tokenizer.json says of a WordPiece tokenizer."""
    kind = "slow"
    if tokenizer.is_fast:
        layout: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        kind = layout["model"].get("type") or "unnamed"
        if kind == "WordPiece":
            return layout
    raise ModelError(
        f"{FIELD}: only WordPiece tokenizers can be trimmed, found a {kind} tokenizer ({type(tokenizer).__name__}); "
        "leave vocabulary out"
    )


def _renumber(processor: Any, place: Mapping[int, int]) -> None:
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
            _renumber(part, place)
    else:
        raise ModelError(
            f"{FIELD}: a tokenizer with the post-processor {kind} cannot be trimmed; leave vocabulary out"
        )
