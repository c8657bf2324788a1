"""A forward pass that also keeps what feature losses read: hidden states, attention scores, queries, keys, values.

Hidden states come from transformers itself. The rest is caught where every model hands its queries, keys and values
to an attention function: before any dropout, which the maps that a model returns in training have gone through, and
without a name list of projections for each architecture. The model's own attention computes its output as ever.

B sequences, A heads, T positions, d width of a head.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

from distill.errors import ModelError
from distill.losses import Activations, ModelShape, TokenWeights, Wanted
from distill.models.adapter import adds_tokens, is_adapted, unwrapped_adapter
from distill.models.layers import layer_stack

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_NAME = "distill_recording"
_active: ContextVar[_Record | None] = ContextVar("_active", default=None)


def model_shape(model: nn.Module) -> ModelShape:
    """The sizes of a transformers model that feature losses depend on.

    Raises:
        ModelError: its configuration does not tell them, or an adapter's virtual tokens shift its positions.
    """
    if adds_tokens(_without_accelerate(model)):
        raise ModelError(
            "student.adapter: its virtual tokens shift the positions that a term of the loss compares inside the "
            "models; use an adapter without them, such as LORA, or losses of logits alone"
        )
    config: Any = unwrapped(model).config
    try:
        heads, width = int(config.num_attention_heads), int(config.hidden_size)
        head_width = getattr(config, "head_dim", None) or width // heads
        return ModelShape(
            layers=int(config.num_hidden_layers),
            width=width,
            heads=heads,
            query_width=heads * head_width,
            key_width=(getattr(config, "num_key_value_heads", None) or heads) * head_width,
        )
    except (AttributeError, TypeError) as error:
        raise ModelError(
            f"a {type(unwrapped(model)).__name__} does not say how many layers and heads it has ({error}); "
            "its insides cannot be compared"
        ) from error


def token_weights(model: nn.Module, tokens: Sequence[int] | None = None) -> TokenWeights | None:
    """The matrices a language model reads and says tokens with; None where its logits are not made by one alone.

    Args:
        model: a transformers model.
        tokens: the ids to keep, in this order, as copies; None for the model's own matrices, which change as it does.
    """
    model = unwrapped(model)
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    changes = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    if head is None or any(getattr(model.config, change, None) not in (None, 1) for change in changes):
        return None
    embedding: Any = model.get_input_embeddings()
    matrices = [head.weight, embedding.weight, getattr(head, "bias", None)]
    if tokens is not None:
        kept = torch.tensor(tokens, device=head.weight.device)
        matrices = [None if matrix is None else matrix.detach()[kept] for matrix in matrices]
    return TokenWeights(*matrices)


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside what accelerate and peft made of it."""
    model = _without_accelerate(model)
    return unwrapped_adapter(model) if is_adapted(model) else model  # type: ignore[return-value]


def _without_accelerate(model: nn.Module) -> nn.Module:
    while not hasattr(model, "config") and hasattr(model, "module"):
        model = model.module  # type: ignore[assignment]
    return model


def run(
    model: nn.Module, inputs: Mapping[str, Tensor], wanted: Wanted | None, rows_BT: Tensor | None = None
) -> tuple[Tensor, Activations | None]:
    """Logits of a batch (of the positions `rows_BT` alone, if given), and its activations where some are wanted.

    Raises:
        ModelError: the model does not give out what is wanted.
    """
    with _only_rows(unwrapped(model), rows_BT):
        if not wanted:
            logits_NC: Tensor = model(**inputs).logits
            return logits_NC, None
        with _recording(unwrapped(model), wanted) as record:
            output = model(**inputs, output_hidden_states=bool(wanted.hidden))
    return output.logits, record.activations(getattr(output, "hidden_states", None))


@contextmanager
def _only_rows(model: PreTrainedModel, rows_BT: Tensor | None) -> Iterator[None]:
    """Let a language model's output layer see the positions that make rows, and no others.

    Most positions of a prompt, and of padding, predict nothing that counts, and a vocabulary is the widest thing
    there is. What a model does to its logits afterwards (caps, scales, biases) it does to each of them alone.
    """
    if rows_BT is None:
        yield
        return
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None:
        raise ModelError(f"a {type(model).__name__} has no output layer over a vocabulary")
    # Virtual tokens of an adapter come first, and predict nothing that counts.
    hook = head.register_forward_pre_hook(
        lambda module, inputs: (inputs[0][:, -rows_BT.shape[1] :][rows_BT], *inputs[1:])
    )
    try:
        yield
    finally:
        hook.remove()


class _Record:
    """What one forward pass leaves behind."""

    def __init__(self, model: PreTrainedModel, wanted: Wanted, attention: str):
        self.model = model
        self.wanted = wanted
        self.attention = attention
        stack = layer_stack(model)[1] if wanted.attention or wanted.relations else ()
        self.layer_of = {module: number for number, layer in enumerate(stack) for module in layer.modules()}
        self.output: Tensor | None = None
        self.kept: dict[str, dict[int, Tensor]] = {
            part: {} for part in ("attention", "query", "key", "value")
        }

    def see(
        self,
        module: nn.Module,
        query_BATd: Tensor,
        key_BATd: Tensor,
        value_BATd: Tensor,
        mask: Tensor | None,
        options: Mapping[str, Any],
    ) -> None:
        """Keep what is wanted of one call of an attention function."""
        layer = self.layer_of.get(module, -1)
        if layer in self.wanted.relations and layer not in self.kept["query"]:
            parts = {"query": query_BATd, "key": key_BATd, "value": value_BATd}
            for part, vectors_BATd in parts.items():
                self.kept[part][layer] = vectors_BATd.transpose(1, 2).flatten(2)
        if layer in self.wanted.attention and layer not in self.kept["attention"]:
            for option in ("softcap", "s_aux"):
                if options.get(option) is not None:
                    raise ModelError(
                        f"a {type(self.model).__name__} changes its attention scores by {option}: "
                        "attention_maps cannot compare them; use relations"
                    )
            self.kept["attention"][layer] = _scores(query_BATd, key_BATd, mask, options.get("scaling"))

    def activations(self, hidden_states: tuple[Tensor, ...] | None) -> Activations:
        """What was wanted.

        Raises:
            ModelError: something was not to be had.
        """
        hidden = {}
        if self.wanted.hidden:
            if hidden_states is None or len(hidden_states) != self.model.config.num_hidden_layers + 1:
                raise ModelError(
                    f"a {type(self.model).__name__} does not give out the hidden states of its layers"
                )
            hidden = {layer: hidden_states[layer + 1] for layer in self.wanted.hidden}
        if self.wanted.output and self.output is None:
            raise ModelError(f"a {type(self.model).__name__} has no output layer over a vocabulary")
        missed = (self.wanted.attention - self.kept["attention"].keys()) | (
            self.wanted.relations - self.kept["query"].keys()
        )
        if missed:
            raise ModelError(
                f"a {type(self.model).__name__} does not hand its attention to transformers' attention functions: "
                f"nothing was seen of layer {min(missed)}"
            )
        output = {} if self.output is None else dict.fromkeys(self.wanted.output, self.output)
        return Activations(hidden=hidden, output=output, **self.kept)

    def see_output(self, head: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Keep what the output layer reads."""
        self.output = inputs[0]


def _scores(query_BATd: Tensor, key_BATd: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Scores before the softmax, (B, A, T, T), in float32; −inf where a query may not look."""
    shared = query_BATd.shape[1] // key_BATd.shape[1]
    if shared > 1:
        key_BATd = key_BATd.repeat_interleave(shared, dim=1)
    scaling = query_BATd.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast(query_BATd.device.type, enabled=False):
        scores_BATT = (query_BATd.float() @ key_BATd.float().transpose(-1, -2)) * scaling
    if mask is not None:
        forbidden = mask <= torch.finfo(mask.dtype).min / 2
        scores_BATT = (scores_BATT + mask).masked_fill(forbidden, -torch.inf)
    return scores_BATT


@contextmanager
def _recording(model: PreTrainedModel, wanted: Wanted) -> Iterator[_Record]:
    own = model.config._attn_implementation
    record = _Record(model, wanted, own)
    with _output_seen(model, record):
        if not record.layer_of:
            yield record
            return
        _register()
        token = _active.set(record)
        try:
            model.set_attn_implementation(_NAME)
            yield record
        finally:
            _active.reset(token)
            model.set_attn_implementation(own)


@contextmanager
def _output_seen(model: PreTrainedModel, record: _Record) -> Iterator[None]:
    head: Any = model.get_output_embeddings() if record.wanted.output else None  # type: ignore[no-untyped-call]
    if head is None:
        yield
        return
    # Before any other hook: one may leave positions out.
    hook = head.register_forward_pre_hook(record.see_output, prepend=True)
    try:
        yield
    finally:
        hook.remove()


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(_NAME, _attend)
    # Masks as numbers to add, which eager and scaled-dot-product attention both take.
    AttentionMaskInterface.register(_NAME, eager_mask)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    record = _active.get()
    attention = "sdpa"
    if record is not None:
        record.see(module, query, key, value, attention_mask, options)
        attention = record.attention
    if attention == "eager":
        compute = sys.modules[type(module).__module__].eager_attention_forward
    else:  # other kernels take no masks of numbers
        compute = ALL_ATTENTION_FUNCTIONS["sdpa"]
    return compute(module, query, key, value, attention_mask, **options)
