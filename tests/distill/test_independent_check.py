"""A decoder's answers beside those of lm-evaluation-harness. Most of it runs where lm_eval is installed."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from distill import evaluate_model
from distill.engine.reading import reading_of
from distill.errors import DataError, ModelError
from distill.evaluate import evaluate_run
from distill.independent_check import (
    CHECKED,
    METRICS,
    TOLERANCE,
    _document,
    _quiet,
    _task,
    check_independently,
    comparison,
)
from distill.losses import ForwardKL, Labels
from distill.models import Teacher
from distill.recipe import (
    DataRecipe,
    FromTeacher,
    Recipe,
    StudentRecipe,
    TeacherRecipe,
    TrainRecipe,
    write_recipe,
)
from distill.report import Report
from distill.runs import run
from distill.tasks import SUPERGLUE, TASKS, Answer, load_task
from distill.tasks.sources import read_rows

LONGEST = 240


@pytest.fixture(scope="module")
def harness() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip('lm_eval is not installed (pip install -e ".[lm-eval]")')


@pytest.fixture(scope="module")
def decoder_run(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A run of a decoder on three demo tasks, one of which the harness cannot score."""
    train = TrainRecipe(max_steps=3, learning_rate=1e-3, per_device_train_batch_size=8)
    recipe = Recipe(
        name="lm",
        architecture="decoder",
        data=DataRecipe(
            tasks=("cb", "copa", "multirc"), train_examples=16, validation_examples=12, max_length=80
        ),
        teacher=TeacherRecipe(model=str(tiny_llama), train=train),
        student=StudentRecipe(from_teacher=FromTeacher(layers=2)),
        loss=0.5 * Labels() + 0.5 * ForwardKL(),
        train=train,
        baseline=False,
        preflight=False,
    )
    return run(recipe, tmp_path_factory.mktemp("run"))


def asked(model: Path, name: str, max_length: int = LONGEST, examples: int = 24):
    """A model, a demo task's examples and rows, and what the model answers."""
    judge = Teacher.load(str(model), kind="causal_lm", labels=())
    data = load_task(name, source="demo", validation_examples=examples).validation
    said = reading_of("decoder", TASKS[name], max_length=max_length, batch_size=8).answer(data, judge)
    return (
        judge,
        TASKS[name],
        data,
        said.answers,
        read_rows(TASKS[name], "validation", "demo", None, None, 0)[0],
    )


# Without the harness


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--task", "cb"), "CB: cannot be checked with lm-eval: lm-eval compares the likelihoods of written answers"),
        (("--task", "cb", "--architecture", "encoder_decoder"), "an encoder–decoder of distill writes one"),
        (("--task", "multirc", "--architecture", "decoder"), '"yes": a perfect model scores 0'),
        (("--task", "record", "--architecture", "decoder"), "transformers no longer has"),
        (("--task", "axb", "--architecture", "decoder"), "AX-b: cannot be checked with lm-eval: lm-eval has no such task"),
        (("--task", "terra", "--architecture", "decoder"), "lm-eval has no such task"),
        (("--task", "text", "--architecture", "decoder"), "lm-eval has no such task"),
        (("--task", "cb", "--task", "axg", "--architecture", "decoder"), "lm-eval has no such task"),
        (("--task", "cb", "--architecture", "decoder"), 'not installed; type: pip install "distill[lm-eval]"'),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_refused_before_anything_is_loaded(arguments, says, distill, monkeypatch):
    present = importlib.util.find_spec
    missing = "pip install" in says
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *more: (None if missing else True) if name == "lm_eval" else present(name, *more),
    )
    done = distill("evaluate", "/no/such/model", *arguments, "--with", "lm-eval")
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("somewhere", "--task", "cb", "--with", "helm"), "--with helm: must be lm-eval"),
        (("--task", "cb", "--predictions", "x.jsonl", "--with", "lm-eval"), "need a MODEL"),
        (("somewhere", "--submission", "x.zip", "--with", "lm-eval"), "leave out --examples and --with"),
        (
            ("somewhere", "--task", "cb", "--task", "rte", "--predictions", "x"),
            "about one task, found cb, rte",
        ),
    ],
)
def test_options_that_do_not_go_together_cost_one_line(arguments, says, distill):
    done = distill("evaluate", *arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert says in done.stderr


def test_every_superglue_task_is_checked_or_refused_with_its_reason():
    from distill.independent_check import REFUSED

    assert set(CHECKED) | set(REFUSED) == set(SUPERGLUE)
    assert not set(CHECKED) & set(REFUSED)
    assert all(metric in METRICS for name in CHECKED for metric in TASKS[name].metrics)


def test_the_table_shows_both_numbers_and_names_what_disagrees():
    found = {
        "version": "0.4.13", "task": "cb", "task_version": "1.0", "compared": 53, "cut": 3, "merged": 2,
        "same_prompt": {"accuracy": 0.5, "macro_f1": 0.25}, "own_prompt": {"accuracy": 0.125, "macro_f1": 0.0625},
        "other_answers": 1, "largest_difference": 2.5,
        "disagreements": [{"id": str(n), "distill": [-1.0], "lm_eval": [-3.5]} for n in range(21)],
    }  # fmt: skip
    metrics = {"accuracy": 0.75, "macro_f1": 0.375}
    results = {"cb": {"metrics": metrics, "majority": metrics, "lm_eval": found}, "rte": {"metrics": {}}}
    lines = comparison(results).splitlines()
    assert [lines[1].split(), lines[2].split()] == [
        ["CB", "accuracy", "75.0", "50.0", "12.5", "75.0"],
        ["CB", "macro_f1", "37.5", "25.0", "6.2", "37.5"],
    ]
    assert "CB: 1 of 53 examples answered differently" in lines[3]
    assert "lm-eval 0.4.13, task cb 1.0" in lines[3]
    assert lines[4] == "note: CB: 3 too long for the model or --max-length, not compared"
    assert lines[5].startswith(
        "warning: CB: 21 of 53 examples have log-likelihoods more than 0.01 nats apart: 0, 1, 2"
    )
    assert lines[5].endswith("18, 19, …")
    assert lines[6].startswith("note: CB: of 2 answers the first token begins in the prompt")
    assert len(lines) == 7
    agreed = found | {"cut": 0, "merged": 0, "disagreements": []}
    assert len(comparison({"cb": results["cb"] | {"lm_eval": agreed}}).splitlines()) == 4


def test_several_tasks_and_the_first_examples_of_each(tiny_llama, distill):
    arguments = ("evaluate", str(tiny_llama), "--architecture", "decoder", "--max-length", str(LONGEST))
    done = distill(*arguments, "--task", "cb", "--task", "copa", "--examples", "5", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["tasks"]
    assert {name: each["n"] for name, each in found.items()} == {"cb": 5, "copa": 5}
    one = evaluate_model(
        str(tiny_llama), "cb", architecture="decoder", max_length=LONGEST, validation_examples=5
    )
    assert found["cb"] == one
    assert "lm_eval" not in one
    text = distill(*arguments, "--task", "cb", "--task", "copa", "--examples", "5").stdout
    assert f"CB accuracy: {100 * one['metrics']['accuracy']:.1f}   (majority" in text
    assert "COPA accuracy" in text
    assert "the first 5 dev examples of" in text


def test_a_runs_students_are_scored_again_as_the_run_did(decoder_run, distill):
    tasks = decoder_run.data["student"]["tasks"]
    found = evaluate_run(decoder_run.folder)
    assert {name: each["metrics"] for name, each in found.items()} == {
        name: {metric: value[metric] for metric in found[name]["metrics"]} for name, value in tasks.items()
    }
    assert found["cb"]["truncated"] > 0  # at the recipe's length
    done = distill("evaluate", str(decoder_run.folder), "--task", "copa", "--json")
    assert json.loads(done.stdout)["tasks"] == {"copa": found["copa"]}
    with pytest.raises(DataError, match="has no task rte; its tasks are cb, copa, multirc"):
        evaluate_run(decoder_run.folder, tasks=("rte",))
    done = distill("evaluate", str(decoder_run.folder), "--data", "hub")
    assert done.returncode == 2
    assert "is a run, whose recipe says how; leave out --data" in done.stderr


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "CB: cannot be checked with lm-eval: .*an encoder's classifier has none"),
        (
            {"architecture": "decoder", "data": DataRecipe(tasks=("cb",), chat=True)},
            "data.chat must be false",
        ),
    ],
)
def test_a_run_that_cannot_be_checked_is_refused_by_its_recipe_alone(changes, says, recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(write_recipe(replace(recipe, **changes)))
    with pytest.raises(DataError, match=says):
        evaluate_run(tmp_path, check="lm-eval")


# With the harness


@pytest.mark.usefixtures("harness")
@pytest.mark.parametrize("name", CHECKED)
def test_the_harness_finds_the_same_log_likelihoods_and_metrics(name, tiny_llama):
    judge, task, examples, answers, rows = asked(tiny_llama, name)
    found = check_independently(judge, task, examples, answers, rows, max_length=LONGEST, batch_size=5)
    assert (found.compared, found.cut, found.merged) == (24, 0, 0)
    assert found.disagreements == []
    assert 0 < found.largest_difference < 1e-3  # another computation, not the same figures again
    assert found.other_answers == 0
    assert found.same_prompt == pytest.approx(task.score(answers), abs=1e-12)


@pytest.mark.usefixtures("harness")
def test_another_scoring_than_the_harnesss_is_found_and_named(tiny_llama):
    """What the check is for: answers whose last token is not counted."""
    judge, task, examples, answers, rows = asked(tiny_llama, "copa")
    wrong = [
        Answer(each.id, each.group, each.gold, (each.logits[0] + 0.5, each.logits[1]))
        if n in (3, 7)
        else each
        for n, each in enumerate(answers)
    ]
    found = check_independently(judge, task, examples, wrong, rows, max_length=LONGEST, batch_size=8)
    assert [each.id for each in found.disagreements] == [examples[3].id, examples[7].id]
    assert found.disagreements[0].distill == list(wrong[3].logits)
    assert found.disagreements[0].lm_eval == pytest.approx(list(answers[3].logits), abs=TOLERANCE)
    assert found.largest_difference == pytest.approx(0.5, abs=TOLERANCE)
    swapped = [Answer(each.id, each.group, each.gold, each.logits[::-1]) for each in answers]
    found = check_independently(judge, task, examples, swapped, rows, max_length=LONGEST, batch_size=8)
    assert found.other_answers == 24
    assert len(found.disagreements) > 20  # an example whose answers are as good as equally likely is a tie


@pytest.mark.usefixtures("harness")
@pytest.mark.parametrize("name", ["cb", "copa"])
def test_the_figures_are_those_of_the_harnesss_own_evaluation(name, tiny_llama):
    judge, task, examples, answers, rows = asked(tiny_llama, name)
    found = check_independently(judge, task, examples, answers, rows, max_length=LONGEST, batch_size=8)
    with _quiet():
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        made = _task(task, [_document(name, row) for row in rows][:24])
        reader = HFLM(pretrained=judge.model, tokenizer=judge.tokenizer, batch_size=3)
        told = lm_eval.evaluate(reader, {"tasks": {CHECKED[name]: made}}, bootstrap_iters=0)["results"][
            CHECKED[name]
        ]
    assert found.own_prompt == pytest.approx({m: told[f"{METRICS[m]},none"] for m in task.metrics}, abs=1e-12)


@pytest.mark.usefixtures("harness")
def test_one_prompt_is_distills_and_the_other_is_not(tiny_llama, monkeypatch):
    *told, rows = asked(tiny_llama, "rte", examples=25)  # an odd number: no accuracy is one half
    found = check_independently(*told, rows, max_length=LONGEST, batch_size=8)
    assert found.own_prompt == found.same_prompt
    plain = type(told[1]).completion

    def turned(task, example):
        completion = plain(task, example)
        return replace(completion, answers=completion.answers[::-1])

    monkeypatch.setattr(type(told[1]), "completion", turned)
    *told, rows = asked(tiny_llama, "rte", examples=25)
    other = check_independently(*told, rows, max_length=LONGEST, batch_size=8)
    assert other.own_prompt == found.own_prompt
    assert other.same_prompt["accuracy"] == pytest.approx(1 - found.own_prompt["accuracy"])
    assert other.disagreements == []


@pytest.mark.usefixtures("harness")
@pytest.mark.parametrize("name", CHECKED)
def test_its_own_prompts_are_what_the_module_says_of_them(name):
    """Row by row the wording of distill, but for what the docstring of the module lists."""
    task = TASKS[name]
    rows = read_rows(task, "validation", "demo", None, None, 0)[0]
    examples = task.examples(rows)
    with _quiet():
        made = _task(task, [_document(name, row) for row in rows])
        delimiter = made.config.target_delimiter
        found = [
            (made.doc_to_text(d), made.doc_to_choice(d), made.doc_to_target(d))
            for d in made.validation_docs()
        ]
    for example, (prompt, choices, target) in zip(examples, found, strict=True):
        completion = task.completion(example)
        space = " " if name == "copa" else ""
        assert [delimiter + choice for choice in choices] == [space + answer for answer in completion.answers]
        assert target == (choices[example.label] if name == "copa" else example.label)
        expected = completion.prompt.text
        if name == "cb" and example.fields["hypothesis"].endswith("."):
            expected = expected.replace(". True, False", ".. True, False")
        if name != "wsc":  # its spaces and marks move
            assert prompt == expected
        else:
            assert prompt.replace(" ", "") == expected.replace(" ", "")


@pytest.mark.usefixtures("harness")
def test_the_reasons_of_the_refusals_still_hold():
    with _quiet():
        import lm_eval.tasks

        folder = Path(lm_eval.tasks.__file__).parent / "super_glue"
        manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=str(folder))
        with pytest.raises(ModuleNotFoundError, match=r"transformers\.data\.metrics"):
            manager.load(["record"])
        from datasets import Dataset

        rows = [{"paragraph": "P.", "question": "Q?", "answer": "A", "label": label} for label in (0, 1)]
        changed = {"task": "multirc", "custom_dataset": lambda **_: {"validation": Dataset.from_list(rows)}}
        group = {"group": "g", "task": [changed | {"training_split": None}]}
        task = manager.load(group)["tasks"]["multirc"]
        golds = [task.doc_to_choice(doc)[task.doc_to_target(doc)] for doc in task.validation_docs()]
    assert [gold.rsplit(" ", 1)[1] for gold in golds] == ["yes", "no"]  # of a wrong and of a right option


@pytest.mark.usefixtures("harness")
def test_examples_that_were_cut_are_counted_and_not_compared(tiny_llama):
    longest = 72
    judge, task, examples, answers, rows = asked(tiny_llama, "boolq", max_length=longest)
    found = check_independently(judge, task, examples, answers, rows, max_length=longest, batch_size=8)
    assert found.cut > 0
    assert found.compared == 24 - found.cut
    assert found.disagreements == []


@pytest.mark.usefixtures("harness")
def test_a_model_is_asked_as_much_as_it_reads_where_nothing_else_is_said(tiny_llama, tmp_path):
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "short"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 72}))
    told = {"architecture": "decoder", "validation_examples": 24}
    assert evaluate_model(str(folder), "boolq", **told)["truncated"] == 0  # at 128
    found = evaluate_model(str(folder), "boolq", **told, check="lm-eval")
    assert found["truncated"] == found["lm_eval"]["cut"] > 0
    longer = evaluate_model(str(folder), "boolq", **told, check="lm-eval", max_length=100)
    assert longer["truncated"] == 0
    assert longer["lm_eval"]["cut"] > 0  # by the harness, which reads what the config says
    assert longer["lm_eval"]["disagreements"] == []


@pytest.mark.usefixtures("harness")
def test_a_tokenizer_that_ends_every_text_is_refused(tiny_llama):
    judge, task, examples, answers, rows = asked(tiny_llama, "cb")
    judge.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        "$A </s>", "$A $B </s>", [("</s>", 1)]
    )
    with pytest.raises(ModelError, match="puts </s> behind every text"):
        check_independently(judge, task, examples, answers, rows, max_length=LONGEST, batch_size=8)


@pytest.mark.usefixtures("harness")
def test_a_beginning_of_sequence_is_read_by_both(tiny_llama):
    judge, task, *_ = asked(tiny_llama, "rte")
    judge.tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 0)])
    data = load_task("rte", source="demo", validation_examples=24).validation
    said = reading_of("decoder", task, max_length=LONGEST, batch_size=8).answer(data, judge)
    rows = read_rows(task, "validation", "demo", None, None, 0)[0]
    found = check_independently(judge, task, data, said.answers, rows, max_length=LONGEST, batch_size=8)
    assert (found.disagreements, found.compared) == ([], 24)


@pytest.mark.usefixtures("harness")
def test_the_command_prints_and_writes_both_numbers(tiny_llama, distill):
    arguments = ("evaluate", str(tiny_llama), "--architecture", "decoder", "--task", "cb", "--examples", "12",
                 "--with", "lm-eval")  # fmt: skip
    done = distill(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["truncated"] == 0  # not at 128 tokens: as many as the model reads
    assert found["lm_eval"]["same_prompt"] == pytest.approx(found["metrics"])
    assert found["lm_eval"]["compared"] == 12
    done = distill(*arguments)
    assert comparison({"cb": found}) in done.stdout
    assert "0 of 12 examples answered differently" in done.stdout
    assert "%|" not in done.stderr  # no bar of the harness
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.usefixtures("harness")
def test_a_runs_students_are_checked_where_they_can_be(decoder_run, distill):
    found = evaluate_run(decoder_run.folder, check="lm-eval")
    for name in ("cb", "copa"):
        assert found[name]["lm_eval"]["disagreements"] == []
        assert found[name]["lm_eval"]["same_prompt"] == pytest.approx(found[name]["metrics"])
    assert "lm_eval" not in found["multirc"]
    assert found["multirc"]["notes"][-1].startswith(
        "MultiRC: not checked with lm-eval: lm-eval takes the label 0"
    )
    done = distill("evaluate", str(decoder_run.folder), "--with", "lm-eval")
    assert done.returncode == 0, done.stderr
    assert "MultiRC f1a: " in done.stdout
    assert "note: MultiRC: not checked with lm-eval" in done.stdout
    done = distill("evaluate", str(decoder_run.folder), "--task", "multirc", "--with", "lm-eval")
    assert done.returncode == 2


@pytest.mark.usefixtures("harness")
def test_the_models_weights_random_generators_logs_and_bars_stay_as_they_were(tiny_llama):
    import logging

    from datasets.utils import are_progress_bars_disabled

    judge, task, examples, answers, rows = asked(tiny_llama, "copa")
    np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002 - the global one is what could be touched
    before = (str(np.random.get_state()), torch.get_rng_state().tolist())  # noqa: NPY002
    weights = {name: each.clone() for name, each in judge.model.state_dict().items()}
    check_independently(judge, task, examples, answers, rows, max_length=LONGEST, batch_size=8)
    assert (str(np.random.get_state()), torch.get_rng_state().tolist()) == before  # noqa: NPY002
    assert all(torch.equal(each, weights[name]) for name, each in judge.model.state_dict().items())
    assert logging.getLogger("lm_eval").level == logging.NOTSET
    assert not are_progress_bars_disabled()


@pytest.mark.usefixtures("harness")
@pytest.mark.parametrize(
    ("name", "examples"), [("cb", 56), ("copa", 100), ("wsc", 104), ("rte", 60), ("boolq", 20)]
)
def test_a_real_decoder_on_official_data(name, examples, data_root):
    model = data_root / "models" / "stories260K"
    if not model.is_dir():
        pytest.skip(f"no {model}")
    found = evaluate_model(
        str(model), name, data=str(data_root / "superglue"), architecture="decoder",
        validation_examples=examples, check="lm-eval", batch_size=16,
    )  # fmt: skip
    checked = found["lm_eval"]
    assert checked["disagreements"] == []
    assert checked["compared"] == examples - found["truncated"] > 0
    if not found["truncated"]:
        assert checked["same_prompt"] == pytest.approx(found["metrics"])
