"""Tokens of two tokenizers are grouped by the bytes of the original text they cover."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.alignment import (
    SharedVocabulary,
    SourceText,
    TokenReader,
    TokenSpans,
    align_spans,
    align_texts,
    read_texts,
)
from distill.errors import AlignmentError

KINDS = ("byte_level", "wordpiece", "unigram", "sentencepiece")
TEXTS = [
    "",
    " ",
    "\n\n\t ",
    "Hello, world!",
    " lead and trail ",
    "a 🙂b  c\n\n x",
    "👩‍👩‍👧 family",
    "ﬁ É ½ İ ㎏",
    "日本語 and 東京",
    "שלום עולם",
    "cafe\u0301 x",
    "naïve CAFÉ",
    "Привет, КОШКА",
    "<s> in the text </s> [UNK] <|end|>",
    "\u200bzero\u200bwidth\u00a0space",
    "x" * 150,
    "\x00 control",
]
WORDS = st.sampled_from(
    [
        "the",
        "cat",
        "Hello",
        "didn't",
        "кошка",
        "Привет",
        "東京",
        "🙂",
        "👩\u200d👩\u200d👧",
        "café",
        "é",
        "½",
        "ﬁ",
        "שלום",
        "",
        "\t",
        "\n",
        ".",
        ",",
        "<s>",
    ]
)
TEXT = st.one_of(
    st.text(max_size=30),
    st.lists(WORDS, max_size=12).map(" ".join),
    st.lists(WORDS, max_size=8).map("".join),
)


def ends_that_meet(own, other) -> list[tuple[int, int]]:
    """Brute force: pairs of tokens with width that end at the same byte."""
    return [
        (i, j)
        for i in range(len(own))
        for j in range(len(other))
        if own.start_T[i] < own.end_T[i] == other.end_T[j] > other.start_T[j]
    ]


def check(own, other, text: str) -> None:
    aligned = align_spans(own, other)
    data = text.encode()
    for spans in (own, other):
        assert (spans.start_T <= spans.end_T).all()
        assert (spans.end_T[:-1] <= spans.start_T[1:]).all()
        covered = np.zeros(len(data), int)
        for start, end, known in zip(spans.start_T, spans.end_T, spans.known_T, strict=True):
            covered[start:end] += known
        for start, end in spans.uncovered():
            covered[start:end] += 1
        assert (covered == 1).all()  # every byte once, or reported
    flipped = align_spans(other, own)
    assert (flipped.teacher_first_G == aligned.student_first_G).all()
    assert (flipped.teacher_count_G == aligned.student_count_G).all()
    assert (flipped.student_id_K == aligned.teacher_id_K).all()
    for spans, first, count, ids, left in (
        (
            own,
            aligned.student_first_G,
            aligned.student_count_G,
            aligned.student_id_K,
            aligned.coverage.student_left,
        ),
        (
            other,
            aligned.teacher_first_G,
            aligned.teacher_count_G,
            aligned.teacher_id_K,
            aligned.coverage.teacher_left,
        ),
    ):
        assert (count > 0).all()
        assert (first[:-1] + count[:-1] <= first[1:]).all()
        assert count.sum() + left == len(spans)
        places = [p for f, c in zip(first, count, strict=True) for p in range(f, f + c)]
        token = dict(zip(spans.position_T.tolist(), spans.id_T.tolist(), strict=True))
        assert [token[p] for p in places] == ids.tolist()
    # Each group's last tokens end together, and nothing but these pairs and tokens without width ends a group.
    meet = ends_that_meet(own, other)
    number = [{p: i for i, p in enumerate(side.position_T.tolist())} for side in (own, other)]
    last = [
        (number[0][f + c - 1], number[1][g + d - 1])
        for f, c, g, d in zip(
            aligned.student_first_G,
            aligned.student_count_G,
            aligned.teacher_first_G,
            aligned.teacher_count_G,
            strict=True,
        )
    ]
    assert all(pair in meet or (pair[0] in own.hidden and pair[1] in other.hidden) for pair in last)
    if not (own.hidden and other.hidden):
        assert len(meet) == len(aligned) + aligned.coverage.broken
    # Both sides read the same letters in a group.
    begin = 0
    for (i, j), (f, c, g, d) in zip(
        last,
        zip(
            aligned.student_first_G,
            aligned.student_count_G,
            aligned.teacher_first_G,
            aligned.teacher_count_G,
            strict=True,
        ),
        strict=True,
    ):
        texts = []
        for spans, at, first, count in ((own, number[0], f, c), (other, number[1], g, d)):
            parts = [data[spans.start_T[at[p]] : spans.end_T[at[p]]] for p in range(first, first + count)]
            texts.append("".join(b"".join(parts).decode("utf-8", "surrogateescape").split()))
        assert texts[0] == texts[1]
        assert begin <= own.end_T[i]
        begin = int(own.end_T[i])
        del j


@pytest.mark.parametrize(("first", "second"), list(itertools.product(KINDS, KINDS)))
def test_groups_cover_the_same_bytes_of_troublesome_texts(readers, first, second):
    for text in TEXTS:
        check(readers[first].read(text), readers[second].read(text), text)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT, pair=st.sampled_from(list(itertools.product(KINDS, KINDS))))
def test_groups_cover_the_same_bytes_of_any_text(readers, text, pair):
    check(readers[pair[0]].read(text), readers[pair[1]].read(text), text)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT, kind=st.sampled_from(KINDS))
def test_one_tokenizer_is_aligned_with_itself_token_by_token(readers, text, kind):
    spans = readers[kind].read(text)
    aligned = align_spans(spans, spans)
    assert (aligned.student_count_G == 1).all()
    assert (aligned.student_first_G == aligned.teacher_first_G).all()
    if spans.known_T.all() and spans.ink_T.sum() == SourceText(text).ink[-1]:
        assert len(aligned) == len(spans)


def test_a_character_in_several_tokens_has_its_bytes_divided(readers):
    for kind in ("byte_level", "sentencepiece"):
        spans = readers[kind].read("a 🦄")
        assert spans.end_T[-3:].tolist() == [4, 5, 6]
        assert not spans.uncovered()


def test_groups_by_hand():
    """`un|break|able` and `unb|reak|able`: two ends in common."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    def reader(pieces: list[str]) -> TokenReader:
        words = {piece if n == 0 else f"##{piece}": n + 1 for n, piece in enumerate(pieces)} | {"?": 0}
        model = models.WordPiece(words, unk_token="?")
        return TokenReader(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="?"))

    own, other = reader(["un", "break", "able"]), reader(["unb", "reak", "able"])
    aligned = align_spans(own.read("unbreakable"), other.read("unbreakable"))
    assert aligned.student_first_G.tolist() == [0, 2]
    assert aligned.student_count_G.tolist() == [2, 1]
    assert aligned.teacher_count_G.tolist() == [2, 1]
    assert aligned.student_id_K.tolist() == [1, 2, 3]
    assert aligned.student_next_G.tolist() == [3, -1]


def test_normalisation_that_makes_several_tokens_of_a_character_ends_it_with_the_last(readers):
    spans = readers["unigram"].read("½")
    assert int(spans.end_T[-1]) == 2
    assert all(end == 0 for end in spans.end_T[:-1].tolist())


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("trim", [False, True])
def test_offsets_that_leave_spaces_out_change_nothing(readers, prefix, trim):
    """GPT-2 and RoBERTa do not say that ` cat` has a space, and put one before the text."""
    import copy

    from tokenizers import pre_tokenizers, processors

    tokenizer = copy.deepcopy(readers["byte_level"].tokenizer)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(
        trim_offsets=trim, add_prefix_space=prefix
    )
    reader = TokenReader(tokenizer)
    for text in TEXTS:
        if "<|end|>" in text and prefix:
            continue  # a space before every stretch between special tokens
        spans = reader.read(text)
        assert not spans.uncovered()
        check(spans, readers["wordpiece"].read(text), text)
        if not prefix:
            assert spans.end_T.tolist() == readers["byte_level"].read(text).end_T.tolist()


def test_a_composing_byte_level_tokenizer_still_divides_what_it_did_not_change(readers):
    """Qwen composes characters first, so the tokens do not spell the text any more."""
    import copy

    from tokenizers import normalizers

    tokenizer = copy.deepcopy(readers["byte_level"].tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    reader = TokenReader(tokenizer)
    text = "cafe\u0301 🦄"
    spans = reader.read(text)
    assert spans.end_T[-3:].tolist() == [9, 10, 11]
    for other in readers.values():
        check(spans, other.read(text), text)


def test_an_unknown_token_breaks_its_group_alone(readers):
    own, other = readers["wordpiece"].read("cat 🦄 cat"), readers["byte_level"].read("cat 🦄 cat")
    aligned = align_spans(own, other)
    assert aligned.coverage.broken == 1
    assert len(aligned) == 2
    assert (4, 8) in [(max(a, 4), min(b, 8)) for a, b in own.uncovered()]


def test_half_a_character_that_is_unknown_breaks_its_group():
    """`㎏` of three bytes, read as `k` and `g` where `k` is unknown."""

    def spans(known: list[bool]) -> TokenSpans:
        place, end = np.arange(2), np.array([0, 3])
        return TokenSpans(place, place, np.array([0, 0]), end, np.array(known), end, end, {0: b"k"}, 3)

    whole, half = spans([True, True]), spans([False, True])
    assert align_spans(whole, whole).coverage.broken == 0
    assert align_spans(half, whole).coverage.broken == align_spans(whole, half).coverage.broken == 1


def test_a_letter_is_paired_before_the_byte_that_spells_it(readers):
    own, other = readers["sentencepiece"], readers["byte_level"]
    shared = SharedVocabulary.of(own.surfaces, other.surfaces)
    letter, theirs = (r.tokenizer.convert_tokens_to_ids("e") for r in (own, other))
    assert shared.teacher_C[shared.column_V[letter]] == theirs
    assert shared.column_V[own.tokenizer.convert_tokens_to_ids("<0x65>")] == -1


def test_texts_cut_on_either_side_are_aligned_where_both_have_tokens(readers):
    text = "the cat sat on the mat and the cat sat on the mat"
    source = SourceText(text)
    whole = readers["byte_level"].read(text)
    for side in ("left", "right"):
        encoding = readers["wordpiece"].encode(text)
        encoding.truncate(8, direction=side)
        cut = readers["wordpiece"].spans(encoding, source)[0]
        aligned = align_spans(cut, whole)
        assert 0 < len(aligned) <= 8
        full = align_spans(readers["wordpiece"].read(text), whole)
        assert set(aligned.teacher_first_G.tolist()) <= set(full.teacher_first_G.tolist())


def test_the_texts_of_a_pair_are_aligned_each_with_its_own(readers):
    first, second = "the cat", "Hello, world"
    sides = []
    for kind in ("wordpiece", "unigram"):
        reader = readers[kind]
        sides.append(reader.spans(reader.encode(first, second), SourceText(first), SourceText(second)))
    aligned = align_texts(*sides)
    alone = [align_spans(readers["wordpiece"].read(t), readers["unigram"].read(t)) for t in (first, second)]
    assert len(aligned) == sum(map(len, alone))
    assert aligned.coverage == alone[0].coverage + alone[1].coverage
    assert aligned.student_id_K.tolist() == [i for part in alone for i in part.student_id_K.tolist()]


def test_many_texts_are_read_as_each_alone(readers):
    for reader in readers.values():
        for text, spans in zip(TEXTS, read_texts(reader, TEXTS), strict=True):
            assert spans.end_T.tolist() == reader.read(text).end_T.tolist()


def test_surfaces_are_the_same_however_they_are_written(readers):
    the = {kind: reader.surfaces.surface_V.index(b" the") for kind, reader in readers.items()}
    for kind, reader in readers.items():
        name = reader.tokenizer.convert_ids_to_tokens(the[kind])
        assert name == {"byte_level": "Ġthe", "wordpiece": "the"}.get(kind, "▁the")
    for first, second in itertools.product(KINDS, KINDS):
        own, other = readers[first].surfaces, readers[second].surfaces
        shared = SharedVocabulary.of(own, other)
        assert (the[first], the[second]) in zip(shared.student_C, shared.teacher_C, strict=True)
        assert len(set(shared.student_C)) == len(set(shared.teacher_C)) == len(shared)
        for a, b in zip(shared.student_C, shared.teacher_C, strict=True):
            if own.surface_V[a] is not None:
                assert own.surface_V[a] == other.surface_V[b]
        if first == second:
            assert shared.student_C.tolist() == shared.teacher_C.tolist() == list(range(len(own)))


def test_real_tokenizers(data_root, minilm_folder, readers):
    from transformers import AutoTokenizer

    folder = data_root / "models" / "stories260K"
    corpus = data_root / "corpora" / "en_wikitext2_valid.txt"
    if not (folder.is_dir() and corpus.is_file()):
        pytest.skip(f"no {folder} or {corpus}")
    real = [TokenReader(AutoTokenizer.from_pretrained(path)) for path in (folder, minilm_folder)]
    text = corpus.read_text(encoding="utf-8")[:1200]
    for own, other in itertools.product([*real, readers["unigram"]], real):
        check(own.read(text), other.read(text), text)


def test_a_tokenizer_that_marks_the_ends_of_words_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model = models.BPE(vocab={"a</w>": 0}, merges=[], end_of_word_suffix="</w>")
    with pytest.raises(AlignmentError, match="marks where words end"):
        TokenReader(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model)))
