"""A student's ONNX file says what the student says, in any shape of batch, and is left where it does not."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from distill.errors import ModelError
from distill.manifest import verified
from distill.models import OnnxFile, Student, find_model, keep_layers, onnx_file
from distill.models.source import MODEL_KIND

from .architectures import made

if TYPE_CHECKING:
    from transformers import PreTrainedModel

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason='needs pip install "distill[onnx]"')

LABELS = ("no", "maybe", "yes")


@pytest.fixture(scope="module")
def exported(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, OnnxFile, Student]:
    """A classifier's folder, its file, and itself."""
    folder = tmp_path_factory.mktemp("exported") / "student"
    student = Student.from_teacher(str(tiny_bert), layers=2, kind="classification", labels=LABELS)
    student.model.classifier.weight.data.mul_(50)
    return folder, student.export_onnx(folder), student


def run_alone(folder: Path, inputs: dict[str, torch.Tensor]) -> Any:
    """What onnxruntime says, with nothing of ours between."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})[0]


def test_axes_and_names_are_those_of_optimum(exported):
    import onnx

    folder, file, _ = exported
    graph = onnx.load(folder / "onnx" / "model.onnx").graph

    def shape(value: Any) -> list[str | int]:
        return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]

    assert {each.name: shape(each) for each in graph.input} == {
        key: ["batch_size", "sequence_length"] for key in ("input_ids", "attention_mask", "token_type_ids")
    }
    assert {each.name: shape(each) for each in graph.output} == {"logits": ["batch_size", 3]}
    assert file.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert file.opset >= 18


@pytest.mark.parametrize("texts", [["one"], ["a cat sat", "on"], ["x " * 90, "a short one", "two words"]])
def test_texts_of_any_length_get_the_logits_of_the_saved_weights(exported, texts):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, _, _ = exported
    inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True).eval()
    with torch.inference_mode():
        expected = model(**inputs).logits
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(torch.from_numpy(run_alone(folder, inputs)), expected, atol=1e-4, rtol=0)


def test_the_manifest_holds_it_and_a_damaged_one_is_refused(exported, tmp_path):
    import shutil

    folder, file, _ = exported
    path = folder / "onnx" / "model.onnx"
    assert verified(folder, MODEL_KIND)["onnx/model.onnx"] == file.sha256
    assert file.bytes == path.stat().st_size
    assert [each.name for each in path.parent.iterdir()] == ["model.onnx"]
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (copy / "onnx" / "model.onnx").write_bytes(damaged)
    with pytest.raises(ModelError, match=r"onnx/model\.onnx is damaged"):
        find_model(str(copy))


def test_the_same_student_gives_the_same_bytes_without_folders_of_this_machine(exported, capfd, tmp_path):
    folder, file, student = exported
    assert student.export_onnx(tmp_path / "again").sha256 == file.sha256
    said = capfd.readouterr()
    assert said.out + said.err == ""  # the exporter talks
    content = (folder / "onnx" / "model.onnx").read_bytes()
    for trace in (b"site-packages", b'File "', b".py", str(Path(__file__).parents[3]).encode()):
        assert trace not in content
    weights = (folder / "model.safetensors").stat().st_size
    assert file.bytes < 1.02 * weights + 300_000


def test_new_weights_take_the_old_file_away(exported, tiny_bert, tmp_path):
    import shutil

    folder = Path(shutil.copytree(exported[0], tmp_path / "student"))
    other = Student.from_teacher(str(tiny_bert), layers=1, kind="classification", labels=LABELS)
    other.save(folder)
    assert not (folder / "onnx" / "model.onnx").exists()
    assert "onnx/model.onnx" not in verified(folder, MODEL_KIND)


FRESH = """
import json, sys
import numpy as np, onnxruntime
from tokenizers import Tokenizer

folder, texts = sys.argv[1], json.loads(sys.argv[2])
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[PAD]"))
made = tokenizer.encode_batch([tuple(pair) for pair in texts])
session = onnxruntime.InferenceSession(f"{folder}/onnx/model.onnx", providers=["CPUExecutionProvider"])
given = {
    "input_ids": np.array([each.ids for each in made]),
    "attention_mask": np.array([each.attention_mask for each in made]),
    "token_type_ids": np.array([each.type_ids for each in made]),
}
print(json.dumps(session.run(["logits"], given)[0].tolist()))
assert not {"torch", "transformers", "distill"} & sys.modules.keys()
"""


def test_a_fresh_process_needs_neither_torch_nor_distill(exported, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, _, _ = exported
    texts = [["I saw the dog", "there is a dog"], ["It rained for days and days", "wet"]]
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(folder), json.dumps(texts)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True).eval()
    with torch.inference_mode():
        expected = model(**inputs).logits
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), expected, atol=1e-4, rtol=0)


@pytest.fixture
def saved(tmp_path, tokenizer):
    """A function that saves any model beside a tokenizer, and gives its folder."""

    def save(model: PreTrainedModel) -> Path:
        Student(model, tokenizer).save(tmp_path / "saved")
        return tmp_path / "saved"

    return save


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_language_models_say_every_tokens_logits(name, saved, tokenizer):
    """Compared where the file is written, in shapes with padding, of a T5 with texts of any length for the decoder."""
    if name == "t5" and torch.__version__ < "2.7":
        pytest.skip("torch 2.6 exports no T5 whose texts have any length")
    model = keep_layers(made(name), layers=[1], **({"decoder_layers": [0]} if name == "t5" else {}))
    if name == "t5":  # whose uneven weights make large logits
        model.lm_head.weight.data /= 10
    found = onnx_file.write_onnx(model, tokenizer, saved(model))
    own = ("decoder_input_ids",) if name == "t5" else ()
    assert found.inputs == ("input_ids", "attention_mask", *own)
    assert found.max_logit > 0.05
    assert found.max_difference <= 1e-4
    assert found.batches == 5


def test_an_answer_that_differs_is_one_line_and_leaves_nothing(saved, tokenizer, monkeypatch):
    import onnx

    model = made("bert")
    folder = saved(model)
    before = (folder / "manifest.json").read_bytes()
    tidy = onnx_file._tidy

    def wrong(file: Any) -> None:
        tidy(file)
        bias = next(each for each in file.graph.initializer if each.name.endswith("classifier.bias"))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 3e-4, bias.name))

    monkeypatch.setattr(onnx_file, "_tidy", wrong)
    with pytest.raises(ModelError, match=r"answers otherwise than torch, by up to 0\.0003 of logits") as told:
        onnx_file.write_onnx(model, tokenizer, folder)
    assert "\n" not in str(told.value)
    assert not (folder / "onnx").exists()
    assert (folder / "manifest.json").read_bytes() == before
    assert find_model(str(folder))


def test_a_model_that_torch_cannot_export_is_one_line(saved, tokenizer):
    model = made("bert")

    def by_content(*arguments: Any, **inputs: torch.Tensor) -> Any:
        if inputs["input_ids"].sum() > 0:
            return type(model).forward(model, *arguments, **inputs)
        raise AssertionError

    folder = saved(model)
    model.forward = by_content  # type: ignore[method-assign]
    by_content.__signature__ = inspect.signature(type(model).forward)  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="torch cannot export a BertForSequenceClassification") as told:
        onnx_file.write_onnx(model, tokenizer, folder)
    assert "\n" not in str(told.value)
    assert not (folder / "onnx").exists()


def test_more_than_one_file_can_hold_is_refused(saved, tokenizer, monkeypatch):
    monkeypatch.setattr(onnx_file, "LARGEST_FILE", 10_000)
    model = made("bert")
    with pytest.raises(ModelError, match="do not fit into one ONNX file, which holds 2 GB"):
        onnx_file.write_onnx(model, tokenizer, saved(model))


@pytest.mark.slow
def test_an_adapter_is_merged_into_the_file(tiny_bert, tmp_path):
    pytest.importorskip("peft")
    plain = Student.from_teacher(str(tiny_bert), layers=1, kind="classification", labels=LABELS)
    student = plain.with_adapter({"peft_type": "LORA", "r": 2}, kind="classification")
    for name, weight in student.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(0))
    student.export_onnx(tmp_path / "lora")
    inputs = student.tokenizer(["a dog", "a cat on a mat"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = student.model.eval()(**inputs).logits
    said = torch.from_numpy(run_alone(tmp_path / "lora", inputs))
    torch.testing.assert_close(said, expected, atol=1e-4, rtol=0)


def test_an_adapter_that_cannot_be_merged_is_refused(tiny_bert, tmp_path):
    pytest.importorskip("peft")
    plain = Student.from_teacher(str(tiny_bert), layers=1, kind="classification", labels=LABELS)
    settings = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}
    with pytest.raises(ModelError, match="an adapter that cannot be merged is not exported"):
        plain.with_adapter(settings, kind="classification").export_onnx(tmp_path / "prompt")
    assert not (tmp_path / "prompt").exists()
