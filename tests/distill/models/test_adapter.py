"""Adapters of peft: what is trained, what stays, what is exported, what is refused."""

from __future__ import annotations

import builtins
import dataclasses
import inspect
import json
import shutil

import pytest
import torch

pytest.importorskip("peft", reason="peft is not installed")

from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from distill.engine import Engine
from distill.errors import ModelError
from distill.losses import ForwardKL, HiddenStates, Labels, Relations
from distill.models import Batch, Student, Teacher, find_model
from distill.models.adapter import load_adapter
from distill.models.loading import load_model
from distill.models.teacher import weights_precision
from distill.recipe import TrainRecipe

LABELS = ("no", "yes")
KIND = "classification"
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}
TRAIN = TrainRecipe(
    max_steps=4,
    learning_rate=1e-2,
    per_device_train_batch_size=16,
    save_steps=2,
    dropout=0.0,
    precision="fp32",
)
PROMPTS = {
    "PROMPT_TUNING": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},
    "P_TUNING": {"peft_type": "P_TUNING", "num_virtual_tokens": 3, "encoder_hidden_size": 16},
    "PREFIX_TUNING": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3},
}


def said(model, features):
    with torch.inference_mode():
        return model(features.batch(list(range(8)))).logits_NC


def trained(student, features, loss=None, teacher=None, **options):
    Engine(student, loss or Labels(), features, TRAIN, teacher=teacher, **options).run()
    return student


@pytest.mark.parametrize(
    "settings",
    [
        LORA,
        {**LORA, "use_dora": True},
        {"peft_type": "IA3", "target_modules": ["key", "value"], "feedforward_modules": []},
    ],
    ids=["lora", "dora", "ia3"],
)
def test_a_mergeable_adapter_from_first_logits_to_exported_folder(new_student, features, tmp_path, settings):
    plain = new_student()
    plain.model.eval()
    before = {name: tensor.clone() for name, tensor in plain.model.state_dict().items()}
    expected = said(plain, features)
    student = plain.with_adapter(settings, kind=KIND, seed=3)
    student.model.eval()
    torch.testing.assert_close(said(student, features), expected, rtol=0, atol=1e-6)
    trainable = {name for name, p in student.model.named_parameters() if p.requires_grad}
    assert all("lora" in name or "ia3" in name or "classifier.modules_to_save" in name for name in trainable)
    adapter = student.provenance["adapter"]
    assert 0 < adapter["trainable_parameters"] < adapter["training_parameters"] / 10
    assert adapter["exported"] == "merged"
    trained(student, features)
    changed = said(student, features)
    assert (changed - expected).abs().max() > 1e-2
    base = {
        name.replace(".base_layer", "").replace(".original_module", ""): tensor
        for name, tensor in student.model.get_base_model().state_dict().items()
        if "lora" not in name and "ia3" not in name and "modules_to_save" not in name
    }
    assert base.keys() == before.keys()
    assert all(torch.equal(base[name], tensor) for name, tensor in before.items())
    student.save(tmp_path / "out")
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    exported, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    torch.testing.assert_close(
        said(Student(exported.eval(), student.tokenizer), features), changed, rtol=0, atol=1e-5
    )
    student.merge()
    assert type(student.model) is type(exported)
    torch.testing.assert_close(said(student, features), changed, rtol=0, atol=1e-5)


def test_the_same_seed_draws_the_same_adapter(new_student):
    first, again, other = (
        new_student().with_adapter(LORA, kind=KIND, seed=seed).model.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    "settings", [{**LORA, "lora_dropout": 0.1}, PROMPTS["PROMPT_TUNING"]], ids=["lora", "prompt"]
)
def test_a_training_that_was_cut_off_goes_on_bitwise(new_student, features, tmp_path, settings):
    whole = trained(new_student().with_adapter(settings, kind=KIND), features)

    class Cut(Exception): ...

    def stop(figures):
        if figures["step"] == 3:
            raise Cut

    each = dataclasses.replace(TRAIN, logging_steps=1)
    cut = new_student().with_adapter(settings, kind=KIND)
    with pytest.raises(Cut):
        Engine(cut, Labels(), features, each, checkpoints=tmp_path, log=stop).run()
    resumed = new_student().with_adapter(settings, kind=KIND)
    engine = Engine(resumed, Labels(), features, each, checkpoints=tmp_path)
    assert engine.resume() == 2
    engine.run()
    other = resumed.model.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in whole.model.state_dict().items())
    bytes_kept = sum(f.stat().st_size for f in tmp_path.rglob("*.safetensors") if "student" in f.name)
    assert bytes_kept < 4 * sum(p.numel() for p in resumed.model.parameters()) / 2


def can_pass_prefix(plain):
    return "past_key_values" in inspect.signature(plain.model.base_model.forward).parameters


def test_a_prefix_that_peft_cannot_hand_to_the_model_is_refused(new_student, tmp_path):
    """As with transformers 5.24, whose models take it as `cache`: peft 0.21 raises in the first forward pass."""

    def renamed():
        plain = new_student()
        plain.model.base_model.forward = lambda input_ids, cache=None: None
        return plain

    with pytest.raises(
        ModelError, match=r"^student\.adapter: PREFIX_TUNING does not fit a BertForSeq.* with peft 0"
    ):
        renamed().with_adapter(PROMPTS["PREFIX_TUNING"], kind=KIND)
    if can_pass_prefix(new_student()):
        adapted = new_student().with_adapter(PROMPTS["PREFIX_TUNING"], kind=KIND)
        adapted.model.save_pretrained(tmp_path)
        load_adapter(new_student().model, str(tmp_path), "mine")
        with pytest.raises(ModelError, match=r"^model mine: PREFIX_TUNING does not fit .*use a newer peft"):
            load_adapter(renamed().model, str(tmp_path), "mine")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # AutoPeftModel's own
@pytest.mark.parametrize("settings", PROMPTS.values(), ids=PROMPTS)
def test_virtual_tokens_train_and_are_exported_beside_their_base(new_student, features, tmp_path, settings):
    from peft import AutoPeftModelForSequenceClassification

    if settings["peft_type"] == "PREFIX_TUNING" and not can_pass_prefix(new_student()):
        pytest.skip("this peft cannot hand a prefix to a model of this transformers")
    student = new_student().with_adapter(settings, kind=KIND)
    before = said(student, features)
    trained(student, features)
    after = said(student, features)
    assert (after - before).abs().max() > 1e-3
    student.merge()
    student.save(tmp_path / "out")
    assert {"adapter_config.json", "adapter_model.safetensors", "base"} <= {
        f.name for f in (tmp_path / "out").iterdir()
    }
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(said(Student(loaded, student.tokenizer), features), after, rtol=0, atol=1e-5)
    (tmp_path / "out").rename(tmp_path / "moved")
    teacher = Teacher.load(str(tmp_path / "moved"), kind=KIND, labels=LABELS)
    torch.testing.assert_close(said(teacher, features), after, rtol=0, atol=1e-5)
    provenance = json.loads((tmp_path / "moved" / "provenance.json").read_text())
    assert provenance["adapter"]["exported"] == "beside its base"
    with pytest.raises(ModelError, match=r"its adapter cannot be merged, and no student starts from it"):
        Student.load(str(tmp_path / "moved"), kind=KIND, labels=LABELS)


def test_a_language_model_with_virtual_tokens_gives_logits_of_the_counted_positions_alone(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=2, pad_token_id=0)  # fmt: skip
    student = Student(LlamaForCausalLM(config), tokenizer)
    student = student.with_adapter(PROMPTS["PROMPT_TUNING"], kind="causal_lm")
    student.model.eval()
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 0]])
    mask = (ids > 0).long()
    rows = torch.tensor([[False, True, True, False], [True, True, False, False]])
    batch = Batch(
        {"input_ids": ids, "attention_mask": mask}, torch.arange(2), None, torch.ones(4), torch.zeros(4), rows
    )
    whole = student.model(input_ids=ids, attention_mask=mask).logits[:, 3:]
    torch.testing.assert_close(student(batch).logits_NC, whole[rows])


def test_losses_that_look_inside_read_a_lora_student_and_refuse_virtual_tokens(
    new_student, features, teacher
):
    loss = 0.5 * ForwardKL() + 0.1 * HiddenStates() + 0.1 * Relations(heads=2)
    trained(new_student().with_adapter(LORA, kind=KIND), features, loss, teacher)
    with pytest.raises(ModelError, match=r"^student\.adapter: its virtual tokens shift the positions"):
        trained(new_student().with_adapter(PROMPTS["PROMPT_TUNING"], kind=KIND), features, loss, teacher)


@pytest.fixture
def adapter_folder(tiny_bert, features, tokenizer, tmp_path):
    """A LoRA adapter of the tiny BERT as peft saves it, and what the model with it says."""
    plain = Student.load(str(tiny_bert), kind=KIND, labels=LABELS)
    student = trained(plain.with_adapter(LORA, kind=KIND), features)
    student.model.peft_config["default"].base_model_name_or_path = str(tiny_bert)
    student.model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", said(student, features)


def test_a_teacher_that_is_an_adapter(adapter_folder, features, tiny_bert):
    folder, expected = adapter_folder
    source = find_model(str(folder))
    assert source.base == find_model(str(tiny_bert))
    teacher = Teacher.load(str(folder), kind=KIND, labels=LABELS)
    assert not any(p.requires_grad for p in teacher.model.parameters())
    torch.testing.assert_close(said(teacher, features), expected, rtol=0, atol=1e-5)
    with (folder / "adapter_config.json").open("a") as file:
        file.write("\n")
    assert find_model(str(folder)).digest != source.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"megatron_config": {"a": 1}}, r"sets megatron_config, which is not followed"),
        ({"base_model_name_or_path": None}, r"names no base_model_name_or_path"),
        ({"base_model_name_or_path": "/not/there"}, r"^model /not/there: no such folder"),
        ({"peft_type": "XLORA"}, r"adapters of type XLORA are not read"),
        ("adapter", r"is an adapter too; merge that one first"),
        ("pickle", r"an adapter without adapter_model\.safetensors; .*\(pickles are not read\)"),
    ],
)  # fmt: skip
def test_adapters_that_are_not_read(adapter_folder, tmp_path, changes, message):
    folder, _ = adapter_folder
    if changes == "pickle":
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
        changes = {}
    if changes == "adapter":
        shutil.copytree(folder, tmp_path / "under")
        changes = {"base_model_name_or_path": str(tmp_path / "under")}
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=message):
        find_model(str(folder))


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"peft_type": "LORRA"}, KIND, r"^student\.adapter\.peft_type: must be one of ADALORA, .*, found LORRA$"),
        ({**LORA, "lora_alfa": 3}, KIND, r"^student\.adapter\.lora_alfa: is no key of LoraConfig to set here; did you mean lora_alpha\?$"),
        ({**LORA, "task_type": "SEQ_CLS"}, KIND, r"^student\.adapter\.task_type: is no key of LoraConfig to set here"),
        ({**LORA, "megatron_config": 1}, KIND, r"^student\.adapter\.megatron_config: is no key"),
        ({**LORA, "target_modules": ["nowhere"]}, KIND, r"^student\.adapter: LORA does not fit a BertForSeq"),
        ({**LORA, "layers_pattern": "x", "target_modules": "query", "layers_to_transform": [0]}, KIND, r"^student\.adapter: LoraConfig takes no such value"),
        (PROMPTS["P_TUNING"], "multiple_choice", r"P_TUNING adds virtual tokens, which a multiple_choice model does not take"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(new_student, settings, kind, message):
    with pytest.raises(ModelError, match=message):
        new_student().with_adapter(settings, kind=kind)


def test_without_peft_one_line_says_what_to_install(new_student, adapter_folder, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **named):
        if name.split(".")[0] == "peft":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    line = r'peft is not installed; type: pip install "distill\[peft\]"$'
    with pytest.raises(ModelError, match=r"^student\.adapter: " + line):
        new_student().with_adapter(LORA, kind=KIND)
    with pytest.raises(ModelError, match=r"is an adapter, and " + line):
        load_model(find_model(str(adapter_folder[0])), kind=KIND, labels=LABELS, seed=0)


def test_a_teacher_in_bf16_says_nearly_the_same_in_float32(tiny_bert, new_student, features, tmp_path):
    trained(student := new_student(), features)
    student.save(tmp_path / "teacher")
    whole, half = (
        Teacher.load(str(tmp_path / "teacher"), kind=KIND, labels=LABELS, precision=precision)
        for precision in ("auto", "bf16")
    )
    assert next(whole.model.parameters()).dtype is torch.float32
    assert next(half.model.parameters()).dtype is torch.bfloat16
    ours, theirs = said(half, features), said(whole, features)
    assert ours.dtype is torch.float32
    assert 0 < (ours - theirs).abs().max() < 0.05 * theirs.abs().max()


def test_int8_is_refused_where_the_device_cannot():
    with pytest.raises(
        ModelError, match=r"^teacher\.precision: int8 needs a CUDA device and bitsandbytes .*found cpu"
    ):
        weights_precision("int8", torch.device("cpu"))
