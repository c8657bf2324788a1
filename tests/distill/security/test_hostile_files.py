"""Files of an attacker's in every place that is read: nothing of them runs, nothing is read or written elsewhere."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from distill.cache import CachedTeacher, CacheSpec, EachAlone, header_of, write_cache
from distill.cache.files import MANIFEST as CACHE_MANIFEST
from distill.cache.files import Shard, read_manifest, write_manifest
from distill.engine.checkpoint import latest_checkpoint, save_checkpoint
from distill.errors import CheckpointError, DataError, DistillError, ModelError, RecipeError
from distill.manifest import seal, sealed_text
from distill.models import Teacher, find_model
from distill.models.loading import load_model, load_tokenizer
from distill.recipe import read_recipe
from distill.report import write_report
from distill.run_folder import RunFolder
from distill.runs.cache import RECORD, CacheEntry
from distill.tasks import load_task, read_predictions
from distill.tasks.completions import chat_frame
from distill.tasks.hub import REPOSITORY, hub_rows

from .conftest import LABELS, changed

KIND = "classification"


def load(folder: Path) -> Teacher:
    return Teacher.load(str(folder), kind=KIND, labels=LABELS)


def one_line(raised: pytest.ExceptionInfo[DistillError]) -> str:
    line = str(raised.value)
    assert len(line.splitlines()) == 1
    assert len(line) < 1000
    return line


# Pickles.


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pkl", "pytorch_model-00001-of-00001.bin"]
)
def test_a_model_of_pickled_weights_is_refused(copied, pickled, name):
    (copied / "model.safetensors").unlink()
    (copied / name).write_bytes(pickled)
    with pytest.raises(
        ModelError, match=r"no \.safetensors file; convert the weights first \(pickles are not read\)"
    ):
        load(copied)


def test_pickles_beside_the_weights_are_left_alone(copied, pickled):
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "optimizer.pt",
        "tokenizer.pkl",
        "custom_checkpoint_0.pkl",
    ):
        (copied / name).write_bytes(pickled)
    assert isinstance(load(copied), Teacher)


def test_a_pickle_under_the_name_of_weights_is_refused(copied, pickled):
    (copied / "model.safetensors").write_bytes(pickled)
    with pytest.raises(ModelError, match="cannot be loaded") as raised:
        load(copied)
    one_line(raised)


@pytest.mark.parametrize(
    "shard", ["pytorch_model.bin", "../elsewhere.safetensors", "/etc/passwd", "missing.safetensors", 7]
)
def test_an_index_may_name_nothing_but_the_folders_own_safetensors(copied, pickled, tmp_path, shard):
    """The digest is of the folder's .safetensors files: weights of other files would go by unseen."""
    (copied / "pytorch_model.bin").write_bytes(pickled)
    shutil.move(copied / "model.safetensors", tmp_path / "elsewhere.safetensors")
    (copied / "decoy.safetensors").write_bytes(save({"a": torch.zeros(1)}))
    weights = {"bert.embeddings.word_embeddings.weight": shard}
    changed(copied / "model.safetensors.index.json", metadata={"total_size": 1}, weight_map=weights)
    with pytest.raises(
        ModelError, match=r"index\.json names .*, which is no \.safetensors file of the folder"
    ) as raised:
        load(copied)
    one_line(raised)


def test_the_digest_knows_which_shard_each_weight_comes_from(copied):
    content = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").unlink()
    for name in ("one.safetensors", "two.safetensors"):
        (copied / name).write_bytes(content)
    digests = set()
    for name in ("one.safetensors", "two.safetensors"):
        changed(copied / "model.safetensors.index.json", metadata={}, weight_map={"classifier.bias": name})
        digests.add(find_model(str(copied)).digest)
    assert len(digests) == 2


def checkpoint_of(folder: Path) -> Path:
    return save_checkpoint(folder, 3, {"student": {"weight": torch.arange(4.0)}}, {"owner": "me"})


def signed(step: Path) -> None:
    """A manifest that tells no lie about the files it names: its digests are no secret."""
    seal(step, "checkpoint 1")


def test_pickles_in_a_checkpoint_are_refused_or_left_alone(tmp_path, pickled):
    folder = tmp_path / "checkpoints"
    step = checkpoint_of(folder)
    for name in ("optimizer.pt", "random_states_0.pkl", "custom_checkpoint_0.pkl", "scheduler.bin"):
        (step / name).write_bytes(pickled)
    found, problems = latest_checkpoint(folder, "me")
    assert found is not None
    assert (found.step, problems) == (3, [])
    for name in ("student.safetensors", "state.json"):
        whole = (step / name).read_bytes()
        (step / name).write_bytes(pickled)
        signed(step)
        with pytest.raises(CheckpointError, match="cannot be read") as raised:
            latest_checkpoint(folder, "me")
        one_line(raised)
        (step / name).write_bytes(whole)


@pytest.mark.parametrize(
    "name", ["../../outside.safetensors", "/etc/hostname", "..", "", "inside/../../../outside.safetensors"]
)
def test_a_checkpoints_manifest_names_nothing_outside(tmp_path, name):
    folder = tmp_path / "run" / "checkpoints"
    step = checkpoint_of(folder)
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(save({"weight": torch.zeros(4)}))
    manifest = json.loads((step / "manifest.json").read_text())
    digest = hashlib.sha256(outside.read_bytes()).hexdigest()
    told = {"format": manifest["format"], "files": manifest["files"] | {name: digest}}
    (step / "manifest.json").write_text(sealed_text(told))
    with pytest.raises(CheckpointError, match=r"which is no file of it|is missing|Is a directory") as raised:
        latest_checkpoint(folder, "me")
    one_line(raised)


@pytest.fixture
def cache(tmp_path, teacher, features):
    """A cache of a classifier's predictions, and its header."""
    folder = tmp_path / "predictions"
    header = header_of(teacher.model, teacher.tokenizer, labels=LABELS, max_length=32)
    write_cache(folder, header, features, teacher, CacheSpec())
    return folder, header


def test_a_pickle_in_a_cache_is_refused(cache, pickled, features):
    folder, header = cache
    manifest = read_manifest(folder)
    (shard,) = manifest.shards
    (folder / shard.file).write_bytes(pickled)
    digest = hashlib.sha256(pickled).hexdigest()
    told = Shard(shard.file, digest, len(pickled), shard.examples, shard.rows)
    write_manifest(folder, type(manifest)(**{**vars(manifest), "shards": (told,)}))
    with pytest.raises(CheckpointError, match="is damaged") as raised:
        CachedTeacher.open(folder, header)(features.batch([0]))
    one_line(raised)
    (folder / CACHE_MANIFEST).write_bytes(pickled)
    with pytest.raises(CheckpointError) as raised:
        CachedTeacher.open(folder, header)
    one_line(raised)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "{root}/outside.safetensors", "a/../../outside.safetensors"]
)
def test_a_caches_manifest_names_nothing_outside(cache, tmp_path, name):
    folder, header = cache
    manifest = read_manifest(folder)
    (shard,) = manifest.shards
    shutil.move(folder / shard.file, tmp_path / "outside.safetensors")
    told = Shard(name.format(root=tmp_path), shard.sha256, shard.bytes, shard.examples, shard.rows)
    write_manifest(folder, type(manifest)(**{**vars(manifest), "shards": (told,)}))
    with pytest.raises(CheckpointError, match="is damaged") as raised:
        CachedTeacher.open(folder, header)
    one_line(raised)


# Weights that are no safetensors.


def safetensors_of(header: object, data: bytes = b"\0" * 64, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start: int, end: int, *shape: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


ATTACKS = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "a header of 2^63 bytes": safetensors_of({}, length=2**63),
    "a header of 4 GB that is not there": safetensors_of({}, length=2**32),
    "a header beyond the limit": safetensors_of({}, length=100_000_001),
    "no JSON": safetensors_of(b"{" * 64),
    "JSON 100,000 deep": safetensors_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "no UTF-8": safetensors_of(b'{"\xff\xfe": 1}'),
    "a list": safetensors_of([]),
    "overlapping tensors": safetensors_of({"a": tensor(0, 64, 16), "b": tensor(32, 64, 8)}),
    "a hole": safetensors_of({"a": tensor(0, 16, 4), "b": tensor(32, 64, 8)}),
    "bytes that no tensor has": safetensors_of({"a": tensor(0, 16, 4)}),
    "beyond the end": safetensors_of({"a": tensor(0, 2**40, 2**38)}),
    "a negative offset": safetensors_of({"a": tensor(-64, 0, 16)}),
    "backwards": safetensors_of({"a": tensor(64, 0, 16)}),
    "a shape that overflows": safetensors_of({"a": tensor(0, 64, 2**62, 2**62)}),
    "a shape of another size": safetensors_of({"a": tensor(0, 64, 15)}),
    "a negative shape": safetensors_of({"a": tensor(0, 64, -16)}),
    "an unknown type": safetensors_of({"a": tensor(0, 64, 16, dtype="PY")}),
    "a name twice": safetensors_of(
        b'{"a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]},"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]}}'
    ),
    "metadata that is no text": safetensors_of({"__metadata__": {"a": {"b": 1}}, "a": tensor(0, 64, 16)}),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_attacks_on_the_format_of_weights_are_refused_wherever_they_are_read(attack, copied, tmp_path):
    (copied / "model.safetensors").write_bytes(attack)
    with pytest.raises(ModelError) as raised:
        load(copied)
    one_line(raised)
    folder = tmp_path / "checkpoints"
    step = checkpoint_of(folder)
    (step / "student.safetensors").write_bytes(attack)
    signed(step)
    with pytest.raises(CheckpointError, match="cannot be read") as raised:
        latest_checkpoint(folder, "me")
    one_line(raised)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_attacks_on_the_format_of_a_shard_are_refused(attack, cache, features):
    folder, header = cache
    manifest = read_manifest(folder)
    (shard,) = manifest.shards
    (folder / shard.file).write_bytes(attack)
    told = Shard(shard.file, hashlib.sha256(attack).hexdigest(), len(attack), shard.examples, shard.rows)
    write_manifest(folder, type(manifest)(**{**vars(manifest), "shards": (told,)}))
    with pytest.raises(CheckpointError, match="is damaged") as raised:
        CachedTeacher.open(folder, header)(features.batch([0]))
    one_line(raised)


# What a model's JSON asks for.


@pytest.mark.parametrize(
    "keys",
    [
        {"attn_implementation": "kernels-community/flash-attn"},
        {"_attn_implementation": "somebody/kernel@main:attention"},
        {"attn_implementation": {"": "paged|somebody/kernel"}},
        {"text_config": {"_attn_implementation_internal": "somebody/kernel"}},
        {"experts_implementation": "somebody/kernel"},
    ],
)
def test_a_model_that_names_a_kernel_of_the_hub_is_refused(copied, keys):
    changed(copied / "config.json", **keys)
    with pytest.raises(ModelError, match="a kernel to be downloaded and run; remove it") as raised:
        load(copied)
    one_line(raised)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("place", ["student", "teacher"])
def test_a_recipe_that_names_a_kernel_of_the_hub_is_refused(key, place):
    config = f"{place}={{config: {{model_type: bert, {key}: kernels-community/flash-attn}}}}"
    with pytest.raises(
        RecipeError, match=rf"{place}\.config\.{key}: must be an implementation that is installed"
    ):
        read_recipe("quickstart", [config])


def test_an_implementation_that_is_installed_is_fine(copied):
    changed(copied / "config.json", attn_implementation="eager")
    assert isinstance(load(copied), Teacher)


def test_a_model_with_an_adapter_in_its_folder_is_refused(copied):
    """transformers would load the adapter too, which no digest covers, and import the module that it names."""
    changed(
        copied / "adapter_config.json",
        peft_type="LORA", base_model_name_or_path="somebody/else", megatron_config={}, megatron_core="antigravity",
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"holds both config\.json and adapter_config\.json") as raised:
        load(copied)
    one_line(raised)


BROKEN_JSON = {
    "nothing": b"",
    "a list": b"[]",
    "a number": b"7",
    "100,000 deep": b"[" * 100_000,
    "no UTF-8": b'{"model_type": "\xff"}',
    "a number of 5,000 digits": b'{"hidden_size": ' + b"9" * 5_000 + b"}",
    "types of all the wrong kind": b'{"model_type": {"a": []}, "auto_map": 3, "architectures": {"x": 1}, "hidden_size": "big"}',
    "absurd sizes": b'{"model_type": "bert", "hidden_size": -1, "num_attention_heads": 0}',
}


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "tokenizer.json", "adapter_config.json"]
)
@pytest.mark.parametrize("content", BROKEN_JSON.values(), ids=BROKEN_JSON)
def test_broken_json_of_a_model_costs_one_line(copied, file, content):
    if file == "adapter_config.json":
        (copied / "config.json").unlink()
        (copied / "adapter_model.safetensors").write_bytes(save({"a": torch.zeros(1)}))
    (copied / file).write_bytes(content)
    if file == "tokenizer_config.json" and content == BROKEN_JSON["absurd sizes"]:
        load(copied)  # keys of which a tokenizer takes no notice
        return
    with pytest.raises(ModelError) as raised:
        load(copied)
    one_line(raised)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.mkdir('it-was-run') }}",
        "{% for name in ().__class__.__base__.__subclasses__() %}{{ name }}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{{ messages[0].content ",
    ],
)
def test_a_chat_template_runs_in_its_sandbox_or_not_at_all(copied, template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = load_tokenizer(find_model(str(copied)))
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match="the chat template") as raised:
        chat_frame(tokenizer)
    one_line(raised)
    assert not (tmp_path / "it-was-run").exists()


# Data.


def test_scripts_in_a_folder_of_data_are_left_alone(official_folder, tmp_path, mark, monkeypatch):
    data = Path(shutil.copytree(official_folder, tmp_path / "superglue"))
    for name in (
        "superglue.py",
        "super_glue.py",
        "RTE/RTE.py",
        "RTE/rte.py",
        "RTE/__init__.py",
        "RTE/conftest.py",
        "json.py",
    ):
        (data / name).write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    monkeypatch.chdir(data)
    assert len(load_task("rte", source="folder", path=data).train) == 40


def test_a_folder_that_is_called_as_the_hubs_dataset_is_not_taken_for_it(tmp_path, mark, monkeypatch):
    folder = tmp_path / REPOSITORY
    folder.mkdir(parents=True)
    (folder / "super_glue.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    (folder / "train.jsonl").write_text('{"premise": "a", "hypothesis": "b", "label": 0, "idx": 0}\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="a folder here has the name of the hub's dataset") as raised:
        hub_rows("rte", "train")
    one_line(raised)


ROWS = {
    "100,000 deep": "[" * 100_000,
    "5,000 digits": '{"idx": ' + "9" * 5_000 + "}",
    "a tag": "!!python/object/apply:os.system [id]",
    "a pickle": "\x80\x04\x95",
    "an object in an object": '{"premise": {"__class__": "os"}, "hypothesis": [], "label": {}, "idx": "x"}',
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_hostile_row_costs_one_line(row, official_folder, tmp_path):
    data = Path(shutil.copytree(official_folder, tmp_path / "superglue"))
    (data / "RTE" / "train.jsonl").write_text(row + "\n", encoding="latin-1")
    with pytest.raises(DataError) as raised:
        load_task("rte", source="folder", path=data)
    one_line(raised)
    stored = tmp_path / "answers.jsonl"
    stored.write_text(row + "\n", encoding="latin-1")
    with pytest.raises(DataError) as raised:
        read_predictions(stored)
    one_line(raised)


def archive(kind: str, path: Path) -> Path:
    """An archive with a file that would land outside, and many more."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as made:
            made.writestr("../../planted", "x")
            for number in range(20_000):
                made.writestr(f"RTE/{number}", "")
    else:
        with tarfile.open(path, "w:gz") as made:
            for name in ("../../planted", *(f"RTE/{number}" for number in range(20_000))):
                made.addfile(tarfile.TarInfo(name), io.BytesIO())
    return path


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_no_archive_is_unpacked(kind, tmp_path, monkeypatch):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    packed = archive(kind, folder / f"all.{kind}")
    for read in (
        lambda: load_task("rte", source="folder", path=packed),
        lambda: find_model(str(packed)),
        lambda: read_recipe(packed),
        lambda: read_predictions(packed),
        lambda: write_report(packed),
    ):
        with pytest.raises(DistillError) as raised:
            read()
        one_line(raised)
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", packed.name]


# Names and links that lead elsewhere.


@pytest.mark.parametrize("place", ["teacher.revision", "data.revision"])
@pytest.mark.parametrize("revision", ["a/../../../x", "../x", "a..b", "/x", "x."])
def test_a_revision_leads_to_no_other_folder(place, revision):
    with pytest.raises(RecipeError, match="a git revision: a commit, branch or tag"):
        read_recipe("quickstart", [f"{place}={revision}"])


@pytest.mark.parametrize("key", ["name", "output", "cache", "data.tasks.0"])
@pytest.mark.parametrize("value", ["../../x", "/x", "~/x", "..", "C:\\x"])
def test_no_name_in_a_recipes_file_leads_outside(tmp_path, key, value):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: good\nteacher: {model: org/t, train: {}}\nstudent: {from_teacher: {layers: 2}}\n"
        "loss: [{kind: labels}, {kind: forward_kl}]\n"
    )
    assert read_recipe(path).name == "good"
    line = f"data: {{tasks: ['{value}']}}\n" if key.startswith("data") else f"{key}: '{value}'\n"
    text = path.read_text()
    path.write_text(text.replace("name: good\n", line) if key == "name" else text + line)
    with pytest.raises(RecipeError) as raised:
        read_recipe(path)
    assert f": {key}: must" in one_line(raised)


@pytest.mark.parametrize(
    "link",
    [".lock", "report.md", "report.html", "report.json", "metrics.jsonl", "compression.png", ".writing-report.json", "fits", "checkpoints",
     "predictions", "student", "teacher-cache", "student/rte/model.safetensors"],
)  # fmt: skip
def test_a_run_whose_folder_leads_elsewhere_is_refused(tmp_path, link):
    """A run folder that somebody sent: writing into it must not change a file of yours."""
    run, mine = tmp_path / "run", tmp_path / "mine"
    mine.mkdir()
    (mine / "notes").write_text("dear")
    path = run / link
    path.parent.mkdir(parents=True)
    path.symlink_to(mine if "." not in link else mine / "notes")
    for use in (lambda: write_report(run), lambda: RunFolder(run).locked().__enter__()):
        with pytest.raises(CheckpointError, match="is a link that leads out of") as raised:
            use()
        one_line(raised)
    assert (mine / "notes").read_text() == "dear"
    assert [file.name for file in mine.iterdir()] == ["notes"]


def test_links_inside_of_a_runs_folder_and_a_linked_folder_are_fine(tmp_path):
    real = tmp_path / "scratch"
    (real / "large").mkdir(parents=True)
    (real / "checkpoints").symlink_to("large")
    (tmp_path / "run").symlink_to(real)
    with RunFolder(tmp_path / "run").locked():
        assert (real / ".lock").is_file()


def test_a_cache_whose_folder_leads_elsewhere_is_not_written(cache, features, teacher, tmp_path):
    folder, header = cache
    mine = tmp_path / "mine"
    mine.write_text("dear")
    (folder / f".writing-{CACHE_MANIFEST}").symlink_to(mine)
    with pytest.raises(CheckpointError, match="is a link that leads out of"):
        write_cache(folder, header, features, EachAlone(teacher), CacheSpec())
    assert mine.read_text() == "dear"


@pytest.mark.parametrize("link", ["model", "model/config.json"])
def test_a_shared_fit_with_links_is_not_taken(tmp_path, link):
    """What the link leads to would be copied into the run, and published with it."""
    entry, secret = tmp_path / "cache" / "teacher-rte-0", tmp_path / "secret"
    secret.mkdir()
    (secret / "config.json").write_text("private")
    (entry / link).parent.mkdir(parents=True)
    (entry / link).symlink_to(secret if link == "model" else secret / "config.json")
    (entry / RECORD).write_text(json.dumps({"key": "k"}))
    seal(entry, "shared fit 1")
    wanted = {"model": tmp_path / "run" / "model", RECORD: tmp_path / "run" / "fit.json"}
    with pytest.raises(CheckpointError, match="is a link that leads out of"):
        CacheEntry(entry).take("k", wanted)
    assert not (tmp_path / "run").exists()


def test_the_hostile_models_here_are_good_without_their_one_fault(copied):
    model = load_model(find_model(str(copied)), kind=KIND, labels=LABELS, seed=0, allow_new_head=False)
    assert model.num_labels == 2
