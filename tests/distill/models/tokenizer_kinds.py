"""A small tokenizer of each kind, trained here, and strings of every sort to read."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = ("wordpiece", "unigram", "bytes", "sentencepiece")
TEXT = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. "
TRAINING = [*TEXT.splitlines(), RUSSIAN * 3, "naïve café 東京 東京 🙂🙂"]
OTHER = [
    *(Path(__file__).parents[3] / "LICENSE").read_text().splitlines(),
    RUSSIAN.upper(),
    RUSSIAN,
    "東京 🙂",
]
CHAT = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"

PIECES = [
    "the student", "Teacher's", "vocabulary", "zebras quarrelled", "Семьи", "ёлка", "наречие", "東京", "日本語",
    "שלום", "مرحبا بالعالم", "हिन्दी", "👩‍👩‍👧‍👦", "🙂", "🇫🇷", "e\u0301", "n\u0303o", "\u200d", "\ufeff", "\u202eabc",
    "Ωmega", "ﬁne", "x" * 40, "aaaa", "  ", "\t", "\n\n", "\u00a0", "\u3000", "...", "--", "<0x41>", "▁", "Ġ", "##ing",
    "3.14159", "e-mail@example.org", "\x00", "\x1f", "𝔘𝔫𝔦", "Ⅷ", "", "I'm", "don't", "CamelCaseWords", "snake_case_word",
]  # fmt: skip


def strings() -> list[str]:
    """250 strings: single pieces, runs of white space, and random sentences of pieces."""
    draw = random.Random(0)
    runs = (
        [" " * n for n in range(1, 9)]
        + ["\n" * n for n in range(1, 5)]
        + [" a  b   c    ", " lead", "trail "]
    )
    mixed = [
        draw.choice(("", " ", "  ")).join(draw.choices(PIECES, k=draw.randrange(2, 7)))
        for _ in range(250 - len(PIECES) - len(runs))
    ]
    return [*PIECES, *runs, *mixed]


def tokenizer_of(kind: str, size: int = 700) -> PreTrainedTokenizerBase:
    """A tokenizer whose settings are those of BERT, XLM-R, GPT-2 or Llama, with a chat template and an added word."""
    made = {"wordpiece": _wordpiece, "unigram": _unigram, "bytes": _bytes, "sentencepiece": _sentencepiece}[
        kind
    ](size)
    made.chat_template = CHAT
    made.add_tokens([AddedToken("<word>", normalized=False)])
    return made


def _wordpiece(size: int) -> PreTrainedTokenizerBase:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        TRAINING, trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    )
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip


def _unigram(size: int) -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(_regex(r"\s+"), " "), normalizers.Strip()]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    backend.train_from_iterator(
        TRAINING,
        trainers.UnigramTrainer(
            vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    # The mask stands at the end, as XLM-R's does.
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        mask_token="<mask>",
    )  # fmt: skip


def _bytes(size: int) -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TRAINING, trainer)
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def _sentencepiece(size: int) -> PreTrainedTokenizerBase:
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    rules = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence(rules)
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    backend.train_from_iterator(
        TRAINING, trainers.BpeTrainer(vocab_size=size + 256, special_tokens=special, show_progress=False)
    )
    # In the file the bytes are tokens like any other, and nothing is split beforehand, as with Llama.
    layout = json.loads(backend.to_str())
    layout["pre_tokenizer"] = None
    layout["added_tokens"] = layout["added_tokens"][:3]
    backend = Tokenizer.from_str(json.dumps(layout))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def _regex(pattern: str) -> object:
    from tokenizers import Regex

    return Regex(pattern)
