"""A narrower student keeps whole channels, heads and neurons of its teacher, and knows which."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch.nn.functional import gelu

from distill.errors import ModelError
from distill.models import (
    Activity,
    Batch,
    Student,
    Teacher,
    Width,
    choose_width,
    keep_width,
    measure_activity,
)
from distill.models.loading import load_model
from distill.models.source import find_model

LABELS = ("no", "yes")
IDS = torch.tensor([[101, 2000, 2001, 2002, 102], [101, 2005, 102, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
LAYERS, HIDDEN, HEADS, NEURONS, SIZE = 4, 32, 2, 64, 16


@pytest.fixture(scope="module")
def whole(tiny_bert):
    model = load_model(find_model(str(tiny_bert)), kind="classification", labels=LABELS, seed=0).eval()
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():  # biases and norms as uneven as those of a trained model
        if name.endswith("bias") or "LayerNorm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def folder(whole, tokenizer, tmp_path_factory):
    """The uneven model's files."""
    path = tmp_path_factory.mktemp("models") / "uneven"
    whole.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def batch(ids=IDS, mask=MASK) -> Batch:
    one = torch.ones(len(ids))
    return Batch({"input_ids": ids, "attention_mask": mask}, torch.arange(len(ids)), None, one, one.long())


def everything() -> Width:
    return Width(tuple(range(HIDDEN)), (tuple(range(HEADS)),) * LAYERS, (tuple(range(NEURONS)),) * LAYERS)


def test_keeping_everything_gives_the_same_logits_bitwise(whole):
    copy = keep_width(whole, everything())
    with torch.inference_mode():
        assert torch.equal(copy(IDS, MASK).logits, whole(IDS, MASK).logits)
    assert copy.config.to_dict() == whole.config.to_dict()


def test_parts_that_do_nothing_may_go(whole):
    """Neurons without an output weight and heads without an output weight change no logit when they are cut."""
    import copy

    silent = copy.deepcopy(whole)
    kept_heads, kept_neurons = [], []
    torch.manual_seed(1)
    for layer, block in enumerate(silent.bert.encoder.layer):
        head = layer % 2
        neurons = sorted(torch.randperm(NEURONS)[:24].tolist())
        gone = [n for n in range(NEURONS) if n not in neurons]
        block.output.dense.weight.data[:, gone] = 0
        block.attention.output.dense.weight.data[:, (1 - head) * SIZE : (2 - head) * SIZE] = 0
        kept_heads.append((head,))
        kept_neurons.append(tuple(neurons))
    narrow = keep_width(silent, Width(tuple(range(HIDDEN)), ((0, 1),) * LAYERS, tuple(kept_neurons)))
    assert narrow.config.intermediate_size == 24
    with torch.inference_mode():
        torch.testing.assert_close(narrow(IDS, MASK).logits, silent(IDS, MASK).logits, rtol=0, atol=1e-6)
    # One head fewer means half the channels too: a BERT's attention is as wide as its hidden states.
    first = Width(tuple(range(SIZE)), tuple(kept_heads), tuple(kept_neurons))
    assert keep_width(silent, first).config.num_attention_heads == 1


def test_activity_is_the_mean_over_real_tokens(whole):
    found = measure_activity(whole, [batch(IDS[:1], MASK[:1]), batch(IDS[1:], MASK[1:])])
    real = MASK.bool()
    with torch.inference_mode():
        out = whole.bert(IDS, MASK, output_hidden_states=True)
        block = whole.bert.encoder.layer[2]
        inside = []
        handle = block.attention.output.register_forward_hook(
            lambda module, inputs, output: inside.extend([*inputs, output])
        )
        whole.bert(IDS, MASK)
        handle.remove()
        context, _, after_attention = inside
        neurons = gelu(block.intermediate.dense(after_attention))[real].abs().mean(0)
        heads = torch.stack(
            [context[..., h * SIZE : (h + 1) * SIZE][real].norm(dim=-1).mean() for h in range(HEADS)]
        )
        norms = [state[real].abs().mean(0) for state in out.hidden_states]
        for layer in whole.bert.encoder.layer:
            seen = []
            handle = layer.attention.output.register_forward_hook(
                lambda module, inputs, output, seen=seen: seen.append(output)
            )
            whole.bert(IDS, MASK)
            handle.remove()
            norms.append(seen[0][real].abs().mean(0))
    torch.testing.assert_close(found.neuron_LI[2].float(), neurons, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.head_LA[2].float(), heads, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.channel_H.float(), torch.stack(norms).mean(0), rtol=1e-4, atol=1e-6)


def test_padding_and_batching_do_not_count_and_no_hook_stays(whole):
    def hooks() -> int:
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in whole.modules())

    before = hooks()
    together = measure_activity(whole, [batch()])
    longer = torch.cat([IDS, torch.full((2, 4), 77)], 1)
    padded = measure_activity(
        whole, [batch(longer, torch.cat([MASK, torch.zeros(2, 4, dtype=torch.long)], 1))]
    )
    for part in ("channel_H", "head_LA", "neuron_LI"):
        torch.testing.assert_close(getattr(together, part), getattr(padded, part), rtol=1e-5, atol=1e-7)
    assert hooks() == before


def test_multiple_choice_texts_are_measured_choice_by_choice(tiny_bert, whole):
    chooser = load_model(find_model(str(tiny_bert)), kind="multiple_choice", labels=LABELS, seed=0)
    chooser.base_model.load_state_dict(whole.bert.state_dict())
    both = measure_activity(chooser, [batch(IDS.view(1, 2, -1), MASK.view(1, 2, -1))])
    assert torch.equal(both.channel_H, measure_activity(whole, [batch()]).channel_H)


def test_the_most_active_are_kept_in_their_order_and_the_first_of_equals():
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 4, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 5}
    model = BertModel(BertConfig(**sizes, vocab_size=9))

    activity = Activity(
        torch.tensor([1.0, 9.0, 3.0, 9.0]),
        torch.tensor([[2.0, 1.0, 2.0, 2.0]]),
        torch.tensor([[0.0, 1, 2, 1, 1]]),
    )
    assert choose_width(model, 2, 3, activity) == Width((1, 3), ((0, 2),), ((1, 2, 3),))
    assert choose_width(model, 2, None) == Width((0, 1), ((0, 1),), ((0, 1, 2, 3, 4),))


def rebuilt(teacher: dict[str, torch.Tensor], name: str, provenance: dict) -> torch.Tensor:
    """A student's tensor put together from the teacher's, by what the provenance says of each of its entries."""
    layers, channels = provenance["layers"], provenance["channels"]
    rows = columns = None
    source = name
    if found := re.match(r"(bert\.encoder\.layer\.)(\d+)\.(.*)", name):
        mine, part = int(found[2]), found[3]
        source = f"{found[1]}{layers[mine]}.{part}"
        of_heads = [16 * head + place for head in provenance["heads"][mine] for place in range(16)]
        neurons = provenance["neurons"][mine]
        if "attention.self" in part:
            rows, columns = of_heads, channels
        elif part.startswith("attention.output.dense"):
            rows, columns = channels, of_heads
        elif part.startswith("intermediate"):
            rows, columns = neurons, channels
        elif part.startswith("output.dense"):
            rows, columns = channels, neurons
        else:
            rows = channels
    elif "word_embeddings" in name:
        rows, columns = provenance["tokens"], channels
    elif "_embeddings" in name:
        columns = channels
    elif "pooler" in name:
        rows, columns = channels, channels
    elif name == "classifier.weight":
        columns = channels
    elif "LayerNorm" in name:
        rows = channels
    tensor = teacher[source]
    if rows is not None:
        tensor = tensor[rows]
    return tensor[:, columns] if columns is not None and tensor.dim() == 2 else tensor


@pytest.mark.parametrize("active", [True, False], ids=["most active", "first"])
def test_every_weight_of_a_composed_student_is_the_teachers_that_its_provenance_names(
    folder, whole, tokenizer, tmp_path, active
):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    student = Student.from_teacher(
        str(folder),
        layers=(1, 3),
        kind="classification",
        labels=LABELS,
        hidden=16,
        intermediate=24,
        activity=measure_activity(whole, [batch()]) if active else None,
        used_tokens=tokenizer("the cat sat on the mat")["input_ids"],
    )
    student.save(tmp_path)
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    teacher = whole.state_dict()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, rebuilt(teacher, name, provenance)), name
    assert (loaded.config.hidden_size, loaded.config.num_attention_heads) == (16, 1)
    assert [len(neurons) for neurons in provenance["neurons"]] == [24, 24]
    assert (provenance["channels"] == list(range(16))) != active
    made = AutoTokenizer.from_pretrained(tmp_path)("the mat sat", return_tensors="pt")
    with torch.inference_mode():
        assert loaded(**made).logits.isfinite().all()
    assert student.start | {"teacher": "", "teacher_digest": ""} == {
        "teacher": "",
        "teacher_digest": "",
        "layers": [1, 3],
        "tokens": len(provenance["tokens"]),
        "channels": 16,
        "heads": 1,
        "neurons": 24,
    }


def test_roberta_and_its_classifier_are_cut_too(tokenizer):
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(0)
    model = RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40
        )
    ).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    width = choose_width(model, 16, 20, measure_activity(model, [batch(ids, torch.ones_like(ids))]))
    narrow = keep_width(model, width)
    assert narrow.classifier.dense.weight.shape == (16, 16)
    kept = list(width.channels)
    assert torch.equal(narrow.classifier.dense.weight, model.classifier.dense.weight[kept][:, kept])
    assert torch.equal(narrow.classifier.out_proj.weight, model.classifier.out_proj.weight[:, kept])
    with torch.inference_mode():
        assert Teacher(narrow, tokenizer)(batch(ids, torch.ones_like(ids))).logits_NC.isfinite().all()


@pytest.mark.parametrize(
    ("width", "message"),
    [
        ({"hidden": 24}, r"from_teacher\.hidden: must be a multiple of 16, the size of .* heads, found 24"),
        ({"hidden": 48}, r"from_teacher\.hidden: must be at most the teacher's 32, found 48"),
        ({"intermediate": 65}, r"from_teacher\.intermediate: must be at most the teacher's 64, found 65"),
    ],
)
def test_widths_the_teacher_cannot_have_are_refused(tiny_bert, width, message):
    with pytest.raises(ModelError, match=message):
        Student.from_teacher(str(tiny_bert), layers=2, kind="classification", labels=LABELS, **width)


def test_other_architectures_are_refused_in_one_line():
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    model = DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=32)
    )
    with pytest.raises(ModelError, match=r"are for bert, .* models, found distilbert; leave them out"):
        choose_width(model, 8, None)
    with pytest.raises(ModelError, match="found distilbert"):
        measure_activity(model, [])


def test_a_masked_language_models_head_is_cut_too():
    from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 12}
    ids = torch.tensor([[5, 6, 7, 8]])
    for kind, config in ((BertForMaskedLM, BertConfig), (RobertaForMaskedLM, RobertaConfig)):
        model = kind(config(**sizes, vocab_size=50)).eval()
        narrow = keep_width(model, choose_width(model, 8, 10))
        assert narrow(ids).logits.shape == (1, 4, 50)
        copy = keep_width(model, choose_width(model, None, None))
        with torch.inference_mode():
            assert torch.equal(copy(ids).logits, model(ids).logits)
