"""Several teachers speak as one."""

from __future__ import annotations

import weakref
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill.errors import ModelError
from distill.losses import Ensemble
from distill.models import EnsembleInTurn, EnsembleTeacher, NextTokens, Teacher, train_tokenizer


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


def test_members_that_are_loaded_in_turn_say_the_same_and_are_never_two(tiny_llama):
    alive, most = [], 0

    def load(seed: int) -> Teacher:
        nonlocal most
        model = AutoModelForCausalLM.from_pretrained(tiny_llama)
        torch.nn.init.normal_(model.lm_head.weight, generator=torch.Generator().manual_seed(seed))
        alive.append(weakref.ref(model.lm_head.weight))
        most = max(most, sum(each() is not None for each in alive))
        return Teacher(model, AutoTokenizer.from_pretrained(tiny_llama))

    mean = Ensemble(weights=(1, 3, 2), temperature=2.0)
    turns = EnsembleInTurn([partial(load, seed) for seed in range(3)], mean)
    data = NextTokens([[5, 6, 7, 8], [9, 10], [11, 12, 13]], None, turns.tokenizer)
    said = [turns(data.batch(index)).logits_NC for index in ([0, 1], [2], [0])]
    assert most == 1
    together = EnsembleTeacher([load(seed) for seed in range(3)], mean)
    for logits_NC, index in zip(said, ([0, 1], [2], [0]), strict=True):
        assert torch.equal(logits_NC, together(data.batch(index)).logits_NC)
    assert len(alive) == 3 + 2 * 2 + 3  # the next batch begins with the member that is there
