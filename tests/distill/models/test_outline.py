"""A model's sizes are those of its tensors."""

from __future__ import annotations

from transformers import AutoModel, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from distill.models import outline


def test_of_an_encoder(tiny_bert):
    model = AutoModel.from_pretrained(tiny_bert)
    assert outline(model) == {"layers": 4, "width": 32, "heads": 2, "neurons": 64, "tokens": 30522}
    assert len(model.encoder.layer) == 4
    assert model.embeddings.word_embeddings.weight.shape == (30522, 32)


def test_of_a_decoder(tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    tokens = model.get_input_embeddings().weight.shape[0]
    assert outline(model) == {"layers": 3, "width": 32, "heads": 4, "neurons": 64, "tokens": tokens}


def test_of_an_encoder_and_decoder():
    config = T5Config(
        vocab_size=50, d_model=16, d_kv=4, d_ff=24, num_layers=3, num_decoder_layers=2, num_heads=4
    )
    model = T5ForConditionalGeneration(config)
    assert outline(model) == {
        "layers": 3,
        "decoder_layers": 2,
        "width": 16,
        "heads": 4,
        "neurons": 24,
        "tokens": 50,
    }
