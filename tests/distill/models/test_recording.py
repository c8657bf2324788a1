"""What is recorded of a forward pass is what the model computed, and recording leaves no trace."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from distill.errors import ModelError
from distill.losses import ModelShape, Wanted
from distill.models.recording import model_shape, run, token_weights

SMALL = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
EVERYTHING = Wanted(hidden=frozenset({-1, 0, 2}), attention=frozenset({0, 2}), relations=frozenset({1, 2}))


def bert():
    return BertForSequenceClassification(BertConfig(**SMALL, intermediate_size=24))


def roberta():
    return RobertaForSequenceClassification(RobertaConfig(**SMALL, intermediate_size=24))


def distilbert():
    return DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=60, dim=16, n_layers=3, n_heads=4, hidden_dim=24)
    )


def gpt2():
    return GPT2ForSequenceClassification(
        GPT2Config(vocab_size=60, n_embd=16, n_layer=3, n_head=4, pad_token_id=0)
    )


def llama():
    return LlamaForSequenceClassification(
        LlamaConfig(**SMALL, intermediate_size=24, num_key_value_heads=2, pad_token_id=0)
    )


MODELS = [bert, roberta, distilbert, gpt2, llama]
BIDIRECTIONAL = {bert, roberta, distilbert}
every = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 60, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 4 + [0] * 3])
    return {"input_ids": ids * mask, "attention_mask": mask}


def made(make, *, training: bool = False):
    torch.manual_seed(0)
    return make().train(training)


@every
def test_scores_and_hidden_states_are_the_models_own(make):
    model = made(make)
    batch = inputs()
    logits, activations = run(model, batch, EVERYTHING)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-5, atol=1e-6)
    assert activations.hidden.keys() == EVERYTHING.hidden
    for layer, found in activations.hidden.items():
        torch.testing.assert_close(found, expected.hidden_states[layer + 1], rtol=1e-5, atol=1e-6)
    assert activations.attention.keys() == EVERYTHING.attention
    counts = batch["attention_mask"].bool()
    for layer, scores in activations.attention.items():
        found, attention = scores.softmax(-1), expected.attentions[layer]
        torch.testing.assert_close(
            found.transpose(1, 2)[counts], attention.transpose(1, 2)[counts], rtol=1e-5, atol=1e-6
        )
        hidden = ~counts[:, None, None, :].expand_as(scores)
        assert bool((scores[hidden] == -math.inf).all())
        ahead = scores[0].isinf().triu(1).any()
        assert bool(ahead) == (make not in BIDIRECTIONAL)
    shape = model_shape(model)
    for part in ("query", "key", "value"):
        found = getattr(activations, part)
        assert found.keys() == EVERYTHING.relations
        assert all(vectors.shape == (3, 7, shape.width_of(part)) for vectors in found.values())


def test_shapes_are_read_from_the_configuration():
    assert model_shape(made(bert)) == ModelShape(3, 16, 4, query_width=16, key_width=16)
    assert model_shape(made(distilbert)) == ModelShape(3, 16, 4, query_width=16, key_width=16)
    assert model_shape(made(llama)) == ModelShape(3, 16, 4, query_width=16, key_width=8)
    with pytest.raises(ModelError, match="does not say how many layers"):
        model_shape(torch.nn.Module.__new__(type("Odd", (), {"config": object()})))


def test_queries_keys_and_values_are_the_projections_outputs():
    model = made(bert)
    caught = {}
    attention = model.bert.encoder.layer[1].attention.self
    for part in ("query", "key", "value"):
        getattr(attention, part).register_forward_hook(
            lambda module, args, output, part=part: caught.update({part: output})
        )
    _, activations = run(model, inputs(), EVERYTHING)
    for part, vectors in caught.items():
        assert torch.equal(getattr(activations, part)[1], vectors)


@every
def test_recording_changes_neither_logits_nor_gradients_nor_the_random_stream(make):
    def trained(wanted):
        model = made(make, training=True)
        torch.manual_seed(5)
        logits, _ = run(model, inputs(), wanted)
        logits.logsumexp(-1).sum().backward()
        return logits.detach(), {n: p.grad for n, p in model.named_parameters()}, torch.rand(1)

    plain, recorded = trained(None), trained(EVERYTHING)
    torch.testing.assert_close(recorded[0], plain[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(recorded[2], plain[2])
    for name, gradient in plain[1].items():
        torch.testing.assert_close(recorded[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_attention_in_training_is_recorded_before_dropout():
    model = made(bert, training=True)
    assert model.config.attention_probs_dropout_prob > 0
    _, activations = run(model, inputs(), Wanted(attention=frozenset({0})))
    model.set_attn_implementation("eager")
    dropped = model(**inputs(), output_attentions=True).attentions[0].detach()
    counts = inputs()["attention_mask"].bool()
    rows = dropped.sum(-1).transpose(1, 2)[counts]
    assert float((rows - 1).abs().max()) > 0.01  # what transformers returns in training
    found = activations.attention[0].detach().softmax(-1).sum(-1).transpose(1, 2)[counts]
    torch.testing.assert_close(found, torch.ones_like(found))


@every
@pytest.mark.parametrize("own", ["sdpa", "eager"])
def test_recording_leaves_the_model_as_it_was(make, own):
    model = made(make)
    model.set_attn_implementation(own)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        expected = model(**inputs()).logits
        found, _ = run(model, inputs(), EVERYTHING)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(model(**inputs()).logits, expected)
    assert model.config._attn_implementation == own
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_model_is_as_it_was_after_an_error_too():
    model = made(bert)
    own = model.config._attn_implementation
    with pytest.raises(ValueError, match="input_ids"):
        run(model, {"no_such_input": torch.zeros(1)}, EVERYTHING)
    assert model.config._attn_implementation == own
    assert run(model, inputs(), None)[1] is None


def test_gradients_flow_through_everything_that_is_recorded():
    model = made(bert)
    _, activations = run(model, inputs(), EVERYTHING)
    for part in ("hidden", "query", "key", "value"):
        for layer, tensor in getattr(activations, part).items():
            assert tensor.requires_grad, (part, layer)
    scores = activations.attention[2]
    scores.masked_fill(scores.isinf(), 0.0).square().sum().backward()
    query = model.bert.encoder.layer[2].attention.self.query.weight
    assert float(query.grad.abs().sum()) > 0


@pytest.mark.parametrize("wanted", [Wanted(hidden=frozenset({0})), Wanted(attention=frozenset({0}))])
def test_a_model_that_gives_nothing_out_is_named(wanted):
    class Silent(BertForSequenceClassification):
        def forward(self, output_hidden_states=None, **inputs):
            return type("Output", (), {"logits": torch.zeros(3, 2)})

    model = Silent(BertConfig(**SMALL, intermediate_size=24))
    with pytest.raises(ModelError, match=r"a Silent does not (give out|hand)"):
        run(model, inputs(), wanted)


def language_models():
    torch.manual_seed(0)
    t5 = T5Config(
        vocab_size=60, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return [
        GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=3, n_head=4)),
        LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=24, tie_word_embeddings=False)),
        BertForMaskedLM(BertConfig(**SMALL, intermediate_size=24)),
        T5ForConditionalGeneration(t5),
    ]


@pytest.mark.parametrize("model", language_models(), ids=lambda model: type(model).__name__)
def test_the_output_layers_matrices_make_logits_of_what_it_read(model):
    model.train(mode=False)
    batch = inputs()
    if isinstance(model, T5ForConditionalGeneration):
        batch["decoder_input_ids"] = batch["input_ids"][:, :5]
    last = model.config.num_hidden_layers - 1
    logits, activations = run(model, batch, Wanted(output=frozenset({last})))
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True)
    torch.testing.assert_close(logits, expected.logits)
    output = activations.output[last]
    weights = token_weights(model)
    torch.testing.assert_close(weights.logits(output.flatten(0, 1)).unflatten(0, output.shape[:2]), logits)
    if isinstance(model, GPT2LMHeadModel | LlamaForCausalLM):
        torch.testing.assert_close(output, expected.hidden_states[-1])
    torch.testing.assert_close(
        weights.embedding[batch["input_ids"]], model.get_input_embeddings()(batch["input_ids"])
    )
    head = model.get_output_embeddings()
    assert not head._forward_pre_hooks
    with torch.no_grad():
        head.weight.mul_(2)
    torch.testing.assert_close(weights.head, head.weight, rtol=0, atol=0)
    few = token_weights(model, (7, 3))
    torch.testing.assert_close(few.head, head.weight[[7, 3]], rtol=0, atol=0)
    torch.testing.assert_close(few.embedding, weights.embedding[[7, 3]], rtol=0, atol=0)


def test_a_model_whose_logits_no_output_layer_alone_makes_has_no_matrices():
    assert token_weights(bert()) is None
    with pytest.raises(ModelError, match="has no output layer"):
        run(bert(), inputs(), Wanted(output=frozenset({2})))
    capped = LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=24))
    assert token_weights(capped) is not None
    capped.config.final_logit_softcapping = 30.0
    assert token_weights(capped) is None
