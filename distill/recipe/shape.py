"""How wide and deep a student can be, by what its teacher's config.json says. Loads no torch and no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .student import FromTeacher

# Model types whose modules have BERT's names and whose attention is as wide as the model.
BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert")
# Model types with Llama's names, whose attention has a width of its own and shares keys and values among heads.
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
T5_LIKE = ("t5", "mt5")
NARROWED = (*BERT_LIKE, *LLAMA_LIKE, *T5_LIKE)

# What a configuration calls the sizes.
USUAL = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
}
NAMES = {
    **{kind: USUAL for kind in (*BERT_LIKE, *LLAMA_LIKE)},
    "gpt2": {"layers": "n_layer", "hidden": "n_embd", "heads": "n_head", "intermediate": "n_inner"},
    **{
        kind: {
            "layers": "num_layers",
            "decoder_layers": "num_decoder_layers",
            "hidden": "d_model",
            "heads": "num_heads",
            "intermediate": "d_ff",
        }
        for kind in T5_LIKE
    },
}


class Shape(NamedTuple):
    """What FromTeacher says of a student's depth and width, in the words it has there."""

    layers: int | tuple[int, ...] | None = None
    decoder_layers: int | tuple[int, ...] | None = None
    hidden: int | None = None
    heads: int | None = None
    intermediate: int | None = None


@dataclass(frozen=True)
class Sizes:
    """The widths of a model.

    Attributes:
        kind: The configuration's model_type.
        channels: Of the hidden states.
        heads: Attention heads a layer.
        groups: Groups of heads with keys and values in common; as many as heads where none share.
        head_size: The width of a head.
        neurons: Of a feed-forward network.
    """

    kind: str
    channels: int
    heads: int
    groups: int
    head_size: int
    neurons: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Sizes:
        """The widths that a complete configuration of one of `NARROWED` gives."""
        kind = config["model_type"]
        names = NAMES[kind]
        channels, heads = config[names["hidden"]], config[names["heads"]]
        return cls(
            kind=kind,
            channels=channels,
            heads=heads,
            groups=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or config.get("d_kv") or channels // heads,
            neurons=config[names["intermediate"]],
        )

    def cut(self, hidden: int | None, heads: int | None, intermediate: int | None) -> Sizes:
        """The widths of a narrower model; None keeps all of them.

        A BERT's attention is as wide as its hidden states, which decide how many heads there are. Elsewhere heads that
        share keys and values are kept in whole groups, or else as many of every group.
        """
        channels = hidden or self.channels
        if self.kind in BERT_LIKE:
            heads = channels // self.head_size
            groups = heads
        else:
            heads = heads or self.heads
            group = self.heads // self.groups
            groups = heads // group if heads % group == 0 else self.groups
        return replace(
            self, channels=channels, heads=heads, groups=groups, neurons=intermediate or self.neurons
        )


def width_mistakes(
    config: Mapping[str, Any], hidden: int | None, intermediate: int | None, heads: int | None
) -> list[tuple[str, str]]:
    """(field of from_teacher, what is wrong with it) for widths that a teacher with this configuration cannot have."""
    kind = config.get("model_type")
    if kind not in NARROWED:
        return [
            (
                "",
                f"hidden, heads and intermediate are for {', '.join(NARROWED)} models, found {kind}; leave them out",
            )
        ]
    sizes = Sizes.of(config)
    mistakes = [
        (field, f"must be at most the teacher's {most}, found {asked}")
        for field, asked, most in (
            ("hidden", hidden, sizes.channels),
            ("heads", heads, sizes.heads),
            ("intermediate", intermediate, sizes.neurons),
        )
        if asked is not None and asked > most
    ]
    if mistakes:
        return mistakes
    if kind in BERT_LIKE:
        if heads is not None:
            mistakes.append(("heads", f"follows from hidden in a {kind} model; give hidden alone"))
        if hidden is not None and hidden % sizes.head_size:
            mistakes.append(
                (
                    "hidden",
                    f"must be a multiple of {sizes.head_size}, the size of the teacher's attention heads, found {hidden}",
                )
            )
        return mistakes
    group = sizes.heads // sizes.groups
    if heads is not None and kind in T5_LIKE:
        mistakes.append(
            (
                "heads",
                f"cannot be left out of a {kind} model, whose layers share position biases; leave it out",
            )
        )
    elif heads is not None and heads % group and heads % sizes.groups:
        mistakes.append(
            (
                "heads",
                f"must be a multiple of {group} (whole groups of heads with common keys and values) or of "
                f"{sizes.groups} (evenly of all groups), found {heads}",
            )
        )
    elif kind == "llama" and hidden is not None and hidden % (heads or sizes.heads):
        mistakes.append(
            (
                "hidden",
                f"must be a multiple of the student's {heads or sizes.heads} attention heads, as any llama's, "
                f"found {hidden}",
            )
        )
    elif kind == "llama" and hidden is None and sizes.channels % (heads or sizes.heads):
        mistakes.append(
            ("heads", f"must divide hidden, the student's {sizes.channels}, as any llama's, found {heads}")
        )
    return mistakes


def narrowed(config: Mapping[str, Any], kept: Sizes) -> dict[str, Any]:
    """What a narrower model's configuration says otherwise than `config`."""
    names = NAMES[kept.kind]
    changed = {
        names["hidden"]: kept.channels,
        names["heads"]: kept.heads,
        names["intermediate"]: kept.neurons,
    }
    if kept.kind in LLAMA_LIKE:
        changed |= {"num_key_value_heads": kept.groups, "head_dim": kept.head_size}
    return changed


def cut_config(config: Mapping[str, Any], cut: FromTeacher | Shape) -> dict[str, Any]:
    """The config of the student that `cut` makes of a teacher whose sizes are known.

    Its vocabulary has the size of a new tokenizer, or is left as it is.
    """
    names = NAMES[config["model_type"]]
    made = dict(config)
    tokens = getattr(
        getattr(cut, "vocabulary", None), "train", None
    )  # of a recipe's student, not of a mere shape
    if tokens:
        made["vocab_size"] = tokens
    both = {"layers": cut.layers}
    if "decoder_layers" in names:
        both["decoder_layers"] = cut.layers if cut.decoder_layers is None else cut.decoder_layers
    for part, wanted in both.items():
        if wanted is not None:
            made[names[part]] = wanted if isinstance(wanted, int) else len(wanted)
    if config["model_type"] in NARROWED:
        made |= narrowed(config, Sizes.of(config).cut(cut.hidden, cut.heads, cut.intermediate))
    return made
