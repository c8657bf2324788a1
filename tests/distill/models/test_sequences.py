"""Which token each row of a language model speaks of, and that its logits there are the model's own."""

from __future__ import annotations

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from distill.models import MaskedTokens, NextTokens, Student, TargetTokens

WORDS = 40


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    names = {"[PAD]": 0, "[MASK]": 1, "[CLS]": 2, "[SEP]": 3, "[UNK]": 4}
    backend = Tokenizer(models.WordLevel(names | {f"w{i}": i for i in range(5, WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        mask_token="[MASK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
    )


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=WORDS, **SMALL)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    ),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(
            vocab_size=WORDS, **SMALL, num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0
        )
    ),
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=WORDS, **SMALL)),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=WORDS, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
        )
    ),
    "bart": lambda: transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            vocab_size=WORDS,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            pad_token_id=0,
            decoder_start_token_id=3,
        )
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_the_models_own_logits_at_their_positions(name: str, tokenizer: PreTrainedTokenizerFast):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    texts = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16]]
    if name in ("t5", "bart"):
        data = TargetTokens(texts, [[20, 3], [21, 22, 23, 3], [24, 3]], tokenizer, start=0)
    elif name == "bert":
        data = MaskedTokens(texts, tokenizer, share=0.4)
    else:
        data = NextTokens(
            texts, [[False, False, True, True, True], [True] * 3, [False] * 3 + [True]], tokenizer
        )
    batch = data.batch([2, 0, 1])
    rows_NV = Student(model, tokenizer)(batch).logits_NC
    whole_BTV = model(**batch.inputs).logits
    assert torch.equal(rows_NV, whole_BTV[batch.rows_BT])
    assert len(rows_NV) == data.rows_of([2, 0, 1]) == len(batch.label_N) == len(batch.weight_N)
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_shift_stands_before_the_mask(tokenizer: PreTrainedTokenizerFast):
    data = NextTokens([[5, 6, 7, 8]], [[False, False, True, True]], tokenizer)
    batch = data.batch([0])
    assert batch.label_N.tolist() == [7, 8]
    assert batch.rows_BT.tolist() == [[False, True, True, False]]


def test_nothing_predicts_the_first_token(tokenizer: PreTrainedTokenizerFast):
    data = NextTokens([[5, 6, 7], [8]], None, tokenizer)
    batch = data.batch([0, 1], group=[3, 4])
    assert batch.label_N.tolist() == [6, 7]
    assert data.rows_of([1]) == 0
    assert batch.group_N.tolist() == [3, 3]


def test_a_decoders_row_is_its_likelihood_of_the_token_behind(tokenizer: PreTrainedTokenizerFast):
    """The mean over rows is what transformers calls the loss of these labels."""
    torch.manual_seed(0)
    model = MODELS["llama"]().eval()
    texts = [[5, 6, 7, 8, 9], [10, 11, 12]]
    counted = [[False, False, True, True, True], [False, True, True]]
    batch = NextTokens(texts, counted, tokenizer).batch([0, 1])
    labels = torch.full((2, 5), -100)
    for row, (ids, flags) in enumerate(zip(texts, counted, strict=True)):
        labels[row, : len(ids)] = torch.tensor([t if c else -100 for t, c in zip(ids, flags, strict=True)])
    theirs = model(**batch.inputs, labels=labels).loss
    ours = torch.nn.functional.cross_entropy(Student(model, tokenizer)(batch).logits_NC, batch.label_N)
    torch.testing.assert_close(ours, theirs)


def test_an_encoder_decoders_row_is_its_likelihood_of_the_target(tokenizer: PreTrainedTokenizerFast):
    torch.manual_seed(0)
    model = MODELS["t5"]().eval()
    data = TargetTokens([[5, 6], [7, 8, 9]], [[20, 21, 3], [22, 3]], tokenizer, start=0)
    batch = data.batch([0, 1])
    labels = torch.tensor([[20, 21, 3], [22, 3, -100]])
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    theirs = model(**inputs, labels=labels).loss
    ours = torch.nn.functional.cross_entropy(Student(model, tokenizer)(batch).logits_NC, batch.label_N)
    torch.testing.assert_close(ours, theirs)


def test_masks_are_drawn_by_seed_epoch_and_text(tokenizer: PreTrainedTokenizerFast):
    texts = [[2, *range(5, 35), 3], [2, *range(9, 29), 3]]
    data = MaskedTokens(texts, tokenizer, seed=1)
    first, again, later = data.batch([0, 1]), data.batch([0, 1]), data.batch([0, 1], epoch=1)
    assert torch.equal(first.inputs["input_ids"], again.inputs["input_ids"])
    assert not torch.equal(first.inputs["input_ids"], later.inputs["input_ids"])
    assert int(later.rows_BT.sum()) == data.rows_of([0, 1]) == round(0.15 * 30) + round(0.15 * 20)
    alone = data.batch([1])
    assert torch.equal(alone.inputs["input_ids"][0], first.inputs["input_ids"][1, : len(texts[1])])


def test_what_is_hidden_is_what_is_asked_for(tokenizer: PreTrainedTokenizerFast):
    texts = [[2, *([7, 8, 9, 10] * 50), 3]] * 20
    data = MaskedTokens(texts, tokenizer, seed=0)
    batch = data.batch(range(20))
    original_BT = torch.tensor(texts)
    read_BT = batch.inputs["input_ids"]
    assert torch.equal(original_BT[batch.rows_BT], batch.label_N)
    assert torch.equal(original_BT[~batch.rows_BT], read_BT[~batch.rows_BT])
    hidden = (read_BT[batch.rows_BT] == tokenizer.mask_token_id).float().mean()
    kept = (read_BT[batch.rows_BT] == batch.label_N).float().mean()
    assert 0.74 < hidden < 0.86
    assert 0.06 < kept < 0.16


def test_a_tokenizer_without_a_mask_is_refused(tokenizer: PreTrainedTokenizerFast):
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]")
    with pytest.raises(ValueError, match="no mask token"):
        MaskedTokens([[5, 6]], plain)
