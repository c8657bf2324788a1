"""A student that keeps some of a teacher's layers."""

from __future__ import annotations

import json

import pytest
import torch

from distill.errors import ModelError
from distill.models import Student, Teacher, evenly_spaced, keep_layers
from distill.models.loading import load_model
from distill.models.source import find_model

LABELS = ("no", "yes")
IDS = torch.tensor([[101, 2000, 2001, 2002, 102]])


@pytest.fixture
def whole(tiny_bert):
    return load_model(find_model(str(tiny_bert)), kind="classification", labels=LABELS, seed=0)


def test_evenly_spaced_layers_keep_the_first_and_the_last():
    assert evenly_spaced(12, 6) == (0, 2, 4, 7, 9, 11)  # DistilBERT's list
    for total in range(2, 30):
        for keep in range(2, total + 1):
            layers = evenly_spaced(total, keep)
            assert layers[0] == 0
            assert layers[-1] == total - 1
            assert len(set(layers)) == keep
            assert list(layers) == sorted(layers)


def test_keeping_every_layer_gives_the_same_logits_bitwise(whole):
    copy = keep_layers(whole, (0, 1, 2, 3))
    with torch.inference_mode():
        torch.testing.assert_close(copy(IDS).logits, whole.eval()(IDS).logits, rtol=0, atol=0)


def test_kept_layers_are_the_teachers_and_the_config_says_how_many(whole):
    student = keep_layers(whole, (0, 3))
    assert student.config.num_hidden_layers == 2
    assert whole.config.num_hidden_layers == 4
    theirs, ours = whole.state_dict(), student.state_dict()
    assert torch.equal(
        ours["bert.encoder.layer.1.output.dense.weight"], theirs["bert.encoder.layer.3.output.dense.weight"]
    )
    assert torch.equal(
        ours["bert.embeddings.word_embeddings.weight"], theirs["bert.embeddings.word_embeddings.weight"]
    )
    assert not any(".layer.2." in name for name in ours)


def test_a_saved_student_loads_with_the_auto_class_and_gives_the_same_logits(tiny_bert, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    student = Student.from_teacher(str(tiny_bert), layers=(0, 2), kind="classification", labels=LABELS)
    student.model.eval()
    student.save(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for name, tensor in student.model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    with torch.inference_mode():  # where a tensor lies in memory may change its last bit
        torch.testing.assert_close(loaded.eval()(IDS).logits, student.model(IDS).logits, rtol=0, atol=1e-6)
    assert loaded.config.id2label == {0: "no", 1: "yes"}
    assert (
        AutoTokenizer.from_pretrained(tmp_path)("a word")["input_ids"]
        == student.tokenizer("a word")["input_ids"]
    )
    assert json.loads((tmp_path / "provenance.json").read_text())["layers"] == [0, 2]


def test_a_multiple_choice_student_scores_choices(tiny_bert):
    student = Student.from_teacher(
        str(tiny_bert), layers=1, kind="multiple_choice", labels=("first", "second")
    )
    with torch.inference_mode():
        logits = student.model(input_ids=IDS.repeat(3, 1).view(1, 3, -1).repeat(2, 1, 1)).logits
    assert logits.shape == (2, 3)


def test_the_head_is_drawn_from_the_seed_and_leaves_the_generator_alone(tiny_bert):
    def head(seed):
        return Student.from_teacher(
            str(tiny_bert), layers=2, kind="classification", labels=LABELS, seed=seed
        ).model.classifier.weight

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = head(1), head(1), head(2)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("layers", "message"),
    [(5, "5 asked for, the teacher has 4"), ((0, 4), "the teacher's layers are 0 to 3")],
)
def test_layers_the_teacher_does_not_have_are_refused(tiny_bert, layers, message):
    with pytest.raises(ModelError, match=message):
        Student.from_teacher(str(tiny_bert), layers=layers, kind="classification", labels=LABELS)


def test_a_teacher_without_a_trained_head_is_refused(tiny_bert):
    with pytest.raises(ModelError, match=r"is not fine-tuned for no, yes .* give teacher.train"):
        Teacher.load(str(tiny_bert), kind="classification", labels=LABELS)


def test_other_architectures_lose_layers_too(tmp_path, minilm_folder):
    from transformers import (
        AutoTokenizer,
        DistilBertConfig,
        DistilBertModel,
        ElectraConfig,
        ElectraModel,
        ModernBertConfig,
        ModernBertModel,
        RobertaConfig,
        RobertaModel,
    )

    small = {"vocab_size": 30522, "num_attention_heads": 2, "num_hidden_layers": 4, "hidden_size": 16}
    torch.manual_seed(0)
    models = {
        "roberta": RobertaModel(RobertaConfig(**small, intermediate_size=32)),
        "electra": ElectraModel(ElectraConfig(**small, intermediate_size=32, embedding_size=16)),
        "distilbert": DistilBertModel(
            DistilBertConfig(vocab_size=30522, dim=16, n_layers=4, n_heads=2, hidden_dim=32)
        ),
        "modernbert": ModernBertModel(ModernBertConfig(**small, intermediate_size=32, pad_token_id=0)),
    }
    for name, model in models.items():
        folder = tmp_path / name
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(minilm_folder).save_pretrained(folder)
        student = Student.from_teacher(str(folder), layers=2, kind="classification", labels=LABELS)
        assert student.model.config.num_hidden_layers == 2
        assert student.provenance["layers"] == [0, 3]
        with torch.inference_mode():
            assert student.model.eval()(IDS).logits.shape == (1, 2)


def test_a_student_from_a_config_has_random_weights_of_its_own_shape(tiny_bert, minilm_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder)
    config = {
        "model_type": "bert",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    student = Student.from_config(config, tokenizer, kind="classification", labels=LABELS, seed=1)
    assert student.model.config.hidden_size == 16
    assert student.model.config.vocab_size == len(tokenizer)
    with pytest.raises(ModelError, match=r"student\.config"):
        Student.from_config({"model_type": "no-such-model"}, tokenizer, kind="classification", labels=LABELS)
