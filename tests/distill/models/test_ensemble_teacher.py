"""Several teachers speak as one."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill.errors import ModelError
from distill.losses import Ensemble
from distill.models import EnsembleTeacher, NextTokens, Teacher, train_tokenizer


@pytest.fixture
def members(tiny_llama):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    made = []
    for seed in range(2):
        model = AutoModelForCausalLM.from_pretrained(tiny_llama)
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.lm_head.weight)
        made.append(Teacher(model, tokenizer))
    return made


def test_the_mean_is_of_what_the_members_say(members):
    batch = NextTokens([[5, 6, 7, 8], [9, 10]], None, members[0].tokenizer).batch([0, 1])
    said = [member(batch).logits_NC for member in members]
    for mean in (Ensemble(of="logits", weights=(1, 3)), Ensemble(temperature=2.0)):
        assert torch.equal(EnsembleTeacher(members, mean)(batch).logits_NC, mean(said))


def test_every_members_reads_a_students_tokens(members):
    kept = [0, 1, 5, 6, 7, 8]
    batch = NextTokens([[2, 3, 4, 5]], None, members[0].tokenizer).batch([0])
    own = NextTokens([[5, 6, 7, 8]], None, members[0].tokenizer).batch([0])
    mean = Ensemble(of="logits")
    read = EnsembleTeacher(members, mean).reading(kept)(batch).logits_NC
    assert torch.equal(read, EnsembleTeacher(members, mean)(own).logits_NC[:, kept])


def test_members_with_other_tokens_are_refused(members):
    members[1].tokenizer = train_tokenizer(["some other text"], 300)
    with pytest.raises(ModelError, match="different tokenizers"):
        EnsembleTeacher(members, Ensemble())


def test_a_new_tokenizer_reads_everything_and_is_made_again():
    texts = ["the cat sat on the mat", "the other cat"] * 20
    tokenizer = train_tokenizer(texts, 300)
    assert tokenizer.get_vocab() == train_tokenizer(texts, 300).get_vocab()
    assert len(tokenizer) <= 300
    for text in ("the cat", "Ünïcode 🙂 הי", ""):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
