"""Runs whose students are cut out of the teacher in more than depth."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from distill.errors import ModelError
from distill.losses import ForwardKL, HiddenStates, Labels, Relations
from distill.models import needed_tokens
from distill.models.loading import load_tokenizer
from distill.models.source import find_model
from distill.progress import Silent
from distill.recipe import DataRecipe, FromTeacher, Recipe, StudentRecipe, StudentVocabulary, read_recipe
from distill.recipe_data import load_recipe_data
from distill.runs import run
from distill.runs.corpus import Corpus
from distill.tasks import encode_completions

WORDS = "bert.embeddings.word_embeddings.weight"


def with_student(recipe: Recipe, tasks: tuple[str, ...], **from_teacher) -> Recipe:
    """The recipe with another student, on some tasks with one seed and no dropout."""
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, tasks=tasks, diagnostics=False),
        student=StudentRecipe(from_teacher=FromTeacher(**{"layers": 2, **from_teacher})),
        train=dataclasses.replace(recipe.train, dropout=0.0),
        seeds=(0,),
    )


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize(
    ("task", "loss"),
    [
        ("rte", 0.5 * Labels() + 0.5 * ForwardKL(temperature=2.0)),
        ("copa", 0.5 * ForwardKL() + 0.1 * HiddenStates() + 0.1 * Relations(heads=4)),
    ],
    ids=["remembered teacher", "running teacher"],
)
def test_training_with_a_trimmed_vocabulary_is_training_with_the_whole(recipe, tmp_path, task, loss):
    """The training texts are inside the vocabulary, so that only rows that are never read are gone.

    A teacher's row beside the wrong example, or a wrong token of either model, would train another student.
    """
    both = {}
    for vocabulary in ("teacher", "corpus"):
        one = dataclasses.replace(with_student(recipe, (task,), vocabulary=vocabulary), loss=loss)
        finished = run(one, tmp_path / vocabulary)
        weights = load_file(finished.folder / "student" / task / "model.safetensors")
        both[vocabulary] = finished, weights, losses(finished.folder)
    (_, whole, whole_losses), (finished, trimmed, trimmed_losses) = both["teacher"], both["corpus"]
    provenance = json.loads((finished.folder / "student" / task / "provenance.json").read_text())
    tokens = provenance["tokens"]
    assert len(trimmed[WORDS]) == len(tokens) < 300
    torch.testing.assert_close(torch.tensor(trimmed_losses), torch.tensor(whole_losses), rtol=1e-4, atol=1e-5)
    for name, tensor in trimmed.items():
        expected = whole[name][tokens] if name == WORDS else whole[name]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-4)
    assert f"layers 0, 3, {len(tokens):,} tokens of" in (finished.folder / "report.md").read_text()
    assert read_recipe(finished.folder / "recipe.yaml").student.from_teacher.vocabulary == "corpus"


def test_the_training_texts_of_all_tasks_decide_and_no_validation_text(
    recipe, tmp_path, official_folder, tokenizer
):
    finished = run(with_student(recipe, ("copa", "rte"), vocabulary="corpus"), tmp_path / "run")
    kept = {
        task: json.loads((finished.folder / "student" / task / "provenance.json").read_text())["tokens"]
        for task in ("copa", "rte")
    }
    assert kept["copa"] == kept["rte"]
    texts = []
    for title in ("COPA", "RTE"):
        for line in (official_folder / title / "train.jsonl").read_text().splitlines():
            texts += [value for value in json.loads(line).values() if isinstance(value, str)]
    texts += ["What happened as a result?", "What was the cause of this?"]
    read = {token for ids in tokenizer(texts)["input_ids"] for token in ids}
    assert set(kept["rte"]) <= set(needed_tokens(tokenizer, read))
    assert set(
        tokenizer("wet dry I saw the horse by the road", add_special_tokens=False)["input_ids"]
    ) <= set(kept["rte"])
    only_validated = tokenizer.convert_tokens_to_ids(
        "45"
    )  # COPA's validation counts on to 45, training to 39
    assert only_validated != tokenizer.unk_token_id
    assert only_validated not in kept["rte"]
    assert finished.data["student"]["parameters"] == finished.data["baseline"]["parameters"]
    assert finished.data["sharing"]["common"] > 0


def test_a_vocabulary_is_filled_up_and_a_new_one_is_made_of_the_training_texts(recipe, tmp_path, tokenizer):
    beside = tmp_path / "beside.txt"
    beside.write_text("zygomorphic zygomorphic zygomorphic flowers\n" * 50)
    starts = {}
    for name, vocabulary in (
        ("filled", StudentVocabulary(at_least=1500)),
        ("new", StudentVocabulary(train=400)),
        ("beside", StudentVocabulary(train=400, texts=str(beside))),
    ):
        one = with_student(recipe, ("copa",), vocabulary=vocabulary)
        one = dataclasses.replace(one, cache=str(tmp_path / "cache"), loss=(Labels(), ForwardKL()))
        finished = run(one, tmp_path / name)
        folder = finished.folder / "student" / "copa"
        weights = load_file(folder / "model.safetensors")
        starts[name] = json.loads((folder / "provenance.json").read_text()), folder
        part = "tokens" if name == "filled" else "pieces"
        assert len(weights[WORDS]) == len(starts[name][0][part])
        assert finished.data["baseline"]["parameters"] == finished.data["student"]["parameters"]
        text = (finished.folder / "report.md").read_text()
        assert f"{len(weights[WORDS]):,} {'tokens' if part == 'tokens' else 'new tokens'} of" in text
        again = read_recipe(finished.folder / "recipe.yaml", check_surroundings=False)
        assert again.student.from_teacher.vocabulary == vocabulary
    assert len(starts["filled"][0]["tokens"]) == 1500
    tokens = {name: (folder / "tokenizer.json").read_text() for name, (_, folder) in starts.items()}
    assert '"zygomorphic"' in tokens["beside"]
    assert '"zygomorphic"' not in tokens["new"]
    # A baseline is shared between runs: not between those with other texts.
    assert len(list((tmp_path / "cache").glob("baseline-*"))) == 3


@pytest.mark.parametrize("extra", [{"vocabulary": "corpus"}, {"vocabulary": StudentVocabulary(at_least=330)}])
def test_a_decoder_keeps_the_tokens_of_its_texts(tiny_llama, recipe, tmp_path, extra):
    """The teacher reads the student's tokens, and both predict the same ones."""
    corpus = tmp_path / "text.txt"
    corpus.write_text("The cat sat on the mat, and the dog sat on the log.\n" * 60)
    one = dataclasses.replace(
        recipe,
        architecture="decoder",
        data=DataRecipe(source="text", path=str(corpus), max_length=48, tasks=("text",), diagnostics=False),
        teacher=dataclasses.replace(recipe.teacher, model=str(tiny_llama), train=None),
        student=StudentRecipe(from_teacher=FromTeacher(layers=2, **extra)),
        loss=(Labels(), ForwardKL()),
        seeds=(0,),
    )
    finished = run(one, tmp_path / "run")
    folder = finished.folder / "student" / "text"
    tokens = json.loads((folder / "provenance.json").read_text())["tokens"]
    assert 256 < len(tokens) < 390
    assert len(tokens) == 330 or extra["vocabulary"] == "corpus"
    assert len(load_file(folder / "model.safetensors")["model.embed_tokens.weight"]) == len(tokens)
    assert all(value > 0 for value in losses(finished.folder))


def test_the_prompts_of_a_decoder_decide_too(tiny_llama, recipe, official_folder):
    """What a decoder reads is a prompt with its answers, not the texts of the examples alone."""
    data = load_recipe_data(dataclasses.replace(recipe.data, tasks=("rte",)), "rte")
    whole = load_tokenizer(find_model(str(tiny_llama)))
    one = dataclasses.replace(recipe, architecture="decoder")
    tokens = Corpus(one, [data]).tokens(whole)
    read = encode_completions(data.task, data.train, whole, max_length=4096, answers="all").input_ids
    assert {token for ids in read for token in ids} - set(whole.all_special_ids) == tokens
    assert tokens - Corpus(recipe, [data]).tokens(whole)


@pytest.mark.parametrize("keep", ["most_active", "first"])
def test_a_run_whose_student_is_shallower_narrower_and_knows_fewer_tokens(recipe, tmp_path, tiny_bert, keep):
    made = {"vocabulary": "corpus", "hidden": 16, "intermediate": 24, "keep": keep}
    one = dataclasses.replace(
        with_student(recipe, ("cb",), **made),
        train=dataclasses.replace(recipe.train, dropout=0.0, learning_rate=1e-9),
        loss=(Labels(), ForwardKL()),
    )
    finished = run(one, tmp_path / "run")
    folder = finished.folder / "student" / "cb"
    weights = load_file(folder / "model.safetensors")
    provenance = json.loads((folder / "provenance.json").read_text())
    # A step that small leaves the weights where they started: at the teacher's, where the provenance says.
    words = load_file(tiny_bert / "model.safetensors")["embeddings.word_embeddings.weight"]
    expected = words[provenance["tokens"]][:, provenance["channels"]]
    torch.testing.assert_close(weights[WORDS], expected, rtol=0, atol=1e-6)
    first = provenance["channels"] == list(range(16))
    assert first == (keep == "first")
    assert finished.data["student"]["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert finished.data["baseline"]["parameters"] == finished.data["student"]["parameters"]
    text = (finished.folder / "report.md").read_text()
    assert f"{len(provenance['tokens']):,} tokens, 16 channels, 1 head, 24 neurons of" in text


def test_a_loss_that_looks_inside_reads_a_narrower_student(recipe, tmp_path):
    one = dataclasses.replace(
        with_student(recipe, ("rte",), vocabulary="corpus", hidden=16),
        loss=0.5 * ForwardKL() + 0.1 * HiddenStates() + 0.1 * Relations(heads=4),
        baseline=False,
    )
    finished = run(one, tmp_path / "run")
    assert all(value > 0 for value in losses(finished.folder))


def test_the_size_is_said_before_the_student_is_trained(recipe, tmp_path):
    class Heard(Silent):
        def __init__(self):
            self.lines = []

        def say(self, line: str) -> None:
            self.lines.append(line)

        def begin(self, what: str, total: int, done: int = 0) -> None:
            self.lines.append(what)

    heard = Heard()
    finished = run(
        with_student(recipe, ("cb",), vocabulary="corpus", intermediate=32), tmp_path / "run", progress=heard
    )
    said = next(line for line in heard.lines if "parameters (embedding" in line)
    count, ratio = finished.data["student"]["parameters"], 1 / finished.data["compression"]["parameters"]
    assert said.startswith(f"student-cb: {count / 1e6:.2f} M parameters (embedding ")
    assert said.endswith(f", {ratio:.2f} of the teacher's")
    assert heard.lines.index(said) < heard.lines.index("student-cb-seed0")


def test_a_width_the_teacher_cannot_have_stops_the_run_in_one_line(recipe, tmp_path):
    with pytest.raises(
        ModelError, match=r"^student\.from_teacher\.hidden: must be a multiple of 16.*found 20$"
    ):
        run(with_student(recipe, ("cb",), hidden=20), tmp_path / "run")


def test_a_run_keeps_the_layers_that_matter_and_refits_the_ones_before_the_others(
    recipe, tmp_path, tiny_bert
):
    made = {"choose": "block_influence", "dropped": "linear", "hidden": 16, "intermediate": 24}
    one = dataclasses.replace(
        with_student(recipe, ("cb",), **made),
        train=dataclasses.replace(recipe.train, dropout=0.0, learning_rate=1e-9),
    )
    finished = run(one, tmp_path / "run")
    folder = finished.folder / "student" / "cb"
    weights, teacher = load_file(folder / "model.safetensors"), load_file(tiny_bert / "model.safetensors")
    provenance = json.loads((folder / "provenance.json").read_text())
    layers, channels = provenance["layers"], provenance["channels"]
    assert len(layers) == 2
    refitted = {name.split(".", 1)[1] for name in provenance["refitted"]}
    for place, layer in enumerate(layers):
        name = "encoder.layer.{}.output.dense.weight"
        expected = teacher[name.format(layer)][channels][:, provenance["neurons"][place]]
        same = torch.allclose(weights["bert." + name.format(place)], expected, atol=1e-6)
        assert same == (name.format(layer) not in refitted)


def test_linearity_says_what_it_needs_before_anything_is_trained(recipe, tmp_path):
    few = dataclasses.replace(
        with_student(recipe, ("cb",), choose="linearity"),
        data=dataclasses.replace(recipe.data, tasks=("cb",), train_examples=4, diagnostics=False),
    )
    with pytest.raises(ModelError, match=r"^student\.from_teacher\.choose: linearity needs 320 tokens"):
        run(few, tmp_path / "run")


def test_a_run_finds_the_shape_for_the_tokens_it_keeps(recipe, tmp_path):
    class Heard(Silent):
        lines: tuple[str, ...] = ()

        def say(self, line: str) -> None:
            self.lines += (line,)

    heard = Heard()
    target = 20_000
    made = {"layers": None, "target_parameters": target, "vocabulary": "corpus"}
    finished = run(with_student(recipe, ("cb",), **made), tmp_path / "run", progress=heard)
    folder = finished.folder / "student" / "cb"
    config = json.loads((folder / "config.json").read_text())
    classifier = 3 * config["hidden_size"] + 3
    assert finished.data["student"]["parameters"] - classifier <= target
    found = next(line for line in heard.lines if line.startswith("student-cb: layers "))
    assert found == (
        f"student-cb: layers {config['num_hidden_layers']}, hidden {config['hidden_size']}, "
        f"intermediate {config['intermediate_size']}"
    )
