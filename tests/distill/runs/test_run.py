"""A whole run on small models: every figure it reports, what it keeps, and how it goes on after an interruption."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distill.engine import Engine
from distill.errors import CheckpointError, DistillError, ModelError, RecipeError
from distill.losses import PKD, AttentionMaps, ForwardKL, HiddenStates, Labels, Relations
from distill.recipe import Recipe
from distill.report import write_report
from distill.run_folder import RunFolder, read_json
from distill.runs import run
from distill.tasks import TASKS, read_predictions


@pytest.fixture(scope="module")
def short(recipe) -> Recipe:
    """One task, one seed."""
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, tasks=("cb",)), seeds=(0,))


@pytest.fixture(scope="module")
def straight(short, tmp_path_factory: pytest.TempPathFactory):
    """The short recipe's finished run, for the tests that do not write into it."""
    return run(short, tmp_path_factory.mktemp("runs") / "straight")


@pytest.fixture
def ones_own(straight, tmp_path) -> Path:
    """A copy of that run's folder."""
    return Path(shutil.copytree(straight.folder, tmp_path / "run"))


def test_report_json_holds_what_it_promises(finished):
    report = json.loads((finished.folder / "report.json").read_text())
    assert report == json.loads(json.dumps(finished.data))
    assert report["data"]["source"] == "folder"
    assert report["data"]["is_superglue"] is False
    assert list(report["data"]["tasks"]) == ["cb", "copa", "rte", "axb", "axg"]
    for role in ("teacher", "student", "baseline"):
        model = report[role]
        assert model["parameters"] > model["embedding_parameters"] > 0
        assert model["bytes"] > 4 * model["parameters"]
        assert set(model["latency_ms"]) >= {"batch_1", "batch_32"}
        assert set(model["throughput"]) == {"batch", "examples_per_second", "tokens_per_second"}
        assert model["flops"]["per_token"] > 0
        assert (
            model["peak_memory"]["batch_32"]
            > model["peak_memory"]["batch_1"]
            > model["peak_memory"]["weights"]
        )
        assert len(model["score"]["per_seed"]) == (1 if role == "teacher" else 2)
        assert model["score"]["mean"] == pytest.approx(np.mean(model["score"]["per_seed"]))
        low, high = model["score"]["ci95"]
        assert low <= model["score"]["mean"] <= high
        for name, block in model["tasks"].items():
            assert set(TASKS[name].metrics) <= set(block)
            assert block["n"] > 0
            assert block["truncated"] >= 0
            assert set(block["majority"]) == set(TASKS[name].metrics)
    assert set(report["compression"]) == {
        "parameters",
        "non_embedding_parameters",
        "bytes",
        "latency",
        "flops_per_token",
        "peak_memory",
    }
    assert report["measured"]["threads"] == torch.get_num_threads()
    assert report["retention"] == pytest.approx(
        report["student"]["score"]["mean"] / report["teacher"]["score"]["mean"]
    )
    verdict = report["verdict"]
    assert verdict["seeds"] == 2
    assert verdict["ci95"][0] <= verdict["gain"] <= verdict["ci95"][1]
    assert verdict["significant"] == (verdict["ci95"][0] > 0 or verdict["ci95"][1] < 0)
    assert len(report["recipe_sha256"]) == 64
    # Its build, behind a +, is not always named in both.
    said = report["environment"]["packages"]["torch"]
    assert said.split("+")[0] == torch.__version__.split("+")[0]


def test_compression_counts_the_real_files_and_parameters(finished):
    student = load_file(finished.folder / "student" / "cb" / "model.safetensors")
    report = finished.data
    assert report["student"]["parameters"] == sum(tensor.numel() for tensor in student.values())
    assert (
        report["student"]["bytes"]
        == (finished.folder / "student" / "cb" / "model.safetensors").stat().st_size
    )
    tables = [
        tensor.numel() for name, tensor in student.items() if "embeddings" in name and "LayerNorm" not in name
    ]
    assert report["student"]["embedding_parameters"] == sum(tables)
    assert (
        report["compression"]["parameters"]
        == report["teacher"]["parameters"] / report["student"]["parameters"]
        > 1
    )


def test_scores_are_recomputed_from_the_stored_predictions(finished):
    folder = RunFolder(finished.folder)
    report = finished.data
    per_task = []
    for task in ("cb", "copa", "rte"):
        metrics = TASKS[task].score(read_predictions(folder.predictions(f"student-{task}-seed1", task)))
        assert (
            report["student"]["tasks"][task]["per_seed"][TASKS[task].metrics[0]][1]
            == metrics[TASKS[task].metrics[0]]
        )
        per_task.append(100 * np.mean([metrics[name] for name in TASKS[task].metrics]))
    assert report["student"]["score"]["per_seed"][1] == pytest.approx(np.mean(per_task))
    before = (finished.folder / "report.json").read_bytes()
    (finished.folder / "report.json").unlink()
    write_report(finished.folder)
    assert (finished.folder / "report.json").read_bytes() == before


@pytest.mark.parametrize("task", ["cb", "copa", "rte"])
def test_the_student_loads_with_transformers_and_gives_the_stored_logits(finished, official_folder, task):
    from transformers import AutoModelForMultipleChoice, AutoModelForSequenceClassification, AutoTokenizer

    from distill.tasks import encode, load_task

    auto = AutoModelForMultipleChoice if task == "copa" else AutoModelForSequenceClassification
    folder = finished.folder / "student" / task
    model, tokenizer = auto.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    data = load_task(task, source="folder", path=official_folder)
    encoded = encode(data.validation, tokenizer, max_length=32, truncate=data.task.truncate)
    stored = read_predictions(RunFolder(finished.folder).predictions(f"student-{task}-seed0", task))
    for choices, answer in zip(encoded.features, stored, strict=True):
        if task == "copa":
            longest = max(len(choice["input_ids"]) for choice in choices)
            ids = torch.tensor([[*c["input_ids"], *[0] * (longest - len(c["input_ids"]))] for c in choices])
            mask = torch.tensor(
                [[1] * len(c["input_ids"]) + [0] * (longest - len(c["input_ids"])) for c in choices]
            )
            types = torch.tensor(
                [[*c["token_type_ids"], *[0] * (longest - len(c["input_ids"]))] for c in choices]
            )
            inputs = {"input_ids": ids[None], "attention_mask": mask[None], "token_type_ids": types[None]}
        else:
            inputs = {name: torch.tensor([ids]) for name, ids in choices[0].items()}
        with torch.inference_mode():
            logits = model(**inputs).logits[0]
        torch.testing.assert_close(logits, torch.tensor(answer.logits), rtol=0, atol=2e-5)


def test_student_and_baseline_differ_only_in_their_loss(finished):
    lines = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    student = [line for line in lines if line["fit"] == "student-cb-seed0" and "loss" in line]
    baseline = [line for line in lines if line["fit"] == "baseline-cb-seed0" and "loss" in line]
    assert [(line["step"], line["learning_rate"]) for line in student] == [
        (line["step"], line["learning_rate"]) for line in baseline
    ]
    assert "loss/forward_kl" in student[0]
    assert "sinkhorn/marginal_error" in student[0] or "loss/sinkhorn" in student[0]
    assert set(line for line in baseline[0] if line.startswith("loss/")) == {"loss/labels"}
    assert any("validation/accuracy" in line for line in lines)
    training = finished.data["training"]["steps"]
    assert training["student"] == training["baseline"]


def test_a_student_with_the_labels_loss_alone_is_its_own_baseline(recipe, tmp_path):
    """With no teacher in the loss, student and baseline must be bitwise the same model."""
    alone = dataclasses.replace(
        recipe, loss=(Labels(),), data=dataclasses.replace(recipe.data, tasks=("cb",))
    )
    report = run(alone, tmp_path / "alone")
    folder = RunFolder(report.folder)
    for seed in (0, 1):
        assert read_predictions(folder.predictions(f"student-cb-seed{seed}", "cb")) == read_predictions(
            folder.predictions(f"baseline-cb-seed{seed}", "cb")
        )
    assert report.data["verdict"]["gain"] == 0
    assert report.data["verdict"]["significant"] is False
    assert "No gain" in report.verdict


class Killed(BaseException):
    """Stands for kill -9: nothing gets to clean up."""


@pytest.mark.parametrize("after", [7, 14, 23])
def test_a_killed_run_continues_to_bitwise_the_same_students(short, straight, tmp_path, monkeypatch, after):
    steps = []
    original = Engine.step

    def step(self, batch):
        steps.append(1)
        if len(steps) == after:
            raise Killed
        original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", step)
        with pytest.raises(Killed):
            run(short, tmp_path / "killed")
    torch.manual_seed(12345)
    continued = run(short, tmp_path / "killed")
    for name in ("student", "teacher"):
        first = load_file(straight.folder / name / "cb" / "model.safetensors")
        second = load_file(continued.folder / name / "cb" / "model.safetensors")
        assert all(torch.equal(first[key], second[key]) for key in first)
    for file in sorted((straight.folder / "predictions").iterdir()):
        assert file.read_bytes() == (continued.folder / "predictions" / file.name).read_bytes()
    lines = [json.loads(line) for line in (continued.folder / "metrics.jsonl").read_text().splitlines()]
    seen = [(line["fit"], line["step"], "loss" in line) for line in lines]
    assert len(seen) == len(set(seen))
    assert not list((continued.folder / "checkpoints").glob("*"))


def test_a_finished_run_is_not_done_again(short, straight, ones_own, monkeypatch):
    monkeypatch.setattr(Engine, "step", lambda *_: pytest.fail("a finished fit was trained again"))
    assert run(short, ones_own).data == straight.data


def test_another_recipe_in_the_same_folder_is_refused(short, ones_own):
    with pytest.raises(RecipeError, match="holds the run of another recipe"):
        run(dataclasses.replace(short, seeds=(1,)), ones_own)


def test_changed_data_under_a_run_is_noticed(short, tmp_path, official_folder):
    copy = tmp_path / "data"
    shutil.copytree(official_folder, copy)
    short = dataclasses.replace(short, data=dataclasses.replace(short.data, path=str(copy)), baseline=False)
    run(short, tmp_path / "run")
    lines = (copy / "CB" / "train.jsonl").read_text().splitlines()
    (copy / "CB" / "train.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(CheckpointError, match="made with other settings, data or versions"):
        run(short, tmp_path / "run")


def test_runs_share_teachers_and_baselines_through_the_cache(recipe, tmp_path, monkeypatch):
    first = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, tasks=("rte",)),
        seeds=(0,),
        cache=str(tmp_path / "cache"),
        name="first",
    )
    second = dataclasses.replace(
        first, name="second", loss=tuple(dataclasses.replace(t, weight=0.3) for t in recipe.loss)
    )
    one = run(first, tmp_path / "one")
    trained = []
    original = Engine.run
    monkeypatch.setattr(
        Engine, "run", lambda self: trained.append(self.owner.split("@")[0]) or original(self)
    )
    two = run(second, tmp_path / "two")
    assert trained == ["student-rte-seed0"]
    assert two.data["teacher"]["tasks"] == one.data["teacher"]["tasks"]
    assert two.data["baseline"]["score"] == one.data["baseline"]["score"]
    other = dataclasses.replace(first, name="third", seeds=(5,))
    trained.clear()
    run(other, tmp_path / "three")
    assert trained == ["teacher-rte", "student-rte-seed5", "baseline-rte-seed5"]


def test_an_already_fine_tuned_teacher_is_taken_as_it_is(short, finished, tmp_path):
    teachers = str(finished.folder / "teacher" / "{task}")
    taken = dataclasses.replace(
        short, name="taken", teacher=dataclasses.replace(short.teacher, model=teachers, train=None)
    )
    before = {p: p.read_bytes() for p in (finished.folder / "teacher").rglob("*") if p.is_file()}
    report = run(taken, tmp_path / "taken")
    assert (
        report.data["teacher"]["tasks"]["cb"]["accuracy"]
        == finished.data["teacher"]["tasks"]["cb"]["accuracy"]
    )
    assert any("start from the fine-tuned teacher's weights" in line for line in report.data["warnings"])
    assert before == {p: p.read_bytes() for p in before}
    assert not (report.folder / "teacher").exists()


def test_without_a_baseline_there_is_no_verdict(recipe, tmp_path):
    short = dataclasses.replace(
        recipe, data=dataclasses.replace(recipe.data, tasks=("copa",)), seeds=(0,), baseline=False
    )
    report = run(short, tmp_path / "run")
    assert "baseline" not in report.data
    assert report.data["verdict"]["gain"] is None
    assert "No verdict" in report.verdict
    assert "student alone" not in report.to_markdown().split("## How")[0]


def test_a_folder_without_a_finished_run_has_no_report_and_says_what_is_missing(finished, tmp_path):
    with pytest.raises(DistillError, match=r"recipe\.yaml"):
        write_report(tmp_path)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(finished.folder, unfinished)
    (unfinished / "predictions" / "student-cb-seed1.cb.jsonl").unlink()
    with pytest.raises(
        DistillError, match=r"student-cb-seed1\.cb\.jsonl: is missing; `distill run` finishes the run"
    ):
        write_report(unfinished)


def test_a_report_is_not_made_of_damaged_answers(short, ones_own):
    path = ones_own / "predictions" / "student-cb-seed0.cb.jsonl"
    text = path.read_text()
    path.write_text(text.replace("1", "2", 1))
    for use in (lambda: write_report(ones_own), lambda: run(short, ones_own)):
        with pytest.raises(
            CheckpointError, match=r"student-cb-seed0\.cb\.jsonl: is damaged .*; remove it, and"
        ):
            use()
    path.write_text(text)
    write_report(ones_own)


def test_a_finished_run_needs_neither_its_data_nor_its_teacher_to_be_reported(finished, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(finished.folder, moved)
    text = (moved / "recipe.yaml").read_text()
    path = re.search(r"^  path: (.*)$", text, flags=re.MULTILINE)[1]
    (moved / "recipe.yaml").write_text(text.replace(path, "/nowhere/any/more"))
    # The recipe names the path and its digest covers it, so everything else must be as it was.
    of_the_path = ("recipe", "recipe_sha256")
    expected = {key: value for key, value in finished.data.items() if key not in of_the_path}
    found = write_report(moved).data
    assert {key: value for key, value in found.items() if key not in of_the_path} == expected


def test_every_score_of_the_report_is_that_of_the_stored_predictions(finished, tmp_path):
    """Written anew without the old report it is the same file; scikit-learn finds the same scores in the predictions."""
    from sklearn.metrics import accuracy_score, f1_score

    again = Path(shutil.copytree(finished.folder, tmp_path / "again"))
    for name in ("report.json", "report.md", "compression.png", "metrics.jsonl"):
        (again / name).unlink()
    write_report(again)
    for name in ("report.json", "report.md"):
        assert (again / name).read_bytes() == (finished.folder / name).read_bytes()

    means = {"student": [], "baseline": []}
    for role, task, seed in itertools.product(means, ("cb", "copa", "rte"), (0, 1)):
        file = finished.folder / "predictions" / f"{role}-{task}-seed{seed}.{task}.jsonl"
        stored = [json.loads(line) for line in file.read_text().splitlines()]
        gold, said = [row["gold"] for row in stored], [int(np.argmax(row["logits"])) for row in stored]
        scores = {"accuracy": accuracy_score(gold, said)}
        if task == "cb":
            scores["macro_f1"] = f1_score(gold, said, average="macro", labels=range(3), zero_division=0)
        block = finished.data[role]["tasks"][task]
        for name, value in scores.items():
            assert block["per_seed"][name][seed] == pytest.approx(value, abs=1e-12)
        means[role].append(100 * np.mean(list(scores.values())))
    for role, found in means.items():
        assert finished.data[role]["score"]["mean"] == pytest.approx(np.mean(found), abs=1e-9)
    gain = np.mean(means["student"]) - np.mean(means["baseline"])
    assert finished.data["verdict"]["gain"] == pytest.approx(gain, abs=1e-9)

    file = again / "predictions" / "student-rte-seed1.rte.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[3]["logits"].reverse()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CheckpointError, match="is damaged"):
        write_report(again)
    folder = RunFolder(again)
    record = read_json(folder.fit("student-rte-seed1"))
    del record["sha256"]
    folder.write_fit("student-rte-seed1", record)  # as if the student had answered so
    changed = write_report(again).data["student"]["tasks"]["rte"]["per_seed"]["accuracy"]
    before = finished.data["student"]["tasks"]["rte"]["per_seed"]["accuracy"]
    assert changed[0] == before[0]
    assert abs(changed[1] - before[1]) == pytest.approx(1 / len(rows))


def test_validation_examples_that_training_holds_are_in_the_report(finished, official_folder, tmp_path):
    """The small tasks tell one of eight premises, so that training holds nearly every one."""
    from distill.tasks import load_task, overlap

    found = finished.data["data"]["tasks"]
    said = [line for line in finished.data["warnings"] if "is in training too" in line]
    for name in ("cb", "copa", "rte"):
        data = load_task(name, source="folder", path=official_folder)
        assert found[name]["overlap"] == dataclasses.asdict(overlap(data.train, data.validation))
    assert found["cb"]["overlap"]["passages"] > 12
    assert len(said) == 1
    assert f"CB {found['cb']['overlap']['passages']} of 24" in said[0]
    assert said[0] in (finished.folder / "report.md").read_text()

    none = Path(shutil.copytree(finished.folder, tmp_path / "none"))
    facts = json.loads((none / "data.json").read_text())
    for task in facts["tasks"].values():
        task["overlap"] = {"examples": 0, "passages": 0}
    (none / "data.json").write_text(json.dumps(facts))
    assert not [line for line in write_report(none).data["warnings"] if "in training too" in line]
    facts["tasks"]["rte"]["overlap"] = {"examples": 2, "passages": 3}
    (none / "data.json").write_text(json.dumps(facts))
    expected = (
        "Validation examples whose longest text is in training too: RTE 3 of 24 (2 of them as a whole)."
    )
    assert expected in write_report(none).data["warnings"]


def test_report_md_shows_verdict_tables_and_warnings(finished):
    text = (finished.folder / "report.md").read_text()
    assert finished.verdict in text
    for title in ("CB", "COPA", "RTE", "AX-b", "AX-g"):
        assert f"| {title} |" in text
    assert "mean of 3 of the 8 SuperGLUE tasks" in text
    assert "partial" in text  # the small files are not the official ones, and the report says so
    assert (finished.folder / "compression.png").read_bytes().startswith(b"\x89PNG")
    assert str(Path.home()) not in json.dumps(finished.data["environment"])


def test_the_report_says_how_much_the_students_have_in_common(finished):
    sharing = finished.data["sharing"]
    students = [
        load_file(finished.folder / "student" / task / "model.safetensors") for task in ("cb", "copa", "rte")
    ]
    words = [student["bert.embeddings.word_embeddings.weight"] for student in students]
    common_words = int(((words[0] == words[1]) & (words[0] == words[2])).all(1).sum()) * words[0].shape[1]
    assert sharing["models"] == 3
    assert sharing["parameters"] == sum(t.numel() for student in students for t in student.values())
    assert common_words <= sharing["common"] < sharing["parameters"] / 3
    assert common_words > 0.9 * words[0].numel()


def test_a_second_process_in_the_same_folder_is_refused(tmp_path):
    with (
        RunFolder(tmp_path).locked(),
        pytest.raises(DistillError, match="another process"),
        RunFolder(tmp_path).locked(),
    ):
        pass


def test_finished_models_are_let_go(short, tmp_path):
    """A run of many tasks must not hold the weights and optimizer states of all of them."""
    import gc

    from transformers import PreTrainedModel

    from distill.progress import Silent

    class Counting(Silent):
        alive = 0

        def begin(self, what: str, total: int, done: int = 0) -> None:
            if what == "measuring":
                gc.collect()
                self.alive = sum(issubclass(type(thing), PreTrainedModel) for thing in gc.get_objects())

    gc.collect()
    before = sum(issubclass(type(thing), PreTrainedModel) for thing in gc.get_objects())
    counting = Counting()
    run(dataclasses.replace(short, seeds=(0, 1)), tmp_path / "run", progress=counting)
    assert counting.alive - before <= 2 * 2  # one model is two of these: the task model and its body


LOOKING_INSIDE = (
    0.5 * Labels()
    + 0.5 * ForwardKL()
    + 0.1 * HiddenStates(layers=((0, 0), (-1, -1)))
    + 0.1 * PKD()
    + 0.1 * AttentionMaps()
    + 0.1 * Relations(heads=4)
)


@pytest.mark.parametrize("task", ["rte", "copa"])
def test_a_run_whose_loss_looks_inside_the_models(recipe, tmp_path, task):
    one = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, tasks=(task,), diagnostics=False),
        loss=LOOKING_INSIDE,
        seeds=(0,),
    )
    finished = run(one, tmp_path / "run")
    lines = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss/relations" in line]
    assert logged
    assert all(line[f"loss/{term.kind}"] >= 0 for line in logged for term in LOOKING_INSIDE)
    student = load_file(finished.folder / "student" / task / "model.safetensors")
    assert not [name for name in student if "maps" in name or "projection" in name]
    assert finished.data["student"]["parameters"] == sum(tensor.numel() for tensor in student.values())
    from distill.recipe import read_recipe

    assert read_recipe(finished.folder / "recipe.yaml").loss == tuple(LOOKING_INSIDE)


def test_a_killed_run_that_looks_inside_continues_to_bitwise_the_same_student(recipe, tmp_path, monkeypatch):
    one = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, tasks=("rte",), diagnostics=False),
        loss=LOOKING_INSIDE,
        seeds=(0,),
        baseline=False,
    )
    run(one, tmp_path / "straight")
    original = Engine.step

    class Killed(BaseException):
        """Stands for a signal."""

    def dying(self, batch):
        if self.projections and self.step_number == 6:
            raise Killed
        original(self, batch)

    monkeypatch.setattr(Engine, "step", dying)
    with pytest.raises(Killed):
        run(one, tmp_path / "broken")
    monkeypatch.setattr(Engine, "step", original)
    run(one, tmp_path / "broken")
    first, second = (
        load_file(tmp_path / name / "student" / "rte" / "model.safetensors")
        for name in ("straight", "broken")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_student_that_reads_other_tokens_cannot_be_compared_inside(recipe, tmp_path, tiny_bert):
    from transformers import AutoTokenizer

    from distill.recipe import StudentRecipe

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.add_tokens(["distillation"])
    tokenizer.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text((tiny_bert / "config.json").read_text())
    (tmp_path / "other" / "model.safetensors").write_bytes((tiny_bert / "model.safetensors").read_bytes())
    config = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    one = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, tasks=("rte",), diagnostics=False),
        student=StudentRecipe(config=config, tokenizer=str(tmp_path / "other")),
        loss=Labels() + HiddenStates(),
        seeds=(0,),
    )
    with pytest.raises(ModelError, match="they have different tokenizers; give the student the teacher's"):
        run(one, tmp_path / "run")
