"""Four small tokenizers, one for each way to write tokens."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from distill.alignment import TokenReader

CORPUS = [
    "The cat sat on the mat, and the other cat didn't. Hello, hello world! It's 12 o'clock.",
    "Привет, мир! Кошка сидела на ковре, а другая кошка спала.",
    "naïve café, Ångström, 東京の日本語、 שלום עולם ﬁne ½ 🙂👩‍👩‍👧",
    "the theatre of the thereabouts; reading, readers and rereaders read  the\n\tbook",
] * 4
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return made


def _wordpiece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=250, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def _unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(" +", " "), normalizers.Strip()]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = ["<s>", "</s>", "<unk>"]
    made.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return made


def _sentencepiece() -> Tokenizer:
    rules = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made = Tokenizer(models.BPE())
    made.normalizer = rules
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=160, limit_alphabet=40, show_progress=False)
    )
    layout = json.loads(made.to_str())
    names = ["<unk>", "<s>", "</s>", *BYTES, *layout["model"]["vocab"]]
    vocabulary = {name: number for number, name in enumerate(names)}
    merges = [tuple(merge) for merge in layout["model"]["merges"]]
    made = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    made.normalizer = rules
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return made


@pytest.fixture(scope="session")
def readers() -> dict[str, TokenReader]:
    """By the way they write tokens."""
    made = {
        "byte_level": PreTrainedTokenizerFast(tokenizer_object=_byte_level(), eos_token="<|end|>"),
        "wordpiece": PreTrainedTokenizerFast(
            tokenizer_object=_wordpiece(),
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            pad_token="[PAD]",
            mask_token="[MASK]",
        ),
        "unigram": PreTrainedTokenizerFast(
            tokenizer_object=_unigram(), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        ),
        "sentencepiece": PreTrainedTokenizerFast(
            tokenizer_object=_sentencepiece(), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        ),
    }
    return {name: TokenReader(tokenizer) for name, tokenizer in made.items()}
