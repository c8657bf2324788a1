"""A published student's ONNX file, and the code of its card."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from distill.errors import PublishError
from distill.manifest import verified
from distill.models import Student
from distill.models.source import MODEL_KIND
from distill.publish import publish_run
from distill.publish.subject import Subject
from distill.publish.usage import code, example_of, onnx_code
from distill.recipe import TeacherRecipe
from distill.run_folder import RunFolder
from distill.tasks import TASKS

from .conftest import TO

if TYPE_CHECKING:
    from distill.publish import Publication

# huggingface_hub's own, of the way its network library is called.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
SAID = {"license": "apache-2.0", "license_of": {"tiny-bert": "mit"}}


@pytest.fixture(scope="module")
def rendered(with_onnx, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Publication, Path]]:
    root = tmp_path_factory.mktemp("rendered-onnx")
    return {
        task: (publish_run(with_onnx[1], TO, task=task, dry_run=True, out=root / task, **SAID), root / task)
        for task in ("cb", "copa")
    }


def test_a_dry_run_shows_it_under_the_manifest(rendered, with_onnx):
    done, folder = rendered["cb"]
    original = with_onnx[1] / "student" / "cb" / "onnx" / "model.onnx"
    assert done.files["onnx/model.onnx"] == original.stat().st_size
    assert (folder / "onnx" / "model.onnx").read_bytes() == original.read_bytes()
    assert "onnx/model.onnx" in verified(folder, MODEL_KIND)
    assert str(Path.home()).encode() not in original.read_bytes()


def test_one_commit_holds_it_and_the_next_student_takes_it_away(rendered, with_onnx, hub):
    done = publish_run(with_onnx[1], TO, task="cb", **SAID)
    assert done.files == rendered["cb"][0].files
    stored = hub.repositories[TO].files
    assert stored["onnx/model.onnx"] == (rendered["cb"][1] / "onnx" / "model.onnx").read_bytes()
    assert not publish_run(with_onnx[1], TO, task="cb", **SAID).upload.changed
    publish_run(with_onnx[2], TO, task="cb", **SAID)
    assert "onnx/model.onnx" not in hub.repositories[TO].files


def test_one_that_the_run_did_not_write_is_refused(with_onnx, tmp_path):
    copy = Path(shutil.copytree(with_onnx[2], tmp_path / "run"))
    path = copy / "student" / "cb" / "onnx" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(b"somebody's")
    with pytest.raises(PublishError, match=r"onnx/model\.onnx: is not what the run wrote"):
        publish_run(copy, TO, task="cb", dry_run=True, **SAID)
    path.rename(path.with_name("other.onnx"))
    with pytest.raises(PublishError, match=r"other\.onnx: is no file of a student"):
        publish_run(copy, TO, task="cb", dry_run=True, **SAID)


def said_by(source: str, folder: Path) -> str:
    """What a card's code prints, with a folder in place of the repository."""
    here = re.sub(r"^name = .*$", f"name = {str(folder)!r}", source, count=1, flags=re.M)
    here = here.replace("hf_hub_download(name, ", "'/'.join((name, ").replace("model.onnx')", "model.onnx'))")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(here, "card", "exec"), {})  # noqa: S102 - our own card's
    return out.getvalue()


@pytest.mark.parametrize("task", ["cb", "copa"])
def test_the_cards_code_for_onnxruntime_answers_as_its_code_for_torch(rendered, task):
    folder = rendered[task][1]
    torch_code, code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert "import torch" in torch_code
    assert "torch" not in code
    said = said_by(code, folder)
    assert said == said_by(torch_code, folder)
    assert len(said.splitlines()) == {"cb": 3, "copa": 2}[task]


def test_the_card_says_size_difference_and_speed(rendered, with_onnx):
    found = json.loads((with_onnx[1] / "report.json").read_text())["onnx"]
    card = (rendered["copa"][1] / "README.md").read_text()
    file = found["tasks"]["copa"]
    assert f"| COPA | {file['bytes'] / 1e6:.1f} MB | {file['opset']} | {file['max_difference']:.1e} |" in card
    assert "| CB | " not in card
    times = found["measured"]["latency_ms"]["torch"]
    assert f" | {times['batch_1']:.2f} | {times['batch_32']:.1f} |" in card


@pytest.fixture
def spoken(recipe, tmp_path):
    """A function: what the card's code prints of a student that speaks, with onnxruntime and with torch."""
    pytest.importorskip("onnxscript", reason='needs pip install "distill[onnx]"')

    def both(student: Student, architecture: str, task: str) -> tuple[str, str]:
        folder = tmp_path / "student"
        if not folder.exists():
            student.export_onnx(folder)
        data = dataclasses.replace(recipe.data, tasks=(task,), source="text" if task == "text" else "folder")
        teacher = TeacherRecipe(model=str(folder), train=recipe.train)
        speaks = dataclasses.replace(
            recipe, architecture=architecture, data=data, teacher=teacher, loss=recipe.loss[:1]
        )
        subject = Subject(RunFolder(tmp_path), speaks, {}, TASKS[task])
        written = onnx_code(subject, "ada/x", student.tokenizer)
        return said_by(written, folder), said_by(
            code(subject, "ada/x", student.tokenizer, adapter=False), folder
        )

    return both


def test_the_code_for_a_decoder_writes_as_torch_does(spoken, tiny_llama):
    student = Student.load(str(tiny_llama), kind="causal_lm", labels=())
    said, expected = spoken(student, "decoder", "text")
    assert said == expected
    assert len(said) > 50
    said, _ = spoken(student, "decoder", "rte")
    prompt = TASKS["rte"].completion(example_of("rte")).prompt.text
    ids = student.tokenizer(prompt, return_tensors="pt")["input_ids"]
    wrote = student.model.eval().generate(ids, max_new_tokens=20, do_sample=False)
    assert said == student.tokenizer.decode(wrote[0], skip_special_tokens=True) + "\n"


@pytest.mark.slow
def test_the_code_for_an_encoder_of_plain_text_fills_as_torch_does(spoken, tiny_bert):
    said, expected = spoken(Student.load(str(tiny_bert), kind="masked_lm", labels=()), "encoder", "text")
    assert said == expected
    assert said.count("'") == 10


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 exports no T5 whose texts have any length")
def test_the_code_for_an_encoder_decoder_writes_as_torch_does(spoken, tokenizer):
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=101,
    )
    said, expected = spoken(Student(T5ForConditionalGeneration(config), tokenizer), "encoder_decoder", "rte")
    assert said == expected
    assert len(said.split()) > 3
