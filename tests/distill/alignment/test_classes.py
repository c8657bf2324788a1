"""Class logits of two models are compared class by class, in the task's order."""

from __future__ import annotations

import pytest
import torch

from distill.alignment import align_classes, class_order
from distill.errors import AlignmentError
from distill.models import Teacher
from distill.models.loading import load_model, load_tokenizer
from distill.models.source import find_model

NLI = ("entailment", "contradiction", "neutral")


def test_generic_and_agreeing_names_need_no_reordering():
    assert class_order({0: "LABEL_0", 1: "LABEL_1"}, ["no", "yes"]) is None
    assert class_order({0: "Entailment", 1: "CONTRADICTION", 2: "neutral"}, NLI) is None


def test_classes_in_another_order_are_put_into_the_tasks():
    assert class_order({0: "contradiction", 1: "neutral", 2: "entailment"}, NLI) == [2, 0, 1]


@pytest.mark.parametrize(
    ("found", "message"),
    [({0: "no", 1: "yes"}, "2 classes"), ({0: "a", 1: "b", 2: "c"}, "set id2label")],
)
def test_classes_of_something_else_are_refused(found, message):
    with pytest.raises(AlignmentError, match=message):
        class_order(found, NLI)


def test_a_teacher_fine_tuned_in_another_order_answers_in_the_tasks_order(tiny_bert, tmp_path):
    source = find_model(str(tiny_bert))
    model = load_model(
        source, kind="classification", labels=("contradiction", "neutral", "entailment"), seed=1
    )
    model.save_pretrained(tmp_path)
    load_tokenizer(source).save_pretrained(tmp_path)
    teacher = Teacher.load(str(tmp_path), kind="classification", labels=NLI)
    from distill.models import Features

    features = Features(
        [[{"input_ids": [101, 2000, 102], "attention_mask": [1, 1, 1]}]], [0], teacher.tokenizer
    )
    batch = features.batch([0])
    with torch.inference_mode():
        own = model.eval()(**batch.inputs).logits
    torch.testing.assert_close(teacher(batch).logits_NC, own[:, [2, 0, 1]], rtol=0, atol=1e-6)


def test_logits_of_different_shapes_are_refused_with_both_shapes():
    with pytest.raises(AlignmentError, match=r"student \(4, 3\), teacher \(4, 2\)"):
        align_classes(torch.zeros(4, 3), torch.zeros(4, 2))
