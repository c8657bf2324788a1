"""Runs whose language-model teacher is asked once and read from disk."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.errors import CheckpointError, MismatchError, ModelError
from distill.losses import ForwardKL, GhostTokenKL, HiddenStates, Labels, SampledTargets
from distill.models import Teacher
from distill.recipe import (
    CacheRecipe,
    DataRecipe,
    FromTeacher,
    MemberRecipe,
    Recipe,
    StudentRecipe,
    TeacherRecipe,
    TrainRecipe,
    read_recipe,
    write_recipe,
)
from distill.recipe.wording import FieldMistakes
from distill.runs import run, write_teacher_caches

SHORT = TrainRecipe(max_steps=3, learning_rate=1e-3, per_device_train_batch_size=4)
TRAIN = TrainRecipe(
    num_train_epochs=2,
    learning_rate=1e-3,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    save_steps=1,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "cats.txt"
    path.write_text("".join(f"The {'very ' * (n % 7)}old cat {n} sat on mat {n * n}.\n" for n in range(60)))
    return path


@pytest.fixture
def recipe(tiny_llama: Path, corpus: Path) -> Recipe:
    return Recipe(
        name="cached",
        architecture="decoder",
        data=DataRecipe(source="text", path=str(corpus), max_length=40, characters=70),
        teacher=TeacherRecipe(model=str(tiny_llama), cache=CacheRecipe()),
        student=StudentRecipe(from_teacher=FromTeacher(layers=2)),
        loss=0.5 * Labels() + 0.5 * ForwardKL(temperature=2.0),
        train=TRAIN,
        baseline=False,
    )


def asked(recipe: Recipe, whole: dict | None = None, **changes) -> Recipe:
    """The recipe with its teacher asked in another way, and other changes to the whole of it."""
    return replace(recipe, teacher=replace(recipe.teacher, **changes), **(whole or {}))


def student(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "student" / "text" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_full_cache_trains_bitwise_the_live_run_through_a_kill(recipe, tmp_path):
    run(asked(recipe, cache=None, alone=True), tmp_path / "live")
    run(recipe, tmp_path / "cached")
    assert same(student(tmp_path / "live"), student(tmp_path / "cached"))

    path = tmp_path / "recipe.yaml"
    path.write_text(write_recipe(recipe))
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "distill", "run", str(path), "--out", str(killed)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(killed.glob("checkpoints/*/step-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(killed.glob("checkpoints/student-text-seed0/step-*"))
    assert not (killed / "report.json").exists()
    run(recipe, killed)
    assert same(student(tmp_path / "live"), student(killed))


@pytest.mark.slow
def test_batches_of_a_live_teacher_differ_in_their_last_bits_only(recipe, tmp_path):
    run(asked(recipe, {"train": SHORT}, cache=None), tmp_path / "batched")
    run(replace(recipe, train=SHORT), tmp_path / "cached")
    one, other = student(tmp_path / "batched"), student(tmp_path / "cached")
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("cache", "loss", "bytes_per_row"),
    [
        (CacheRecipe(keep="top_k", count=8), GhostTokenKL(kept=8, temperature=2.0), 8 * 6),
        (CacheRecipe(keep="top_k", dtype="bfloat16"), GhostTokenKL(kept=8), 8 * 4),
        (CacheRecipe(keep="sampled", seed=3), SampledTargets(samples=20), 20 * 6),
    ],
)
def test_sparse_caches_train(recipe, tmp_path, cache, loss, bytes_per_row):
    changes = {"loss": 0.5 * Labels() + 0.5 * loss, "train": SHORT}
    sparse = asked(recipe, changes, cache=cache)
    report = run(sparse, tmp_path / "run").data
    assert report["student"]["tasks"]["text"]["language"]["perplexity"] > 1
    (summary,) = write_teacher_caches(sparse, tmp_path / "run").values()
    assert summary.computed == 0
    examples = 40  # bytes a key and a start
    content = summary.rows * bytes_per_row + summary.examples * examples
    assert content < summary.bytes < content + 2000


@pytest.mark.slow
def test_ghost_tokens_from_a_cache_are_those_of_the_live_teacher(recipe, tmp_path):
    """The same loss read from the whole teacher, batched, and from a cache of its best 8."""
    changes = {"loss": GhostTokenKL(kept=8), "train": SHORT}
    run(asked(recipe, changes, cache=None), tmp_path / "live")
    run(asked(recipe, changes, cache=CacheRecipe(keep="top_k")), tmp_path / "cached")
    one, other = student(tmp_path / "live"), student(tmp_path / "cached")
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=2e-4, rtol=1e-3)


def test_a_shared_cache_is_not_asked_again(recipe, tmp_path, monkeypatch):
    shared = replace(recipe, cache=str(tmp_path / "shared"), train=SHORT, seeds=(0, 1))
    run(shared, tmp_path / "first")
    calls = []
    ask = Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", lambda *args, **more: calls.append(1) or ask(*args, **more))
    (summary,) = write_teacher_caches(replace(shared, name="second"), tmp_path / "second").values()
    assert (summary.computed, calls) == (0, [])
    assert summary.folder.parent == tmp_path / "shared"
    # Another temperature of the loss is another sparse cache, and the same full one.
    hotter = replace(shared, name="third", loss=(ForwardKL(temperature=5.0),))
    (summary,) = write_teacher_caches(hotter, tmp_path / "third").values()
    assert summary.computed == 0
    for temperature in (1.0, 2.0):
        changes = {"loss": GhostTokenKL(temperature=temperature)}
        sparse = asked(shared, changes, cache=CacheRecipe(keep="top_k"))
        (summary,) = write_teacher_caches(sparse, tmp_path / f"sparse{temperature}").values()
        assert summary.computed == summary.examples


def test_members_are_cached_one_at_a_time(recipe, tmp_path, monkeypatch):
    members = tuple(MemberRecipe(model=recipe.teacher.model, train=SHORT, seed=seed) for seed in (0, 1))
    both = replace(
        recipe, teacher=TeacherRecipe(members=members, weights=(1.0, 2.0), alone=True), train=SHORT
    )
    run(both, tmp_path / "live")
    run(asked(both, alone=False, cache=CacheRecipe()), tmp_path / "cached")
    names = sorted(path.name for path in (tmp_path / "cached" / "teacher-cache").iterdir())
    assert names == ["teacher0-text", "teacher1-text"]
    one, other = student(tmp_path / "live"), student(tmp_path / "cached")
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-6, rtol=0)


@pytest.mark.slow
def test_hidden_tokens_and_a_students_own_vocabulary_are_cached_for_every_epoch(recipe, tiny_bert, tmp_path):
    masked = replace(
        recipe,
        architecture="encoder",
        data=replace(recipe.data, train_examples=24),
        teacher=TeacherRecipe(model=str(tiny_bert), train=SHORT, cache=CacheRecipe()),
        student=StudentRecipe(from_teacher=FromTeacher(layers=2, vocabulary="corpus")),
        train=replace(TRAIN, num_train_epochs=1.5, save_steps=500),
        cache=str(tmp_path / "shared"),
    )
    run(masked, tmp_path / "cached")
    run(asked(masked, cache=None, alone=True), tmp_path / "live")
    assert same(student(tmp_path / "live"), student(tmp_path / "cached"))
    (summary,) = write_teacher_caches(masked, tmp_path / "cached").values()
    assert 24 < summary.examples <= 48
    assert summary.computed == 0
    assert summary.bytes_per_row < 4 * 1000  # the student's tokens alone, of the teacher's 30,522


def test_a_full_cache_is_the_live_teacher_in_bfloat16_training_too(recipe, tmp_path):
    changes = {"train": replace(SHORT, precision="bf16")}
    run(asked(recipe, changes, cache=None, alone=True), tmp_path / "live")
    run(asked(recipe, changes), tmp_path / "cached")
    assert same(student(tmp_path / "live"), student(tmp_path / "cached"))


@pytest.fixture
def command(monkeypatch, capsys):
    """`distill` in this process: its exit code and its last line."""
    from distill.cli import main

    def call(*arguments: object) -> tuple[int, list[str]]:
        before = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(sys, "argv", ["distill", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        signal.signal(signal.SIGTERM, before)
        said = capsys.readouterr()
        return int(left.value.code or 0), [*said.out.splitlines(), *said.err.splitlines()]

    return call


@pytest.mark.parametrize("what", ["data", "vocabulary", "weight", "settings"])
def test_what_is_not_the_cached_teachers_is_refused_in_one_line(recipe, tmp_path, corpus, command, what):
    text, model = tmp_path / "cats.txt", tmp_path / "model"
    text.write_text(corpus.read_text())
    shutil.copytree(recipe.teacher.model, model)
    path, out = tmp_path / "recipe.yaml", tmp_path / "run"
    # Trained here, so that its files lie in the run and nothing but the cache's header knows them.
    own = replace(recipe, teacher=TeacherRecipe(model=str(model), train=SHORT, cache=CacheRecipe()))
    own = replace(own, data=replace(own.data, path=str(text)), train=SHORT)
    path.write_text(write_recipe(own))
    code, said = command("cache", path, "--out", out)
    assert code == 0
    assert any("bytes a row" in line and "GB free" in line for line in said)
    tuned = out / "teacher" / "text"
    if what == "data":
        text.write_text(corpus.read_text().replace("cat 7 ", "dog 7 "))
    elif what == "weight":
        weights = load_file(tuned / "model.safetensors")
        weights["model.layers.1.mlp.up_proj.weight"][3, 4] += 1e-6
        save_file(weights, tuned / "model.safetensors", metadata={"format": "pt"})
    elif what == "vocabulary":
        for folder in (tuned, model):
            tokenizer = json.loads((folder / "tokenizer.json").read_text())
            vocabulary = tokenizer["model"]["vocab"]
            one, other = list(vocabulary)[300:302]
            vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
            (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    else:
        path.write_text(write_recipe(replace(own, data=replace(own.data, max_length=32))))
    code, said = command("run", path, "--out", out)
    assert code == 2
    (line,) = [line for line in said if line.startswith("distill: ")]
    assert line == said[-1]


def test_a_weight_that_changed_is_named(recipe, tmp_path):
    own = replace(recipe, teacher=replace(recipe.teacher, train=SHORT), train=SHORT)
    write_teacher_caches(own, tmp_path)
    file = tmp_path / "teacher" / "text" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] += 1e-6
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        run(own, tmp_path)
    for name in ("manifest.json", "provenance.json"):  # changed on purpose
        (file.parent / name).unlink()
    with pytest.raises(MismatchError, match=r"another weights of model\.layers\.1\.mlp\.up_proj\.weight"):
        run(own, tmp_path)


def test_the_command_shows_what_it_wrote_and_goes_on(recipe, tmp_path, command):
    path, out = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(write_recipe(replace(recipe, train=SHORT)))
    code, said = command("check", path)
    assert code == 0
    assert any(line.startswith("  cache    full, 1,") and "bytes a token" in line for line in said)
    code, said = command("cache", path, "--out", out, "--json")
    first = json.loads("\n".join(line for line in said if not line.startswith("cached:")))["teacher-text"]
    assert (code, first["computed"]) == (0, first["examples"])
    code, said = command("cache", path, "--out", out)
    (row,) = [line.split() for line in said if line.startswith("  teacher-text")]
    assert (code, row[1], row[2], row[5]) == (0, f"{first['examples']:,}", f"{first['rows']:,}", "0")
    assert command("run", path, "--out", out)[0] == 0
    code, said = command("cache", path, "--set", "teacher.cache=null", "--out", tmp_path / "other")
    assert code == 2
    assert "teacher.cache: is missing" in said[-1]


def test_a_damaged_cache_stops_the_run(recipe, tmp_path):
    write_teacher_caches(replace(recipe, train=SHORT), tmp_path)
    shard = tmp_path / "teacher-cache" / "teacher-text" / "shard-00000.safetensors"
    whole = bytearray(shard.read_bytes())
    whole[-9] ^= 1
    shard.write_bytes(whole)
    with pytest.raises(CheckpointError, match="is damaged"):
        run(replace(recipe, train=SHORT), tmp_path)


@pytest.mark.parametrize(
    ("teacher", "loss", "message"),
    [
        (
            {"keep": "top_k"},
            (ForwardKL(),),
            r"must be ghost_token_kl with teacher\.cache\.keep top_k, found forward_kl",
        ),
        ({"keep": "sampled"}, (GhostTokenKL(),), r"must be sampled_targets .* found ghost_token_kl"),
        (
            {"keep": "top_k", "count": 8},
            (GhostTokenKL(),),
            r"must equal teacher\.cache\.count \(8\), found 64",
        ),
        (
            {"keep": "top_k"},
            (GhostTokenKL(), GhostTokenKL(temperature=2.0)),
            r"must equal that of loss\.0 \(1\), found 2: the cache keeps probabilities of one temperature",
        ),
        ({"keep": "sampled"}, (SampledTargets(power=0.5),), "must be 1 with a cached sample"),
        (
            {},
            (HiddenStates(), ForwardKL()),
            r"holds no activations, which loss\.0 \(hidden_states\) compares",
        ),
        ({}, (Labels(),), "no term of the loss reads a teacher"),
    ],
)
def test_a_loss_that_cannot_read_the_cache_is_refused(recipe, teacher, loss, message):
    with pytest.raises(FieldMistakes, match=message):
        asked(recipe, {"loss": loss}, cache=CacheRecipe(**teacher))


def test_where_a_cache_has_no_use_it_is_refused(recipe):
    with pytest.raises(FieldMistakes, match="is for language models"):
        replace(recipe, architecture="encoder", data=DataRecipe(tasks=("rte",)))
    with pytest.raises(FieldMistakes, match="stands beside cache"):
        asked(recipe, alone=True)
    with pytest.raises(FieldMistakes, match="must be full with members"):
        replace(
            recipe,
            teacher=TeacherRecipe(
                members=(MemberRecipe(model="x"), MemberRecipe(model="y")), cache=CacheRecipe(keep="top_k")
            ),
            loss=(GhostTokenKL(),),
        )
    for fields in ({"count": 3}, {"dtype": "bfloat16"}, {"seed": 1}):
        with pytest.raises(FieldMistakes, match="leave it out"):
            CacheRecipe(**fields)


def test_the_place_of_the_loss_is_named(recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(write_recipe(recipe))
    assert read_recipe(path) == recipe
    path.write_text(path.read_text().replace("keep: full", "keep: top_k"))
    with pytest.raises(Exception, match=r"recipe\.yaml:\d+:\d+: loss\.1\.kind: must be ghost_token_kl"):
        read_recipe(path)
