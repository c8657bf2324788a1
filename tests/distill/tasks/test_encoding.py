"""Encoding, against the tokenizers' own calls. The tokenizers are trained here, on a few lines."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from distill.tasks import Example, encode

SENTENCE = "the cat sat on a mat while seven wet dogs ran far away from it because nobody had fed them today"
WORDS = SENTENCE.split()
LINES = [" ".join(WORDS), "* # : . , ? \" ' @ [ ]", "\n".join(WORDS[::-1])]


def wordpiece() -> PreTrainedTokenizerFast:
    """As BERT: [CLS] first [SEP] second [SEP], with token types."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=inputs, **names)


def byte_level(template: bool = False) -> PreTrainedTokenizerFast:
    """As GPT-2 (nothing around or between the texts) or, with a template, as RoBERTa (<s> a </s></s> b </s>)."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    if template:
        made.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    else:
        made.post_processor = processors.ByteLevel(trim_offsets=False)
    names = {"pad_token": "</s>", "eos_token": "</s>", "bos_token": "<s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, model_input_names=["input_ids", "attention_mask"], **names
    )


TOKENIZERS = {"wordpiece": wordpiece(), "roberta": byte_level(template=True), "gpt2": byte_level()}


def text(draw: random.Random, most: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, most)))


def examples(
    seed: int, count: int = 40, choices: int = 1, first: int = 60, second: int = 12
) -> list[Example]:
    draw = random.Random(seed)
    pairs = [tuple((text(draw, first), text(draw, second)) for _ in range(choices)) for _ in range(count)]
    return [Example(str(n), pair, 0, str(n)) for n, pair in enumerate(pairs)]


def separated(tokenizer, second: str) -> str:
    return "\n" + second if tokenizer is TOKENIZERS["gpt2"] else second


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("truncate", ["only_first", "longest_first"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_features_are_what_the_tokenizer_makes_of_each_pair_alone(name, truncate, side):
    tokenizer = TOKENIZERS[name]
    tokenizer.truncation_side = side
    try:
        given = examples(1)
        made = encode(given, tokenizer, max_length=48, truncate=truncate)
        cut = 0
        for example, (row,), length in zip(given, made.features, made.lengths, strict=True):
            first, second = example.texts[0]
            second = separated(tokenizer, second)
            expected = tokenizer(first, second, truncation=truncate, max_length=48)
            assert row == dict(expected)
            assert length == len(row["input_ids"]) <= 48
            cut += len(tokenizer(first, second)["input_ids"]) > 48
        assert 0 < made.truncated == cut < len(given)
    finally:
        tokenizer.truncation_side = "right"


def test_a_tokenizer_with_token_types_keeps_them_and_one_without_gets_none():
    (row,) = encode(examples(2, 1), TOKENIZERS["wordpiece"], max_length=32, truncate="only_first").features[0]
    assert set(row) == {"input_ids", "attention_mask", "token_type_ids"}
    assert {0, 1} == set(row["token_type_ids"])
    (row,) = encode(examples(2, 1), TOKENIZERS["roberta"], max_length=32, truncate="only_first").features[0]
    assert set(row) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_only_first_keeps_the_whole_second_text(name):
    tokenizer = TOKENIZERS[name]
    given = examples(3, first=200, second=8)
    made = encode(given, tokenizer, max_length=48, truncate="only_first")
    assert made.truncated > 20
    for example, (row,) in zip(given, made.features, strict=True):
        second = tokenizer(separated(tokenizer, example.texts[0][1]), add_special_tokens=False)["input_ids"]
        ids = [number for number in row["input_ids"] if number not in tokenizer.all_special_ids]
        assert ids[-len(second) :] == second


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_second_text_that_is_too_long_alone_is_cut_as_well(name):
    tokenizer = TOKENIZERS[name]
    second = " ".join(WORDS * 4)
    one = Example("0", (("the cat sat", second),), 0, "0")
    made = encode([one, *examples(4, 3, first=3, second=3)], tokenizer, max_length=32, truncate="only_first")
    expected = tokenizer(
        "the cat sat", separated(tokenizer, second), truncation="longest_first", max_length=32
    )
    assert made.features[0] == [dict(expected)]
    assert made.truncated == 1


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("room", [0, 1])
def test_the_first_text_keeps_one_token_at_least(name, room):
    tokenizer = TOKENIZERS[name]
    first, second = "the cat sat on a mat", "seven wet dogs ran far"
    behind = separated(tokenizer, second)
    special = tokenizer.num_special_tokens_to_add(pair=True)
    most = len(tokenizer(behind, add_special_tokens=False)["input_ids"]) + special + room
    made = encode(
        [Example("0", ((first, second),), 0, "0")], tokenizer, max_length=most, truncate="only_first"
    )
    strategy = "only_first" if room else "longest_first"
    assert made.features[0] == [dict(tokenizer(first, behind, truncation=strategy, max_length=most))]
    assert made.lengths == [most]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_pair_that_just_fits_is_not_counted_as_truncated(name):
    tokenizer = TOKENIZERS[name]
    (example,) = given = examples(5, 1)
    first, second = example.texts[0]
    whole = len(tokenizer(first, separated(tokenizer, second))["input_ids"])
    assert encode(given, tokenizer, max_length=whole, truncate="only_first").truncated == 0
    assert encode(given, tokenizer, max_length=whole - 1, truncate="only_first").truncated == 1


def test_an_example_counts_once_however_many_of_its_choices_are_cut():
    given = examples(6, 20, choices=3)
    made = encode(given, TOKENIZERS["wordpiece"], max_length=24, truncate="longest_first")
    assert [len(choices) for choices in made.features] == [3] * 20
    whole = [
        [len(TOKENIZERS["wordpiece"](*pair)["input_ids"]) for pair in example.texts] for example in given
    ]
    assert made.truncated == sum(max(lengths) > 24 for lengths in whole)
    assert made.lengths == [min(max(lengths), 24) for lengths in whole]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_single_texts_are_encoded_without_a_second(name):
    given = [Example("0", (("the cat sat on the mat", None),), 0, "0"), *examples(7, 2)]
    made = encode(given, TOKENIZERS[name], max_length=64, truncate="only_first")
    assert made.features[0] == [dict(TOKENIZERS[name]("the cat sat on the mat"))]


def test_texts_of_a_pair_are_separated_by_a_line_break_where_the_tokenizer_separates_nothing():
    given = [Example("0", (("the cat", "sat"),), 0, "0")]
    made = encode(given, TOKENIZERS["gpt2"], max_length=32, truncate="only_first")
    assert TOKENIZERS["gpt2"].decode(made.features[0][0]["input_ids"]) == "the cat\nsat"


def test_the_tokenizers_own_truncation_and_padding_are_left_as_they_were():
    tokenizer = wordpiece()
    tokenizer("the cat", "sat", truncation="longest_first", max_length=20, padding="max_length")
    backend = tokenizer.backend_tokenizer
    before = (backend.truncation, backend.padding)
    assert None not in before
    made = encode(examples(8, 3), tokenizer, max_length=16, truncate="only_first")
    assert (backend.truncation, backend.padding) == before
    assert all(0 not in row["input_ids"] for (row,) in made.features)


class Slow:
    """A tokenizer without a fast backend."""

    is_fast = False

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.num_special_tokens_to_add = tokenizer.num_special_tokens_to_add

    def __call__(self, *arguments, **options):
        return self.tokenizer(*arguments, **options)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("truncate", ["only_first", "longest_first"])
def test_slow_tokenizers_give_the_same_features(name, truncate):
    long = Example("0", (("the cat", " ".join(WORDS * 4)),), 0, "0")
    single = Example("1", ((" ".join(WORDS * 4), None),), 0, "1")
    given = [long, single, *examples(9, 20, choices=2)]
    fast = encode(given, TOKENIZERS[name], max_length=40, truncate=truncate)
    assert encode(given, Slow(TOKENIZERS[name]), max_length=40, truncate=truncate) == fast
    assert 2 < fast.truncated < 22


def test_batches_do_not_show_in_the_result(monkeypatch):
    given = examples(10, 30)
    whole = encode(given, TOKENIZERS["wordpiece"], max_length=40, truncate="only_first")
    monkeypatch.setattr("distill.tasks.encoding.BATCH", 7)
    assert encode(given, TOKENIZERS["wordpiece"], max_length=40, truncate="only_first") == whole


def test_nothing_to_encode_is_fine():
    made = encode([], TOKENIZERS["wordpiece"], max_length=40, truncate="only_first")
    assert (made.features, made.lengths, made.truncated) == ([], [], 0)


def test_arguments_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="max_length must be at least 5 for this tokenizer, got 4"):
        encode(examples(11, 1), TOKENIZERS["wordpiece"], max_length=4, truncate="only_first")
    with pytest.raises(
        ValueError, match="truncate must be 'only_first' or 'longest_first', got 'only_second'"
    ):
        encode(examples(11, 1), TOKENIZERS["wordpiece"], max_length=40, truncate="only_second")
    tight = encode(examples(11, 5), TOKENIZERS["wordpiece"], max_length=5, truncate="only_first")
    assert tight.lengths == [5] * 5


def test_marks_and_questions_of_the_official_tasks_survive_a_llama_tokenizer(superglue, official):
    folder = superglue.parent / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"no tokenizer in {folder}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name in ("wic", "wsc", "copa"):
        given = official(name).validation[:40]
        made = encode(given, tokenizer, max_length=2048, truncate=official(name).task.truncate)
        assert made.truncated == 0
        for example, rows in zip(given, made.features, strict=True):
            for (first, second), row in zip(example.texts, rows, strict=True):
                shown = tokenizer.decode(row["input_ids"], skip_special_tokens=True)
                assert "".join(shown.split()) == "".join((first + second).split())
