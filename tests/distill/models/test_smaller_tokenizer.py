"""A smaller tokenizer of a teacher's kind reads everything that the teacher's does, and its tokens start as means."""

from __future__ import annotations

import hashlib
import json
import math
import string
import subprocess
import sys
from collections import Counter

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from distill.errors import ModelError
from distill.models import Student, pieces_of, replace_tokens, smaller_tokenizer
from distill.models.smaller_tokenizer import train_unigram

from .tokenizer_kinds import KINDS, strings, tokenizer_of
from .tokenizer_kinds import OTHER as TEXTS

SIZE = {"wordpiece": 450, "unigram": 350, "bytes": 400, "sentencepiece": 600}
PROGRAM = """
import sys, hashlib, json
from transformers import AutoTokenizer
from distill.models import smaller_tokenizer
texts = json.load(open(sys.argv[1]))
for folder, size in json.loads(sys.argv[2]).items():
    made = smaller_tokenizer(AutoTokenizer.from_pretrained(folder), texts, size)
    print(hashlib.sha256(made.backend_tokenizer.to_str().encode()).hexdigest())
"""


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def teacher(kind):
    return tokenizer_of(kind, size=900)


@pytest.fixture(scope="module")
def student(kind, teacher):
    return smaller_tokenizer(teacher, TEXTS, SIZE[kind])


def test_it_has_the_size_asked_for_and_the_teachers_rules(kind, teacher, student):
    assert len(student) == SIZE[kind] < len(teacher)
    assert student.special_tokens_map == teacher.special_tokens_map
    assert student.chat_template == teacher.chat_template
    theirs, ours = (json.loads(t.backend_tokenizer.to_str()) for t in (teacher, student))
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        assert ours[part] == theirs[part]
    for part in ("type", "byte_fallback", "unk_token", "fuse_unk", "ignore_merges"):
        assert ours["model"].get(part) == theirs["model"].get(part)
    assert [t["content"] for t in ours["added_tokens"]] == [t["content"] for t in theirs["added_tokens"]]
    assert student.tokenize("a <word> b").count("<word>") == 1


def test_it_reads_what_the_teacher_reads(kind, teacher, student):
    for text in strings():
        theirs, ours = teacher(text, text)["input_ids"], student(text, text)["input_ids"]
        assert all(0 <= token < len(student) for token in ours)
        # Without bytes, other letters than ASCII and those of the texts are unknown.
        readable = kind in ("bytes", "sentencepiece") or set(text) <= set("".join(TEXTS)) | set(
            string.printable
        )
        if readable and teacher.unk_token_id not in theirs:
            assert student.decode(ours) == teacher.decode(theirs)


def test_its_own_texts_become_few_pieces(teacher, student):
    pieces = [sum(len(t.tokenize(text)) for text in TEXTS) for t in (teacher, student)]
    assert pieces[1] < 1.2 * pieces[0]


def test_its_folder_loads_as_the_same_tokenizer(student, tmp_path):
    student.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == student.get_vocab()
    for text in strings():
        assert again(text)["input_ids"] == student(text)["input_ids"]


def test_the_same_texts_give_the_same_tokenizer(kind, teacher, student):
    for _ in range(2):
        again = smaller_tokenizer(teacher, TEXTS, SIZE[kind])
        assert again.backend_tokenizer.to_str() == student.backend_tokenizer.to_str()


@pytest.mark.slow
def test_the_same_texts_give_the_same_tokenizer_in_another_process(tmp_path):
    texts, sizes, own = tmp_path / "texts.json", {}, []
    texts.write_text(json.dumps(TEXTS))
    for kind in KINDS:
        tokenizer_of(kind, size=900).save_pretrained(tmp_path / kind)
        sizes[str(tmp_path / kind)] = SIZE[kind]
        made = smaller_tokenizer(AutoTokenizer.from_pretrained(tmp_path / kind), TEXTS, SIZE[kind])
        own.append(hashlib.sha256(made.backend_tokenizer.to_str().encode()).hexdigest())
    program = [sys.executable, "-c", PROGRAM, str(texts), json.dumps(sizes)]
    said = subprocess.run(program, check=True, capture_output=True, text=True).stdout
    assert said.split() == own


def by_hand(kind, teacher, name):
    """The teacher's pieces of a token's text, through texts rather than the tokenizer's model."""
    ids = teacher.get_vocab()
    if name in ids:
        return [name]
    if kind == "wordpiece" and name.startswith("##"):
        rest, found = name[2:], []
        while rest:
            piece = next((rest[:n] for n in range(len(rest), 0, -1) if "##" + rest[:n] in ids), None)
            if piece is None:
                return ["[UNK]"]
            found.append("##" + piece)
            rest = rest[len(piece) :]
        return found
    if kind in ("wordpiece", "bytes"):
        return teacher.tokenize(name if kind == "wordpiece" else teacher.convert_tokens_to_string([name]))
    return teacher.tokenize(name[1:]) if name.startswith("▁") else None


def test_each_token_is_its_text_in_the_teachers_pieces(kind, teacher, student):
    theirs, names = teacher.get_vocab(), student.convert_ids_to_tokens(list(range(len(student))))
    pieces = pieces_of(teacher, student)
    assert len(pieces) == len(names)
    several = 0
    for name, ids in zip(names, pieces, strict=True):
        expected = by_hand(kind, teacher, name) if not name.startswith("▁▁") else None
        if expected is not None and "\ufffd" not in teacher.convert_tokens_to_string([name]):
            assert list(ids) == [theirs[piece] for piece in expected], name
        several += len(ids) > 1
        joined = "".join(teacher.convert_ids_to_tokens(ids)).replace("##", "")
        assert joined == name.replace("##", "") or teacher.unk_token_id in ids
    assert 0 < several < len(names)


@pytest.mark.parametrize("tied", [True, False])
def test_the_rows_of_a_llama_are_means_of_the_pieces_rows(tied):
    teacher = tokenizer_of("bytes", size=900)
    student = smaller_tokenizer(teacher, TEXTS, 400)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(teacher) + 9, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=tied, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    pieces = pieces_of(teacher, student)
    made = replace_tokens(model, pieces)
    for table in ("model.embed_tokens.weight", "lm_head.weight"):
        old, new = model.state_dict()[table], made.state_dict()[table]
        assert new.shape == (len(student), 16)
        for row, ids in zip(new, pieces, strict=True):
            if len(ids) == 1:
                assert torch.equal(row, old[ids[0]])
            else:
                mean = torch.stack([old[token].double() for token in ids]).sum(0) / len(ids)
                torch.testing.assert_close(row.double(), mean, rtol=0, atol=1e-7)
    assert (made.lm_head.weight is made.model.embed_tokens.weight) == tied
    config = made.config
    assert (config.bos_token_id, config.eos_token_id) == (student.bos_token_id, student.eos_token_id)
    assert made(**student("the student", return_tensors="pt")).logits.shape[-1] == len(student)


def test_a_masked_language_models_bias_goes_with_its_rows():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = BertForMaskedLM(config)
    model.cls.predictions.bias.data = torch.arange(9.0)
    made = replace_tokens(model, [(0,), (8,), (2, 3), (4, 5, 6)])
    assert made.cls.predictions.bias.tolist() == [0.0, 8.0, 2.5, 5.0]
    assert made.cls.predictions.decoder.weight is made.bert.embeddings.word_embeddings.weight


def test_a_student_is_saved_with_its_own_tokenizer(tiny_bert, tokenizer, tmp_path):
    own = smaller_tokenizer(tokenizer, TEXTS, 600)
    student = Student.from_teacher(
        str(tiny_bert), layers=2, kind="classification", labels=("no", "yes"), tokenizer=own
    )
    student.save(tmp_path)
    assert student.tokens is None
    assert student.start["pieces"] == 600 == student.model.config.vocab_size
    pieces = json.loads((tmp_path / "provenance.json").read_text())["pieces"]
    names = tokenizer.convert_ids_to_tokens
    for name, number in AutoTokenizer.from_pretrained(tmp_path).get_vocab().items():
        assert "".join(piece.removeprefix("##") for piece in names(pieces[number])) == name.removeprefix("##")


def test_unigram_pieces_explain_words_better_than_letters_do():
    words = Counter(word for line in TEXTS for word in line.split())
    letters = sorted({letter for word in words for letter in word})
    pieces = dict(train_unigram(words, 300, letters))
    assert len(pieces) == 300
    assert set(letters) <= set(pieces)
    assert sum(map(math.exp, pieces.values())) == pytest.approx(1, abs=0.02)

    def nats(scores, word):  # Viterbi, by hand
        best = [0.0] + [-math.inf] * len(word)
        for end in range(1, len(word) + 1):
            for start in range(end):
                if word[start:end] in scores:
                    best[end] = max(best[end], best[start] + scores[word[start:end]])
        return -best[-1]

    spelled = Counter()
    for word, count in words.items():
        for letter in word:
            spelled[letter] += count
    total = sum(spelled.values())
    alone = {letter: math.log(count / total) for letter, count in spelled.items()}
    cost = [sum(count * nats(s, word) for word, count in words.items()) for s in (pieces, alone)]
    assert cost[0] < 0.75 * cost[1]
    # What is cheapest to say is kept: the same number of the most frequent substrings costs more.
    frequent = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 2, len(word) + 1):
                frequent[word[start:end]] += count
    chosen = [p for p, _ in frequent.most_common(300 - len(letters))]
    sizes = {**spelled, **{p: frequent[p] for p in chosen}}
    naive = {p: math.log(c / sum(sizes.values())) for p, c in sizes.items()}
    assert cost[0] < sum(count * nats(naive, word) for word, count in words.items())


def test_a_size_without_room_for_words_is_refused_in_one_line(kind, teacher):
    with pytest.raises(
        ModelError, match=r"^student\.from_teacher\.vocabulary\.train: must be at least \d+ .* found 30$"
    ):
        smaller_tokenizer(teacher, TEXTS, 30)


def test_a_tokenizer_of_another_kind_is_refused_in_one_line():
    with pytest.raises(ModelError, match=r"must be a WordPiece tokenizer as the teacher's, found BPE$"):
        pieces_of(tokenizer_of("wordpiece"), tokenizer_of("bytes"))
