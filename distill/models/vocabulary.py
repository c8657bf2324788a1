"""The tokens a student keeps: which ones, and the tokenizer and the model that have no others.

A model with fewer rows in its embedding table reads the same tokens under other ids. Token ids are renumbered in
their old order; `tokens[i]` is the teacher's id of the student's token i. A model may also read tokens of another
tokenizer: each starts as the mean of the pieces that its own tokenizer cuts the token into.

Shapes: V tokens of the model, W tokens of the new one, H channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import embedding_bag

from distill.errors import ModelError
from distill.models.loading import rebuilt
from distill.models.tokenizer_layout import FIELD, layout_of, load_layout, renumber, token_ids
from distill.models.tokenizer_parts import added_parts, ordinary_letters, parts_of, usefulness

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def needed_tokens(
    tokenizer: PreTrainedTokenizerBase, used: Iterable[int], at_least: int = 0
) -> tuple[int, ...]:
    """The ids, in increasing order, that a trimmed tokenizer must keep to read texts made of the tokens `used`.

    Added beside them are the special and other added tokens; every letter of a used token and of ASCII, at the
    beginning and inside of words; all 256 bytes, where the tokenizer knows bytes; and what a BPE tokenizer merges on
    its way to a kept token. A word in these letters that was cut into one dropped piece is then read in smaller ones.
    Words in other letters are read as bytes or, by a tokenizer without bytes, become the unknown token.

    Args:
        tokenizer: a fast WordPiece, Unigram or BPE tokenizer.
        used: ids that occur in the texts.
        at_least: fill up to so many tokens with the most useful others: the lowest ids of WordPiece and BPE, which are
            in the order in which training found them (the most frequent first), or Unigram's most probable pieces.
            WordPiece tokens that no text gives, as "[unused0]", come last. A BPE token's parts come with it, so that a few more may be kept.

    Raises:
        ModelError: the tokenizer is of another kind, or has fewer than `at_least` tokens.
    """
    if at_least > len(tokenizer):
        raise ModelError(
            f"{FIELD}: at_least must be at most the {len(tokenizer)} tokens of the teacher, found {at_least}"
        )
    layout = layout_of(tokenizer)
    ids = token_ids(layout["model"])
    names = {number: name for name, number in ids.items()}
    kept = {int(token) for token in used}
    letters = ordinary_letters(layout).union(*(names[token] for token in kept if token in names))
    kept |= {ids[form] for form in added_parts(layout, letters) if form in ids}
    kept |= {token["id"] for token in layout["added_tokens"]} | set(tokenizer.all_special_ids)
    parts = parts_of(layout["model"])
    kept |= {ids[part] for token in kept if token in names for part in parts(names[token])}
    cut = tokenizer.backend_tokenizer.pre_tokenizer
    for name in usefulness(layout["model"], cut and cut.pre_tokenize_str):
        if len(kept) >= at_least:
            break
        kept |= {ids[name], *(ids[part] for part in parts(name))}
    return tuple(sorted(kept))


def keep_tokenizer_tokens(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]
) -> PreTrainedTokenizerBase:
    """A tokenizer with only the tokens of these ids, renumbered from 0 in the order given.

    A text all of whose pieces `needed_tokens` was told of is cut into the same pieces:

    - WordPiece takes the longest token that fits, from left to right: what was longest before is still there, and
      nothing longer came to be.
    - Unigram takes the cut with the largest sum of scores. The best cut is still there with the same sum, and dropped
      tokens only take cuts away. A letter without a piece scores 10 below the lowest score of all, so the piece with
      that score is kept too: else what is unknown would become cheaper.
    - BPE merges the pair of the earliest merge, again and again. Every token on the way to a kept one is there with its
      merge, and the merges that are left are in their old order: each step finds the same earliest pair.

    Raises:
        ModelError: the tokenizer is of another kind, or ids do not increase, or a special token is missing.
    """
    layout = layout_of(tokenizer)
    place = {token: number for number, token in enumerate(tokens)}
    if list(tokens) != sorted(place):
        raise ModelError(f"{FIELD}: the token ids to keep must increase")
    wanted = {name: place[token] for name, token in tokenizer.get_vocab().items() if token in place}
    model = layout["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [piece for token, piece in enumerate(model["vocab"]) if token in place]
    else:
        model["vocab"] = {name: place[token] for name, token in model["vocab"].items() if token in place}
    if model["type"] == "BPE":
        have = model["vocab"]
        model["merges"] = [
            pair for pair in model["merges"] if pair[0] in have and pair[1] in have and "".join(pair) in have
        ]
    renumber(layout, place)
    return load_layout(tokenizer, layout, wanted)


def keep_tokens(model: PreTrainedModel, tokens: Sequence[int]) -> PreTrainedModel:
    """A new model of the same class with only these rows of the word embeddings, and of the output layer if it has one.

    Every other weight is copied. For a text of kept tokens its body computes bitwise what `model`'s computes. Rows
    that no token of the tokenizer has (padding up to a round number) are dropped like any other.

    Raises:
        ModelError: the tokenizer has tokens without a row, or the config's padding (or other special) token is not kept.
    """
    place = {token: number for number, token in enumerate(tokens)}
    return _with_rows(
        model, max(tokens), len(tokens), place, lambda table: table[torch.tensor(tokens, device=table.device)]
    )


def replace_tokens(model: PreTrainedModel, pieces: Sequence[Sequence[int]]) -> PreTrainedModel:
    """A new model of the same class that reads the tokens of another tokenizer.

    Row w of the word embeddings, of the output layer and of its bias is the mean of the model's own rows `pieces[w]`
    (fast vocabulary transfer, arXiv:2402.09977); one piece is copied exactly.

    Args:
        model: what reads the old tokens.
        pieces: of each new token the ids of the old ones (`pieces_of`), special tokens first.

    Raises:
        ModelError: a piece has no row, or the config's padding token has no new token.
    """
    # Special tokens come first, and are what the config names: of several new tokens with this one piece, they are it.
    place = {ids[0]: number for number, ids in reversed(list(enumerate(pieces))) if len(ids) == 1}
    flat = torch.tensor([token for ids in pieces for token in ids])
    starts = torch.tensor([0, *(len(ids) for ids in pieces[:-1])]).cumsum(0)

    def means(table_VH: Tensor) -> Tensor:
        device = table_VH.device
        mean_WH = embedding_bag(
            flat.to(device), table_VH.reshape(len(table_VH), -1), starts.to(device), mode="mean"
        )
        return mean_WH.reshape(len(pieces), *table_VH.shape[1:])

    return _with_rows(model, int(flat.max()), len(pieces), place, means)


def _with_rows(
    model: PreTrainedModel,
    largest: int,
    size: int,
    place: Mapping[int, int],
    rows_of: Callable[[Tensor], Tensor],
) -> PreTrainedModel:
    """A model whose tensors with a row a token went through `rows_of`; old ids in its config through `place`."""
    body: Any = model  # transformers leaves these two methods untyped
    table: Tensor = body.get_input_embeddings().weight
    rows = len(table)
    if largest >= rows:
        raise ModelError(
            f"{FIELD}: the tokenizer has a token {largest}, the model's {rows} embeddings end at {rows - 1}"
        )
    config = copy.deepcopy(model.config)
    config.vocab_size = size
    _renumber_config(config, place)
    if model.config.pad_token_id is not None and config.pad_token_id is None:
        raise ModelError(f"{FIELD}: the padding token {model.config.pad_token_id} must be kept")
    output = body.get_output_embeddings()
    by_token = {table.data_ptr()} | {
        p.data_ptr() for p in (output.parameters() if output is not None else ())
    }
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in by_token:
            tensor = rows_of(tensor.detach())
        elif name.endswith("final_logits_bias"):  # BART's, which lies
            tensor = rows_of(tensor.detach().T).T
        state[name] = tensor
    made = rebuilt(model, config, state)
    if getattr(model, "generation_config", None) is not None:
        made.generation_config = copy.deepcopy(model.generation_config)
        _renumber_config(made.generation_config, place)
    return made


def _renumber_config(config: Any, place: Mapping[int, int]) -> None:
    """Put new ids for all of a config's; one that no token has any more (a default of its class) becomes None."""
    for name, value in list(vars(config).items()):
        if name.endswith("_token_id") and isinstance(value, int):
            setattr(config, name, place.get(value))
        elif name.endswith("_token_id") and isinstance(value, list):
            setattr(config, name, [place[token] for token in value if token in place] or None)
