"""Reading and writing good recipes: round trips, overrides, the digest, shipped recipes, what is imported."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import RecipeError
from distill.losses import ForwardKL, Labels, Sinkhorn
from distill.recipe import (
    DataRecipe,
    FromTeacher,
    Recipe,
    StudentRecipe,
    StudentVocabulary,
    TeacherRecipe,
    TrainRecipe,
    read_recipe,
    recipe_sha256,
    recipe_text,
    shipped_recipes,
    write_recipe,
)
from distill.recipe.document import parse

QUICK = {"deadline": None, "derandomize": True, "database": None}


def recipe(**changes) -> Recipe:
    fields = {
        "name": "small",
        "teacher": TeacherRecipe(model="org/teacher", train=TrainRecipe(num_train_epochs=2)),
        "student": StudentRecipe(from_teacher=FromTeacher(layers=2)),
        "loss": (Labels(weight=0.5), ForwardKL(weight=0.5, temperature=2.0)),
    }
    return Recipe(**{**fields, **changes})


def read_text(folder: Path, text: str, overrides=()) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path, overrides, check_surroundings=False)


# round trips

texts = st.text(
    st.characters(
        codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\u2028\u2029\ufeff\ufffe\uffff"
    ),
    max_size=60,
)
texts = texts | st.sampled_from(
    [
        "1e-4",
        "yes",
        "null",
        "~",
        "12:30",
        "0x10",
        "- a",
        "a: b",
        "# c",
        " x ",
        "a\nb\n\nc ",
        "\tx",
        "'",
        '"',
        "é😀",
        "=",
        "<<",
        "!a",
        "%",
        "01",
        ".5",
    ]
)
rates = st.floats(min_value=0, max_value=1, exclude_min=True)
trains = st.builds(
    TrainRecipe,
    num_train_epochs=st.floats(min_value=0.01, max_value=1e6) | st.integers(1, 100),
    learning_rate=rates,
    max_steps=st.none() | st.integers(1, 10**9),
    warmup_steps=st.floats(min_value=0, max_value=0.99),
    max_grad_norm=st.none() | st.floats(min_value=1e-6, max_value=1e6),
    lr_scheduler_type=st.sampled_from(["linear", "cosine", "constant"]),
    group_by_length=st.booleans(),
    per_task=st.dictionaries(
        st.sampled_from(["cb", "wsc"]),
        st.fixed_dictionaries(
            {},
            optional={
                "num_train_epochs": st.floats(1, 50),
                "learning_rate": rates,
                "max_grad_norm": st.none(),
            },
        ),
    ),
)
scalars = (
    texts
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.none()
)
students = st.builds(
    StudentRecipe,
    from_teacher=st.builds(
        FromTeacher,
        layers=st.integers(1, 100) | st.sets(st.integers(0, 99), min_size=1).map(sorted),
        vocabulary=st.sampled_from(["teacher", "corpus"])
        | st.builds(StudentVocabulary, at_least=st.integers(1, 10_000_000))
        | st.builds(StudentVocabulary, train=st.integers(100, 1_000_000)),
        hidden=st.none() | st.integers(1, 4096),
        intermediate=st.integers(1, 4096),
        heads=st.none() | st.integers(1, 64),
        dropped=st.sampled_from(["left_out", "linear"]),
        keep=st.sampled_from(["most_active", "first"]),
    ),
) | st.builds(
    StudentRecipe,
    config=st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]{0,9}", fullmatch=True), scalars, max_size=4).map(
        lambda config: {**config, "model_type": "bert"}
    ),
)
recipes = st.builds(
    recipe,
    description=texts,
    data=st.builds(
        DataRecipe,
        tasks=st.sets(st.sampled_from(["cb", "rte", "wsc"]), min_size=1).map(tuple),
        max_length=st.integers(8, 8192),
    ),
    teacher=st.builds(TeacherRecipe, model=st.just("org/t"), train=trains),
    student=students,
    train=trains,
    loss=st.lists(
        st.builds(
            ForwardKL,
            temperature=st.floats(0.01, 100),
            scale=st.just("temperature_squared") | st.floats(0.01, 100),
        )
        | st.builds(Sinkhorn, epsilon=st.floats(0.001, 1))
        | st.builds(Labels),
        min_size=1,
        max_size=3,
    ),
    seeds=st.sets(st.integers(0, 2**32 - 1), min_size=1, max_size=4).map(tuple),
    output=st.none() | texts.map(lambda text: "runs/" + text.replace("\n", "").replace("\t", "")),
)


@settings(max_examples=60, **QUICK)
@given(recipes)
def test_a_written_recipe_reads_back_as_the_same_recipe(tmp_path_factory, written: Recipe):
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(write_recipe(written), encoding="utf-8")
    again = read_recipe(path, check_surroundings=False)
    assert again == written
    assert write_recipe(again) == write_recipe(read_recipe(path, check_surroundings=False))
    assert recipe_sha256(again) == recipe_sha256(written)


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_a_shipped_recipe_validates_and_round_trips(tmp_path: Path, name: str):
    # A shipped recipe may want data that is not here.
    shipped = read_recipe(name, check_surroundings=False)
    assert shipped.name == name
    assert read_text(tmp_path, write_recipe(shipped)) == shipped


def test_every_shipped_recipe_says_what_it_is_and_where_its_schema_is():
    folder = Path(__file__).parents[3] / "recipes"
    assert set(shipped_recipes()) == {path.stem for path in folder.glob("*.yaml")}
    assert "quickstart" in shipped_recipes()
    for name, said in shipped_recipes().items():
        assert len(said) > 10, name
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
        assert recipe_text(name) == text
        assert text.startswith("# yaml-language-server: $schema=schema.json\n# ")


def test_a_file_of_a_shipped_recipes_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert read_recipe("quickstart").name == "quickstart"
    (tmp_path / "quickstart").write_text(write_recipe(recipe(name="mine")))
    assert read_recipe("quickstart").name == "mine"


def test_what_yaml_1_1_would_change_stays_as_written():
    root, problems = parse(
        "a: yes\nb: 12:30:45\nc: 0x10\nd: 2026-01-01\ne: 010\nf: .nan\ng: 1_000\nh: True\n"
    )
    assert not problems
    assert root is not None
    assert root.plain() == {
        "a": "yes", "b": "12:30:45", "c": "0x10", "d": "2026-01-01", "e": "010", "f": ".nan", "g": "1_000", "h": "True",
    }  # fmt: skip


# from Python


def test_a_single_loss_and_a_total_become_terms():
    assert recipe(loss=ForwardKL()).loss == (ForwardKL(),)
    assert recipe(loss=[Labels()]).loss == (Labels(),)
    total = 0.25 * Labels() + 0.75 * ForwardKL(temperature=2.0)
    assert recipe(loss=total).loss == (Labels(weight=0.25), ForwardKL(weight=0.75, temperature=2.0))


def test_whole_numbers_become_floats_where_floats_are_meant():
    train = TrainRecipe(num_train_epochs=3, per_task={"cb": {"num_train_epochs": 5}})
    assert isinstance(train.num_train_epochs, float)
    assert recipe_sha256(recipe(train=train)) == recipe_sha256(
        recipe(train=TrainRecipe(num_train_epochs=3.0, per_task={"cb": {"num_train_epochs": 5.0}}))
    )


def test_one_tasks_training_overrides_the_rest_and_nothing_else():
    train = TrainRecipe(
        learning_rate=1e-3, max_grad_norm=2.0, per_task={"cb": {"learning_rate": 1e-2, "max_grad_norm": None}}
    )
    assert train.for_task("rte") == dataclasses.replace(train, per_task={})
    assert train.for_task("cb") == TrainRecipe(learning_rate=1e-2, max_grad_norm=None)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: TrainRecipe(learning_rate="1e-4"), "learning_rate: must be a number, found the text '1e-4'"),
        (lambda: TrainRecipe(learning_rate=float("nan")), "learning_rate: must be"),
        (lambda: TrainRecipe(learning_rate=float("inf")), "learning_rate: must be at most 1"),
        (lambda: TrainRecipe(max_steps=True), "max_steps: must be a whole number, found true"),
        (lambda: TrainRecipe(per_task={"cb": {"max_step": 1}}), "per_task.cb.max_step: is not a key here"),
        (lambda: TrainRecipe(max_steps=0, save_steps=0), "max_steps: must be at least 1, found 0; save_steps: must"),
        (lambda: DataRecipe(tasks="rte"), "tasks: must be a list, found the text 'rte'"),
        (lambda: DataRecipe(source="folder"), "path: is missing"),
        (lambda: TeacherRecipe(model="package:a b"), "model: must name a package"),
        (lambda: StudentRecipe(), "must have one of from_teacher, model and config"),
        (lambda: FromTeacher(layers=[1, 1]), "layers.1: must be above the layer before it (1), found 1"),
        (lambda: recipe(name="a/b"), "name: must be a name"),
        (lambda: recipe(loss=()), "loss: must be given something"),
        (lambda: recipe(loss=("labels",)), "loss.0"),
        (lambda: recipe(description="a\0b"), "description: must be text without control characters"),
        (lambda: recipe(teacher=TeacherRecipe(model="org/t")), "teacher.model: must hold {task}"),
    ],
)  # fmt: skip
def test_the_same_checks_hold_from_python(make, expected: str):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared below
        make()
    assert str(raised.value).startswith(expected)


def test_an_already_fine_tuned_teacher_serves_its_one_task_or_one_model_a_task():
    assert (
        recipe(teacher=TeacherRecipe(model="org/t"), data=DataRecipe(tasks=("cb",))).teacher.for_task("cb")
        == "org/t"
    )
    assert recipe(teacher=TeacherRecipe(model="org/t-{task}")).teacher.for_task("cb") == "org/t-cb"


def test_a_batchwise_loss_takes_batches_of_whole_groups():
    train = TrainRecipe(per_device_train_batch_size=16, gradient_accumulation_steps=4)
    assert recipe(loss=Sinkhorn(group_size=8), train=train).loss == (Sinkhorn(group_size=8),)
    assert recipe(loss=Sinkhorn(), train=TrainRecipe()).loss == (Sinkhorn(),)
    with pytest.raises(ValueError, match="gradient_accumulation_steps: must be 1, found 4"):
        recipe(loss=Sinkhorn(), train=train)


# overrides


def test_overrides_go_through_the_same_schema(tmp_path: Path):
    text = write_recipe(recipe())
    changed = read_text(
        tmp_path,
        text,
        [
            "train.learning_rate=1e-4", "loss.0.weight=0.25", "data.tasks=[rte, cb]", "teacher.train.per_task.cb.max_steps=7",
            "output=/scratch/x=y", "train.max_grad_norm=null", "loss.1={kind: forward_kl, temperature: 4}",
        ],
    )  # fmt: skip
    assert changed == recipe(
        train=TrainRecipe(learning_rate=1e-4, max_grad_norm=None),
        data=DataRecipe(tasks=("rte", "cb")),
        teacher=TeacherRecipe(
            model="org/teacher", train=TrainRecipe(num_train_epochs=2, per_task={"cb": {"max_steps": 7}})
        ),
        loss=(Labels(weight=0.25), ForwardKL(temperature=4.0)),
        output="/scratch/x=y",
    )


def test_an_override_fills_a_section_the_file_lacks(tmp_path: Path):
    text = "name: a\nteacher: {model: org/t}\nstudent: {from_teacher: {layers: 1}}\nloss: [{kind: labels}]\ntrain:\n"
    assert read_text(tmp_path, text, ["teacher.train.max_steps=3", "train.max_steps=4"]).train.max_steps == 4


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.learning_rate=fast", "train.learning_rate: must be a number, found the text 'fast'"),
        ("train.learning_rate=7", "train.learning_rate: must be at most 1, found 7"),
        ("train.learning_rat=1", "train.learning_rat: is not a key here; did you mean learning_rate?"),
        ("trian.max_steps=1", "trian: is not a key here; did you mean train?"),
        ("loss.2.weight=1", "loss is a list of 2, counted from 0, found '2'"),
        ("loss.last.weight=1", "loss is a list of 2, counted from 0, found 'last'"),
        ("loss.-1.weight=1", "loss is a list of 2, counted from 0, found '-1'"),
        ("loss.0.weight.x=1", "loss.0.weight is a single value and has no 'x' inside"),
        ("loss.0.kind=lables", "loss.0.kind: must be one of"),
        ("train", "must be KEY=VALUE"),
        ("=1", "must be KEY=VALUE"),
        ("train..x=1", "must be KEY=VALUE"),
        ("train.max_steps=", "has no value; write null for none"),
        ("seeds=[1", "the value has a list [...] that is never closed"),
        ("name=!!str a", "the value has the tag"),
        ("name=&a a", "the value has the anchor &a"),
        ("name=a\nb: c", "the value "),
        ("name=a\0", "the value has the control character U+0000"),
        ("seeds=" + "[" * 10_000, "the value is more than 32 levels deep"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_typed(tmp_path: Path, override: str, expected: str):
    with pytest.raises(RecipeError) as raised:
        read_text(tmp_path, write_recipe(recipe()), [override])
    (problem,) = raised.value.problems
    shown = override if override.isprintable() else ascii(override)
    assert problem.startswith(f"--set {shown[:57]}")
    assert f": {expected}" in problem
    assert problem.isprintable()


def test_mistakes_of_the_file_come_before_those_of_overrides(tmp_path: Path):
    text = write_recipe(recipe()).replace("learning_rate", "learning_rat", 1)
    with pytest.raises(RecipeError) as raised:
        read_text(tmp_path, text, ["train.max_steps=0", "x"])
    kinds = [problem.split(": ")[1] for problem in raised.value.problems]
    assert kinds == [
        "teacher.train.learning_rat",
        "train.max_steps",
        "must be KEY=VALUE with a key such as train.learning_rate or loss.0.weight",
    ]


# the digest


def test_the_digest_knows_what_a_recipe_does_not_how_it_is_written(tmp_path: Path):
    base = recipe_sha256(recipe())
    assert len(base) == 64
    lines = write_recipe(recipe()).splitlines()
    assert recipe_sha256(read_text(tmp_path, "\n".join(["# a comment", lines[-1], *lines[:-1]]))) == base
    for same in (
        recipe(output="x"),
        recipe(cache="x"),
        recipe(description="x"),
        recipe(loss=[Labels(weight=0.5), ForwardKL(weight=0.5, temperature=2)]),
    ):
        assert recipe_sha256(same) == base
    changes = [
        {"name": "other"}, {"baseline": False}, {"seeds": (1,)}, {"loss": Labels()}, {"data": DataRecipe(seed=1)},
        {"train": TrainRecipe(learning_rate=1e-4)}, {"student": StudentRecipe(from_teacher=FromTeacher(layers=3))},
        {"train": TrainRecipe(per_task={"cb": {"max_steps": 1}})}, {"loss": (ForwardKL(weight=0.5, temperature=2.0), Labels(weight=0.5))},
    ]  # fmt: skip
    assert len({base, *(recipe_sha256(recipe(**change)) for change in changes)}) == len(changes) + 1


def test_the_digest_is_the_same_in_another_process():
    code = "from distill.recipe import *; print(recipe_sha256(read_recipe('quickstart')))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert seen == {recipe_sha256(read_recipe("quickstart"))}


# what is imported


def test_reading_a_recipe_loads_no_torch_and_takes_less_than_a_second():
    code = (
        "import sys, json, time\n"
        "from distill.recipe import read_recipe, recipe_sha256, write_recipe\n"
        "recipe = read_recipe('quickstart'); write_recipe(recipe); recipe_sha256(recipe)\n"
        "print(json.dumps([time.process_time(), sorted(sys.modules)]))\n"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    wall = time.perf_counter() - start
    seconds, modules = json.loads(done.stdout)
    assert not {"torch", "transformers", "datasets", "ot", "geomloss", "matplotlib", "numpy"} & set(modules)
    # Other work on the machine counts in wall time, not in the process's own.
    assert seconds < 1
    assert wall < 20
