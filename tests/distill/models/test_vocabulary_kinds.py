"""Trimmed tokenizers of every kind, and models of several, read kept texts as before and everything else somehow."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from distill.errors import ModelError
from distill.models import keep_tokenizer_tokens, keep_tokens, needed_tokens
from distill.models.loading import load_tokenizer
from distill.models.source import find_model

from .tokenizer_kinds import KINDS, strings, tokenizer_of

STRINGS = strings()
INSIDE = STRINGS[::5]
SIZES = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def whole(kind):
    return tokenizer_of(kind)


def used_in(tokenizer, texts):
    return {token for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for token in ids}


@pytest.fixture(scope="module")
def kept(whole):
    return needed_tokens(whole, used_in(whole, INSIDE))


@pytest.fixture(scope="module")
def trimmed(whole, kept):
    return keep_tokenizer_tokens(whole, kept)


def old_ids(kept, tokenizer, text, pair=None):
    return [kept[token] for token in tokenizer(text, pair)["input_ids"]]


def test_texts_inside_have_the_same_pieces_and_texts_of_these_pieces_too(whole, trimmed, kept):
    assert len(STRINGS) >= 200
    assert len(kept) < len(whole) - 50
    for text, pair in zip(INSIDE, INSIDE[::-1], strict=True):
        assert old_ids(kept, trimmed, text) == whole(text)["input_ids"]
        assert old_ids(kept, trimmed, text, pair) == whole(text, pair)["input_ids"]
    # Any text whose pieces, and pieces on the way to them, are kept: not only those that decided.
    have = set(kept)
    inside = [text for text in STRINGS if set(whole(text)["input_ids"]) <= have]
    assert len(inside) > len(INSIDE)
    for text in inside:
        assert old_ids(kept, trimmed, text) == whole(text)["input_ids"]


def test_every_other_text_is_read_or_unknown_where_it_was(kind, whole, trimmed, kept):
    outside = [text for text in STRINGS if not set(whole(text)["input_ids"]) <= set(kept)]
    assert outside
    for text in STRINGS:
        ids = trimmed(text)["input_ids"]
        assert all(0 <= token < len(kept) for token in ids)
        if kind in ("bytes", "sentencepiece"):
            assert trimmed.unk_token_id is None or trimmed.unk_token_id not in ids
            assert trimmed.decode(ids) == whole.decode(whole(text)["input_ids"])
    sentence = "three lions read letters on their own"
    assert trimmed.unk_token_id not in trimmed(sentence)["input_ids"]
    assert len(trimmed(sentence)["input_ids"]) > len(whole(sentence)["input_ids"])


def test_the_saved_folder_loads_as_the_same_tokenizer(whole, trimmed, kept, tmp_path):
    trimmed.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in STRINGS:
        assert again(text)["input_ids"] == trimmed(text)["input_ids"]
    assert again.get_vocab() == trimmed.get_vocab()
    names = {token: name for name, token in whole.get_vocab().items()}
    assert again.get_vocab() == {names[token]: number for number, token in enumerate(kept)}
    assert again.special_tokens_map == whole.special_tokens_map
    message = [{"role": "user", "content": "the student"}]
    said = again.apply_chat_template(message, return_dict=False)
    assert [kept[token] for token in said] == whole.apply_chat_template(message, return_dict=False)
    assert again.tokenize("a <word> b").count("<word>") == 1


def test_keeping_every_token_is_the_identity(whole):
    everything = tuple(range(len(whole)))
    assert needed_tokens(whole, everything) == everything
    same = json.loads(keep_tokenizer_tokens(whole, everything).backend_tokenizer.to_str())
    assert same == json.loads(whole.backend_tokenizer.to_str())


def test_a_vocabulary_is_filled_up_with_the_most_useful_tokens(kind, whole, kept):
    wanted = len(kept) + 40
    filled = needed_tokens(whole, used_in(whole, INSIDE), wanted)
    assert set(kept) < set(filled)
    # The parts of BPE's last token may come beside it; in the order of merges there are none left to come.
    assert len(filled) == wanted
    new, left = set(filled) - set(kept), set(range(len(whole))) - set(filled)
    if kind == "unigram":
        vocabulary = json.loads(whole.backend_tokenizer.to_str())["model"]["vocab"]
        assert min(vocabulary[token][1] for token in new) >= max(vocabulary[token][1] for token in left)
    else:
        assert max(new) < min(left)
    again = keep_tokenizer_tokens(whole, filled)
    for text in INSIDE:
        assert old_ids(filled, again, text) == whole(text)["input_ids"]
    with pytest.raises(
        ModelError, match=rf"at_least must be at most the {len(whole)} tokens .* found 100000$"
    ):
        needed_tokens(whole, [], 100_000)


def test_unknown_letters_stay_as_dear_as_they_were():
    """Without the piece of the lowest score an unknown letter would cost less, and "qr" would be cut at it."""
    whole = tokenizer_of("unigram")
    layout = json.loads(whole.backend_tokenizer.to_str())
    layout["model"]["vocab"] += [["\u0416q", -40.0], ["r\u0416", -40.0], ["zzzz", -75.0]]
    layout["added_tokens"] = [token for token in layout["added_tokens"] if token["id"] < 4]
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    whole = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(layout)), pad_token="<pad>", unk_token="<unk>"
    )
    text = "r\u0416\u0416q"
    used = used_in(whole, [text])
    kept = needed_tokens(whole, used)
    assert old_ids(kept, keep_tokenizer_tokens(whole, kept), text) == whole(text)["input_ids"]
    dropped = whole.convert_tokens_to_ids("zzzz")
    cheaper = keep_tokenizer_tokens(whole, [token for token in kept if token != dropped])
    assert dropped in kept
    assert cheaper(text + " \u0416q")["input_ids"]  # it can be read, only not to be relied on


def llama(vocabulary: int, *, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=[1, vocabulary - 70],
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_with_padding_rows_reads_inside_texts_bitwise_alike(tied, tmp_path):
    tokenizer = tokenizer_of("bytes")
    model = llama(len(tokenizer) + 64, tied=tied)
    kept = needed_tokens(tokenizer, used_in(tokenizer, INSIDE))
    trimmed, small = keep_tokenizer_tokens(tokenizer, kept), keep_tokens(model, kept)
    assert small.config.vocab_size == len(kept) == len(trimmed)
    assert (small.lm_head.weight is small.model.embed_tokens.weight) == tied
    assert small.config.eos_token_id == small.generation_config.eos_token_id == [1]
    small.save_pretrained(tmp_path)
    small = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    theirs = tokenizer(INSIDE, padding=True, return_tensors="pt")
    ours = trimmed(INSIDE, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected, found = model(**theirs, output_hidden_states=True), small(**ours, output_hidden_states=True)
    assert torch.equal(found.hidden_states[-1], expected.hidden_states[-1])
    # A product with fewer columns may be summed in another order.
    torch.testing.assert_close(found.logits, expected.logits[..., list(kept)], rtol=0, atol=1e-6)
    assert torch.equal(small.lm_head.weight, model.lm_head.weight[list(kept)])


def test_tokens_that_no_text_gives_fill_up_last():
    layout = json.loads(tokenizer_of("wordpiece").backend_tokenizer.to_str())
    layout["added_tokens"] = layout["added_tokens"][:5]
    unused = [f"[unused{number}]" for number in range(30)]
    names = sorted(layout["model"]["vocab"], key=layout["model"]["vocab"].__getitem__)
    names = [*names[:5], *unused, *names[5:]]  # where BERT has them
    layout["model"]["vocab"] = {name: number for number, name in enumerate(names)}
    backend = Tokenizer.from_str(json.dumps(layout))
    whole = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    needed = needed_tokens(whole, [])
    kept = set(whole.convert_ids_to_tokens(needed_tokens(whole, [], len(needed) + 40)))
    assert len(kept) == len(needed) + 40
    assert not kept & set(unused)
    assert len(needed_tokens(whole, [], len(whole) - 10)) == len(whole) - 10
    assert len(needed_tokens(whole, [], len(whole))) == len(whole)


def test_a_masked_language_model_reads_inside_texts_bitwise_alike():
    tokenizer = tokenizer_of("unigram")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer) + 7, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = BertForMaskedLM(config).eval()
    model.cls.predictions.bias.data.normal_()
    short = [text for text in INSIDE if len(text) < 60]
    kept = needed_tokens(tokenizer, used_in(tokenizer, short))
    small, trimmed = keep_tokens(model, kept), keep_tokenizer_tokens(tokenizer, kept)
    theirs = tokenizer(short, padding=True, return_tensors="pt")
    ours = trimmed(short, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected, found = model(**theirs, output_hidden_states=True), small(**ours, output_hidden_states=True)
    assert torch.equal(found.hidden_states[-1], expected.hidden_states[-1])
    torch.testing.assert_close(found.logits, expected.logits[..., list(kept)], rtol=0, atol=1e-6)
    assert torch.equal(small.cls.predictions.bias, model.cls.predictions.bias[list(kept)])


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_keeps_rows_in_both_of_its_halves(family):
    torch.manual_seed(0)
    if family == "t5":
        model = T5ForConditionalGeneration(
            T5Config(
                vocab_size=40,
                d_model=16,
                d_kv=8,
                d_ff=32,
                num_layers=1,
                num_heads=2,
                decoder_start_token_id=0,
            )
        )
    else:
        sizes = {f"{half}_{name}": n for half in ("encoder", "decoder") for name, n in SIZES.items()}
        model = BartForConditionalGeneration(BartConfig(vocab_size=40, d_model=16, **sizes))
        model.final_logits_bias.normal_()
    kept = (0, 1, 2, 5, 9, 30, 39)
    small = keep_tokens(model.eval(), kept)
    ids, target = torch.tensor([[3, 4, 5, 1]]), torch.tensor([[0, 6, 2]])
    old = torch.tensor(kept)
    with torch.inference_mode():
        expected = model(input_ids=old[ids], decoder_input_ids=old[target]).logits[..., list(kept)]
        found = small(input_ids=ids, decoder_input_ids=target).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_published_llama_reads_a_story_with_fewer_tokens(data_root):
    folder = data_root / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"no model at {folder}")
    tokenizer = load_tokenizer(find_model(str(folder)))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    text = ["Once upon a time, there was a little dog.", "He liked to play\nwith a ball."]
    kept = needed_tokens(tokenizer, used_in(tokenizer, text))
    assert len(kept) < 450
    trimmed, small = keep_tokenizer_tokens(tokenizer, kept), keep_tokens(model, kept)
    for each in text:
        assert old_ids(kept, trimmed, each) == tokenizer(each)["input_ids"]
        theirs, ours = tokenizer(each, return_tensors="pt"), trimmed(each, return_tensors="pt")
        with torch.inference_mode():
            assert torch.equal(small.model(**ours).last_hidden_state, model.model(**theirs).last_hidden_state)
    for each in STRINGS:
        ids = trimmed(each)["input_ids"]
        assert trimmed.decode(ids) == tokenizer.decode(tokenizer(each)["input_ids"])
