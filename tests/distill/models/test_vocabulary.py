"""A student that keeps some of its teacher's tokens reads them as before, and everything else somehow."""

from __future__ import annotations

import json
import tempfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
)

from distill.errors import ModelError
from distill.models import Batch, Student, Teacher, keep_tokenizer_tokens, keep_tokens, needed_tokens
from distill.models.loading import load_model
from distill.models.source import find_model

LABELS = ("no", "yes")
INSIDE = [
    "The cat sat on the mat, and 3 dogs barked.",
    "Unbelievable! She didn't re-read the letters.",
    "",
    "naïve café, 東京 and émigrés",
    "[MASK] is a [SEP] token",
]
OUTSIDE = ["zebras quarrelled magnificently", "🙂 ☃", "Ωmega", "שלום", "x" * 300, "\x00\ud7ff", "日本"]


@pytest.fixture(scope="module")
def whole(tiny_bert):
    return load_model(find_model(str(tiny_bert)), kind="classification", labels=LABELS, seed=0).eval()


@pytest.fixture(scope="module")
def kept(tokenizer) -> tuple[int, ...]:
    return needed_tokens(tokenizer, {token for ids in tokenizer(INSIDE)["input_ids"] for token in ids})


@pytest.fixture(scope="module")
def trimmed(tokenizer, kept):
    return keep_tokenizer_tokens(tokenizer, kept)


@pytest.fixture(scope="module")
def student(whole, kept):
    return keep_tokens(whole, kept)


def test_texts_inside_the_vocabulary_have_the_same_pieces_and_bitwise_the_same_logits(
    whole, tokenizer, student, trimmed, kept
):
    assert len(kept) < 400
    assert len(trimmed) == len(kept) == student.config.vocab_size
    theirs = tokenizer(INSIDE, INSIDE[::-1], padding=True, return_tensors="pt")
    ours = trimmed(INSIDE, INSIDE[::-1], padding=True, return_tensors="pt")
    assert torch.equal(torch.tensor(kept)[ours["input_ids"]], theirs["input_ids"])
    assert torch.equal(ours["attention_mask"], theirs["attention_mask"])
    assert torch.equal(ours["token_type_ids"], theirs["token_type_ids"])
    with torch.inference_mode():
        assert torch.equal(student(**ours).logits, whole(**theirs).logits)


@settings(max_examples=150, deadline=None)
@given(words=st.lists(st.sampled_from(" ".join(INSIDE).split()), max_size=12))
def test_any_text_of_kept_words_has_the_same_pieces(tokenizer, trimmed, kept, words):
    text = " ".join(words)
    assert [kept[token] for token in trimmed(text)["input_ids"]] == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("text", OUTSIDE)
def test_a_text_outside_the_vocabulary_is_still_read(student, trimmed, text):
    made = trimmed(text, return_tensors="pt")
    assert int(made["input_ids"].max()) < len(trimmed)
    with torch.inference_mode():
        assert student(**made).logits.isfinite().all()


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_at_all_is_cut_into_kept_tokens(trimmed, text):
    assert all(0 <= token < len(trimmed) for token in trimmed(text)["input_ids"])


def test_a_word_in_known_letters_is_spelled_and_only_foreign_letters_are_unknown(tokenizer, trimmed):
    spelled = trimmed.tokenize("zebras")
    assert "".join(piece.removeprefix("##") for piece in spelled) == "zebras"
    assert tokenizer.tokenize("zebras") != spelled
    assert trimmed.tokenize("שלום") == ["[UNK]"]


def test_keeping_every_token_is_the_identity(whole, tokenizer):
    everything = tuple(range(len(tokenizer)))
    assert needed_tokens(tokenizer, everything) == everything
    same = keep_tokenizer_tokens(tokenizer, everything)
    assert same.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    copy = keep_tokens(whole, everything)
    assert copy.config.to_dict() == whole.config.to_dict()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(copy.state_dict()[name], tensor)


def test_a_saved_student_loads_with_the_auto_classes_and_names_its_tokens(tiny_bert, tokenizer, tmp_path):
    used = tokenizer("the cat sat")["input_ids"]
    student = Student.from_teacher(
        str(tiny_bert), layers=(0, 2), kind="classification", labels=LABELS, used_tokens=used
    )
    student.save(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*INSIDE, *OUTSIDE]:
        assert again(text)["input_ids"] == student.tokenizer(text)["input_ids"]
    assert again.get_vocab() == student.tokenizer.get_vocab()
    assert (again.pad_token_id, again.unk_token_id, again.mask_token_id) == tuple(
        again.get_vocab()[name] for name in ("[PAD]", "[UNK]", "[MASK]")
    )
    assert not (tmp_path / "vocab.txt").exists()
    config = (tmp_path / "tokenizer_config.json").read_text()
    assert tempfile.gettempdir() not in config.replace(str(tiny_bert), "")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for name, tensor in student.model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    tokens = json.loads((tmp_path / "provenance.json").read_text())["tokens"]
    assert tuple(tokens) == student.tokens
    assert student.start["tokens"] == len(tokens)
    theirs = {number: name for name, number in tokenizer.get_vocab().items()}
    assert {theirs[token]: number for number, token in enumerate(tokens)} == again.get_vocab()


def test_output_rows_go_with_the_embeddings_they_are_tied_to():
    torch.manual_seed(0)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
    ).eval()
    model.cls.predictions.bias.data.normal_()
    kept = (0, 3, 7, 20, 59)
    small = keep_tokens(model, kept)
    ids = torch.tensor([[1, 4, 2, 3]])
    with torch.inference_mode():
        whole_TV = model(torch.tensor(kept)[ids]).logits
        # A product with fewer columns may be summed in another order.
        torch.testing.assert_close(small(ids).logits, whole_TV[..., list(kept)], rtol=0, atol=1e-6)
    assert small.cls.predictions.decoder.weight is small.bert.embeddings.word_embeddings.weight


def test_a_teacher_reads_a_students_token_ids(whole, tokenizer, trimmed, kept):
    teacher = Teacher(whole, tokenizer)

    def batch(made):
        one = torch.ones(len(INSIDE))
        return Batch(dict(made), torch.arange(len(INSIDE)), None, one, one.long())

    own = teacher(batch(tokenizer(INSIDE, padding=True, return_tensors="pt")))
    read = teacher.reading(kept)(batch(trimmed(INSIDE, padding=True, return_tensors="pt")))
    assert torch.equal(own.logits_NC, read.logits_NC)


def test_what_cannot_be_trimmed_is_refused_in_one_line(whole, tokenizer, kept):
    from tokenizers import Tokenizer
    from tokenizers.models import BPE, WordLevel

    for model, kind in (
        (WordLevel({"a": 0}, unk_token="a"), "WordLevel"),
        (BPE(end_of_word_suffix="</w>"), "BPE with marked word parts,"),
    ):
        other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), pad_token="[PAD]")
        with pytest.raises(
            ModelError, match=f"only WordPiece, Unigram and BPE tokenizers can be changed, found a {kind} tok"
        ):
            needed_tokens(other, [0])
    with pytest.raises(ModelError, match="the special token 100 must be kept"):
        keep_tokenizer_tokens(tokenizer, [token for token in kept if token != 100])
    with pytest.raises(ModelError, match="must increase"):
        keep_tokenizer_tokens(tokenizer, kept[::-1])
    with pytest.raises(ModelError, match="the padding token 0 must be kept"):
        keep_tokens(whole, kept[1:])
    with pytest.raises(ModelError, match="30522 embeddings end at 30521"):
        keep_tokens(whole, (0, 30522))
