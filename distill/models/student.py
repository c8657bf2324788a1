"""The model that learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.losses import Vocabularies
from distill.models.batch import Batch
from distill.models.layers import choose_layers, keep_layers
from distill.models.loading import HeadKind, load_model, load_tokenizer, model_from_config, quiet_transformers
from distill.models.prediction import Prediction
from distill.models.recording import model_shape, run, token_weights
from distill.models.smaller_tokenizer import pieces_of
from distill.models.source import ModelSource, find_model
from distill.models.vocabulary import keep_tokenizer_tokens, keep_tokens, needed_tokens, replace_tokens
from distill.models.width import Activity, choose_width, keep_width

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from distill.losses import ModelShape, Wanted
    from distill.models.teacher import Teacher

PROVENANCE_FILE = "provenance.json"


class Student:
    """A model to train, and where its weights came from.

    Args:
        model: a transformers model with the head its task needs, in float32.
        tokenizer: the one it reads.
        provenance: which of the teacher's parts each of its own started from, or the model it was loaded from.
            Written beside the weights. `{"teacher": …, "layers": [0, 2, 5]}`: its layer 1 was the teacher's 2. Where
            some were left out also `"tokens": [0, 100, …]`, `"channels": [1, 2, 5, …]` of the hidden states, and
            `"heads": [[0, 3], …]` and `"neurons": [[4, …], …]` with a list for each of its own layers. Where it has a
            tokenizer of its own, `"pieces": [[0], [7, 12], …]` instead of tokens: each started as the mean of these.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        provenance: Mapping[str, Any] | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.provenance = dict(provenance or {})

    @classmethod
    def from_teacher(
        cls,
        source: ModelSource | str,
        *,
        layers: int | tuple[int, ...],
        kind: HeadKind,
        labels: tuple[str, ...],
        seed: int = 0,
        hidden: int | None = None,
        intermediate: int | None = None,
        activity: Activity | None = None,
        used_tokens: Iterable[int] | None = None,
        at_least: int = 0,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Student:
        """A student that keeps a part of a teacher's files; a classifier the files lack is drawn from `seed`.

        Args:
            source: the teacher's files.
            layers: how many, evenly spaced, or which.
            kind: the head the task needs.
            labels: the task's labels.
            seed: of a new classifier's weights.
            hidden: channels of the hidden states; attention heads keep their size. None keeps all.
            intermediate: neurons of each layer's feed-forward network. None keeps all.
            activity: of the teacher's parts, which are then ranked by it (`measure_activity`). None keeps the first.
            used_tokens: ids of the teacher's tokens that the student must read: it keeps these, the special tokens
                and the letters of words (`needed_tokens`), under ids of its own. None keeps all.
            at_least: with `used_tokens`, fill up to so many tokens with the most useful others.
            tokenizer: one of the same kind as the teacher's to read with instead (`smaller_tokenizer`): each of its
                tokens starts as the mean of the teacher's pieces of its text. None reads the teacher's tokens.

        Raises:
            ModelError: the teacher has fewer layers or no stack of layers to choose from, cannot have that width,
                or its tokenizer cannot be changed.
        """
        source = find_model(source) if isinstance(source, str) else source
        whole = load_model(source, kind=kind, labels=labels, seed=seed)
        kept = choose_layers(whole, layers)
        provenance = {"teacher": source.name, "teacher_digest": source.digest, "layers": list(kept)}
        if hidden is not None or intermediate is not None:
            width = choose_width(whole, hidden, intermediate, activity)
            whole = keep_width(whole, width)
            provenance["channels"] = list(width.channels)
            provenance["heads"] = [list(width.heads[layer]) for layer in kept]
            provenance["neurons"] = [list(width.neurons[layer]) for layer in kept]
        model, theirs = keep_layers(whole, kept), load_tokenizer(source)
        if tokenizer is not None:
            pieces = pieces_of(theirs, tokenizer)
            provenance["pieces"] = [list(ids) for ids in pieces]
            return cls(replace_tokens(model, pieces), tokenizer, provenance)
        if used_tokens is not None:
            tokens = needed_tokens(theirs, used_tokens, at_least)
            provenance["tokens"] = list(tokens)
            return cls(keep_tokens(model, tokens), keep_tokenizer_tokens(theirs, tokens), provenance)
        return cls(model, theirs, provenance)

    @classmethod
    def load(
        cls, source: ModelSource | str, *, kind: HeadKind, labels: tuple[str, ...], seed: int = 0
    ) -> Student:
        """A student that starts from a pretrained model: a folder, `package:…` or a hub id."""
        source = find_model(source) if isinstance(source, str) else source
        model = load_model(source, kind=kind, labels=labels, seed=seed)
        return cls(model, load_tokenizer(source), {"model": source.name, "model_digest": source.digest})

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerBase,
        *,
        kind: HeadKind,
        labels: tuple[str, ...],
        seed: int = 0,
    ) -> Student:
        """A student with random weights drawn from `seed`."""
        model = model_from_config(
            config,
            kind=kind,
            labels=labels,
            tokenizer=tokenizer,
            seed=seed,
        )
        return cls(model, tokenizer, {"config": dict(config)})

    @property
    def shape(self) -> ModelShape:
        """Layers, width and heads."""
        return model_shape(self.model)

    @property
    def origin(self) -> tuple[int, ...] | None:
        """The teacher layer that each of its layers started from; None unless it was made of a teacher's."""
        return self._kept("layers")

    @property
    def channels(self) -> tuple[int, ...] | None:
        """The teacher's channel that each of its channels started from; None unless some were left out."""
        return self._kept("channels")

    @property
    def tokens(self) -> tuple[int, ...] | None:
        """The teacher's id of each of its tokens; None unless some of the teacher's tokens were left out."""
        return self._kept("tokens")

    def vocabularies(self, teacher: Teacher) -> Vocabularies | None:
        """What it and a teacher with its tokenizer read and say tokens with; None unless both are language models."""
        own, others = token_weights(self.model), token_weights(teacher.model, self.tokens)
        return None if own is None or others is None else Vocabularies(own, others)

    def _kept(self, part: str) -> tuple[int, ...] | None:
        kept = self.provenance.get(part)
        return None if kept is None else tuple(kept)

    @property
    def start(self) -> dict[str, Any]:
        """The provenance in few words: of tokens, channels, heads and neurons (a layer) only how many there are."""
        listed = ("tokens", "pieces", "channels")
        whole = {part: self.provenance[part] for part in listed if part in self.provenance}
        a_layer = {part: self.provenance[part][0] for part in ("heads", "neurons") if part in self.provenance}
        return {**self.provenance, **{part: len(kept) for part, kept in (whole | a_layer).items()}}

    def __call__(self, batch: Batch, wanted: Wanted | None = None) -> Prediction:
        """Logits for a batch and the wanted activations, differentiable while the model is in training mode."""
        return Prediction(*run(self.model, batch.inputs, wanted, batch.rows_BT))

    def save(self, folder: str | Path) -> None:
        """Write a folder that transformers' own auto classes load: config, safetensors, tokenizer, provenance."""
        folder = Path(folder)
        with quiet_transformers():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        (folder / PROVENANCE_FILE).write_text(json.dumps(self.provenance, indent=1) + "\n")
