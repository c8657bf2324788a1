"""Whole runs leave their teachers as they were loaded, in memory and on disk, whatever else the run does with them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.losses import AttentionMaps, DualSpace, ForwardKL, HiddenStates, Labels, ReverseKL, Sinkhorn
from distill.models import Teacher
from distill.recipe import (
    AlignmentRecipe,
    CacheRecipe,
    DataRecipe,
    FromTeacher,
    MemberRecipe,
    NewTokenizer,
    OnPolicy,
    Recipe,
    StudentRecipe,
    TeacherRecipe,
    TrainRecipe,
)
from distill.runs import run
from distill.runs.workbench import Workbench

pytestmark = pytest.mark.trust

TRAIN = TrainRecipe(
    max_steps=4, learning_rate=1e-2, per_device_train_batch_size=8, eval_steps=2, save_steps=2
)
LLAMA = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
OWN = replace(TRAIN, on_policy=OnPolicy(fraction=0.5, max_new_tokens=6, prompt_tokens=4))
# What makes each run another one than the plain run of its architecture.
RUNS: dict[str, dict[str, Any]] = {
    "logits of a classifier": {"architecture": "encoder", "loss": Labels() + ForwardKL() + Sinkhorn()},
    "insides of a classifier": {
        "architecture": "encoder",
        "loss": Labels() + HiddenStates() + AttentionMaps(),
        "student": StudentRecipe(
            from_teacher=FromTeacher(layers=2, choose="block_influence", intermediate=32)
        ),
    },
    "a decoder": {"loss": Labels() + ForwardKL() + HiddenStates()},
    "a decoder that judges": {"loss": 0.1 * Labels() + ReverseKL(), "train": OWN},
    "a decoder in a cache": {"teacher": {"cache": CacheRecipe()}},
    "a student with an adapter": {
        "student": StudentRecipe(from_teacher=FromTeacher(layers=2), adapter=LORA),
    },
    "other tokens": {
        "alignment": AlignmentRecipe(kind="match"),
        "student": StudentRecipe(
            config={**LLAMA, "intermediate_size": 32}, tokenizer=NewTokenizer(train=330)
        ),
    },
    "two spaces": {
        "alignment": AlignmentRecipe(kind="cross_attention"),
        "loss": Labels() + DualSpace(),
        "student": StudentRecipe(
            config={**LLAMA, "intermediate_size": 32}, tokenizer=NewTokenizer(train=330)
        ),
    },
    "two teachers": {"members": 2},
}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", RUNS)
def test_a_run(tiny_bert, tiny_llama, tmp_path, monkeypatch, model_state, name):
    changes = dict(RUNS[name])
    encoder = changes.pop("architecture", "decoder") == "encoder"
    if "adapter" in name:
        pytest.importorskip("peft", reason="peft is not installed")
    model = str(tiny_bert if encoder else tiny_llama)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"The {'very ' * (n % 7)}old cat {n} sat on mat {n * n}.\n" for n in range(60)))
    plain = DataRecipe(source="text", path=str(text), max_length=40, characters=70)
    demo = DataRecipe(tasks=("rte",), train_examples=24, validation_examples=12, max_length=48)
    teacher = TeacherRecipe(model=model, train=TRAIN)
    if count := changes.pop("members", None):
        teacher = TeacherRecipe(
            members=tuple(MemberRecipe(model=model, train=TRAIN, seed=seed) for seed in range(count))
        )
    recipe = Recipe(
        name="untouched",
        architecture="encoder" if encoder else "decoder",
        data=demo if encoder else plain,
        teacher=replace(teacher, **changes.pop("teacher", {})),
        **{
            "student": StudentRecipe(from_teacher=FromTeacher(layers=2)),
            "loss": Labels() + ForwardKL(),
            "train": TRAIN,
            **changes,
        },
    )
    made: list[tuple[Teacher, dict[str, Any]]] = []
    begin = Teacher.__init__

    def watched(self: Teacher, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        made.append((self, model_state(self.model)))

    monkeypatch.setattr(Teacher, "__init__", watched)
    folder, source = tmp_path / "run", digests(Path(model))
    trained: dict[str, str] = {}
    fit_student = Workbench.fit_student

    def after_the_teacher(self: Workbench, seed: int) -> object:
        for path in folder.glob("teacher*"):
            if not path.name.endswith("cache"):
                trained.update(digests(path))
        return fit_student(self, seed)

    monkeypatch.setattr(Workbench, "fit_student", after_the_teacher)
    run(recipe, folder)
    assert made
    for loaded, was in made:
        now = model_state(loaded.model)
        assert {what for what in was if was[what] != now[what]} == set()
        assert now["gradients"] == set()
        assert not any(now["training"].values())
        assert not any(now["requires_grad"].values())
    assert len([path for path in trained if path.endswith("model.safetensors")]) == (count or 1)
    assert {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in trained} == trained
    assert digests(Path(model)) == source
