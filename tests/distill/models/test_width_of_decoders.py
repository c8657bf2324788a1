"""Narrower decoders and encoder–decoder models: what is kept is the teacher's, and everything kept is the teacher."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from distill.errors import ModelError
from distill.models import (
    Activity,
    Student,
    Width,
    choose_width,
    keep_layers,
    keep_width,
    measure_activity,
    refit_before_dropped,
)

from .architectures import CONFIGS, HEADS, HIDDEN, LAYERS, NEURONS, SIZES, logits, made, texts

NARROWED = [name for name in CONFIGS if name not in ("gpt2", "bert")]
DECODERS = [name for name in NARROWED if not name.startswith("t5")]


@pytest.mark.parametrize("name", [*NARROWED, "bert"])
def test_keeping_everything_gives_the_same_logits_bitwise(name):
    model = made(name)
    batch = texts(model)
    layers = LAYERS * (1 + model.config.is_encoder_decoder) - (name == "t5")
    whole = Width(tuple(range(HIDDEN)), (tuple(range(HEADS)),) * layers, (tuple(range(NEURONS)),) * layers)
    assert choose_width(model, None, None) == whole
    copy = keep_width(model, whole)
    assert torch.equal(logits(copy, batch), logits(model, batch))
    ours, theirs = copy.config.to_dict(), model.config.to_dict()
    assert {**theirs, "head_dim": None} == {**ours, "head_dim": None}
    assert copy.num_parameters() == model.num_parameters()  # what is tied stays tied


def expected(theirs, name, width, layer, groups, size):
    """A teacher's tensor of a layer cut as its name says, written down again for Llama's and T5's names."""
    rows = [head * size + place for head in width.heads[layer] for place in range(size)]
    keys = [group * size + place for group in groups for place in range(size)]
    channels, neurons = list(width.channels), list(width.neurons[layer])
    part = name.split(".")[-2]
    tensor = theirs[name]
    if name.endswith(".bias"):
        return tensor[{"q_proj": rows, "k_proj": keys, "v_proj": keys, "gate_proj": neurons, "up_proj": neurons}.get(part, channels)]  # fmt: skip
    if part in ("q_norm", "k_norm", "relative_attention_bias"):
        return tensor
    if tensor.dim() == 1:
        return tensor[channels]
    if part in ("q_proj", "q"):
        return tensor[rows][:, channels]
    if part in ("k_proj", "v_proj", "k", "v"):
        return tensor[keys][:, channels]
    if part in ("o_proj", "o"):
        return tensor[channels][:, rows]
    if part in ("down_proj", "wo"):
        return tensor[channels][:, neurons]
    return tensor[neurons][:, channels]


CUTS = {
    "llama": (12, 2, (1,)),
    "llama untied": (18, 3, (0,)),
    "llama own keys": (18, 3, None),
    "mistral": (10, 2, (1,)),
    "qwen2": (10, 2, (1,)),
    "qwen3": (17, 2, (1,)),
}


@pytest.mark.parametrize("name", CUTS)
def test_every_weight_is_the_teachers_at_these_indices(name, tmp_path):
    model = made(name)
    hidden, heads, groups = CUTS[name]
    activity = measure_activity(model, [texts(model)])
    if groups == (1,):  # the second group is the more active one in every layer
        activity.head_LA[:, 2:] += 100
    width = choose_width(model, hidden, 12, activity, heads)
    assert width.channels != tuple(range(hidden))
    student = keep_layers(keep_width(model, width), (1, 3))
    student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    batch = texts(model)
    torch.testing.assert_close(logits(loaded, batch), logits(student, batch))
    theirs = model.state_dict()
    size = model.config.to_dict().get("head_dim") or HIDDEN // HEADS
    assert loaded.config.head_dim == size
    assert loaded.config.num_attention_heads == heads
    for key, tensor in loaded.state_dict().items():
        if key.startswith("model.layers."):
            layer = (1, 3)[int(key.split(".")[2])]
            kept = groups if groups is not None else width.heads[layer]
            source = ".".join([*key.split(".")[:2], str(layer), *key.split(".")[3:]])
            cut = expected(theirs, source, width, layer, kept, size)
        else:
            cut = theirs[key][..., list(width.channels)]
        assert torch.equal(tensor, cut), key


@pytest.mark.parametrize("name", ["t5", "t5 gated"])
def test_a_t5_is_narrower_in_both_stacks(name, tmp_path):
    model = made(name)
    width = choose_width(model, 16, 12, measure_activity(model, [texts(model)]))
    total = LAYERS + model.config.num_decoder_layers
    assert len(width.neurons) == total
    assert width.heads == (tuple(range(HEADS)),) * total
    student = keep_width(model, width)
    theirs = model.state_dict()
    for key, tensor in student.state_dict().items():
        if ".block." in key:
            layer = int(key.split(".")[2]) + (LAYERS if key.startswith("decoder") else 0)
            assert torch.equal(tensor, expected(theirs, key, width, layer, range(HEADS), 5)), key
        else:
            assert torch.equal(tensor, theirs[key][..., list(width.channels)]), key
    student.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert loaded.config.d_kv == 5
    for key, tensor in student.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)


@pytest.mark.parametrize("name", ["llama", "qwen3", "t5"])
def test_activity_is_the_mean_over_real_tokens(name):
    model = made(name)
    batch = texts(model)
    found = measure_activity(model, [batch])
    real = batch.inputs["attention_mask"].bool()
    seen = {}
    stack, attention, neurons = {
        "t5": ("encoder.block", "layer.0.SelfAttention.o", "layer.1.DenseReluDense.wo"),
    }.get(name, ("model.layers", "self_attn.o_proj", "mlp.down_proj"))
    block = model.get_submodule(stack)[2]
    for part in (attention, neurons):
        block.get_submodule(part).register_forward_pre_hook(
            lambda module, inputs, part=part: seen.__setitem__(part, inputs[0][real])
        )
    norms = []
    for module_name, module in model.named_modules():
        if type(module).__name__ in ("LlamaRMSNorm", "Qwen3RMSNorm", "T5LayerNorm") and not module_name.endswith(("q_norm", "k_norm")):  # fmt: skip

            def see(module, inputs, output, name=module_name):
                mask = real
                if name.startswith("decoder"):
                    target = batch.inputs["decoder_input_ids"]
                    mask = (target != 0) | (torch.arange(target.shape[1]) == 0)
                norms.append(output[mask].abs().mean(0))

            module.register_forward_hook(see)
    logits(model, batch)
    torch.testing.assert_close(found.neuron_LI[2].float(), seen[neurons].abs().mean(0))
    heads = seen[attention].unflatten(-1, (HEADS, -1)).norm(dim=-1).mean(0)
    torch.testing.assert_close(found.head_LA[2].float(), heads)
    torch.testing.assert_close(found.channel_H.float(), torch.stack(norms).mean(0))


def test_heads_go_in_whole_groups_or_evenly():
    model = made("llama own keys")
    model.config.num_key_value_heads, model.config.num_attention_heads = 2, 6  # what the choice reads
    head_LA = torch.tensor([[9.0, 0, 0, 4, 4, 4]] * LAYERS)
    activity = Activity(torch.ones(HIDDEN), head_LA, torch.ones(LAYERS, NEURONS))
    assert choose_width(model, None, None, activity, 3).heads[0] == (3, 4, 5)  # a mean of 4 against one of 3
    assert choose_width(model, None, None, activity, 2).heads[0] == (0, 3)
    assert choose_width(model, 24, None, None, 4).heads[0] == (0, 1, 3, 4)


def test_a_decoder_with_a_classifier_is_cut_too():
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**SIZES, num_key_value_heads=2))
    narrow = keep_width(model, choose_width(model, 12, 8, None, 2))
    assert torch.equal(narrow.score.weight, model.score.weight[:, :12])


@pytest.mark.parametrize(
    ("name", "width", "message"),
    [
        ("llama", (24, None, 3), r"heads: must be a multiple of 2 .*groups.* found 3$"),
        ("llama", (22, None, None), r"^student\.from_teacher\.hidden: must be a multiple of the student's 4 attention heads, as any llama's, found 22$"),
        ("llama", (None, None, 8), r"^student\.from_teacher\.heads: must be at most the teacher's 4, found 8$"),
        ("t5", (None, None, 2), r"^student\.from_teacher\.heads: cannot be left out of a t5 model"),
        ("bert", (None, None, 2), r"^student\.from_teacher\.heads: follows from hidden in a bert model"),
        ("gpt2", (12, None, None), r"^student\.from_teacher: hidden, heads and intermediate are for .*, found gpt2; leave them out$"),
    ],
)  # fmt: skip
def test_widths_a_teacher_cannot_have_are_refused(name, width, message):
    hidden, intermediate, heads = width
    with pytest.raises(ModelError, match=message):
        choose_width(made(name), hidden, intermediate, None, heads)


def test_a_gemma_is_refused():
    """It multiplies its embeddings by √hidden: a narrower one would read other numbers."""
    model = GemmaForCausalLM(GemmaConfig(**SIZES, head_dim=8, num_key_value_heads=2))
    with pytest.raises(ModelError, match="found gemma"):
        choose_width(model, 12, None)


def test_the_provenance_of_a_composed_decoder_names_the_teachers_parts(tokenizer, tmp_path):
    """Layers by importance, one refitted, narrower: every weight but the refitted one is where provenance says."""
    torch.manual_seed(1)
    model = LlamaForSequenceClassification(LlamaConfig(**SIZES, num_key_value_heads=2)).eval()
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    batches = [texts(model, seed=seed) for seed in range(3)]
    importance = {"layers": torch.tensor([3.0, 1, 2, 4])}
    student = Student.from_teacher(
        str(tmp_path / "teacher"),
        layers=3,
        importance=importance,
        refitted=refit_before_dropped(model, {"layers": (0, 2, 3)}, batches),
        kind="classification",
        labels=("no", "yes"),
        hidden=12,
        heads=2,
        intermediate=8,
        activity=measure_activity(model, batches),
    )
    student.save(tmp_path / "student")
    said = json.loads((tmp_path / "student" / "provenance.json").read_text())
    assert said["layers"] == [0, 2, 3]
    assert said["refitted"] == ["model.layers.0.mlp.down_proj.weight"]
    theirs, ours = model.state_dict(), student.model.state_dict()
    width = Width(tuple(said["channels"]), tuple(said["heads"]), tuple(said["neurons"]))
    for key, tensor in ours.items():
        if ".layers." not in key:
            assert torch.equal(tensor, theirs[key][..., said["channels"]]), key
            continue
        place = int(key.split(".")[2])
        source = key.replace(f".{place}.", f".{said['layers'][place]}.", 1)
        groups = sorted({head // 2 for head in said["heads"][place]})
        same = torch.equal(tensor, expected(theirs, source, width, place, groups, 6))
        assert same == (source not in said["refitted"]), key
    assert student.start["refitted"] == 1
