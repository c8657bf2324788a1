"""Experiment trackers are told what metrics.jsonl says: each figure once, also by a run that was interrupted."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import accelerate.tracking
import pytest
from accelerate.utils import LoggerType

from distill.errors import RecipeError
from distill.progress import Silent
from distill.recipe import Recipe, read_recipe, recipe_sha256, surroundings, write_recipe
from distill.runs import run


class Notebook(accelerate.tracking.GeneralTracker):
    """A tracker that keeps what it is told, in the place of trackio."""

    name = "trackio"
    requires_logging_directory = False
    pages: list[Notebook]

    def __init__(self, run_name: str, **settings: Any):
        super().__init__()
        self.run_name, self.settings = run_name, settings
        self.config: dict[str, Any] = {}
        self.lines: list[tuple[int, dict[str, Any]]] = []
        self.finished = False

    @property
    def tracker(self) -> Notebook:
        return self

    def start(self) -> None:
        self.pages.append(self)

    def store_init_configuration(self, values: dict) -> None:
        self.config = values

    def log(self, values: dict, step: int | None = None, **_: Any) -> None:
        assert step is not None
        self.lines.append((step, values))

    def finish(self) -> None:
        self.finished = True


class Interrupted(Silent):
    """A person who stops the run in its student, after a step that no checkpoint holds."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        self.what = what

    def advance(self, done: int, detail: str = "") -> None:
        if self.what.startswith("student") and done == 7:
            raise KeyboardInterrupt


class Listening(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.fixture
def notebooks(monkeypatch, tmp_path) -> list[Notebook]:
    """The notebooks that runs open: accelerate takes them for trackio's."""
    (tmp_path / "packages" / "trackio").mkdir(parents=True)
    (tmp_path / "packages" / "trackio" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "trackio", Notebook)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType.TRACKIO])
    monkeypatch.setattr(Notebook, "pages", [], raising=False)
    return Notebook.pages


@pytest.fixture(scope="module")
def tracked(recipe) -> Recipe:
    """One task, one seed, ten steps."""
    train = dataclasses.replace(recipe.train, max_steps=10, logging_steps=2, save_steps=4, eval_steps=5)
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, tasks=("cb",)),
        train=train,
        teacher=dataclasses.replace(recipe.teacher, train=dataclasses.replace(train, eval_steps=None)),
        seeds=(0,),
        baseline=False,
        preflight=False,
        report_to=("trackio",),
    )


def logged(folder: Path) -> list[tuple[str, int, dict[str, Any]]]:
    """The lines of metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line.pop("fit"), line.pop("step"), line) for line in lines]


def test_a_tracker_is_told_each_figure_once_though_the_run_was_interrupted(tracked, notebooks, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(tracked, folder, progress=Interrupted())
    assert max(step for fit, step, _ in logged(folder) if fit.startswith("student")) == 6
    report = run(tracked, folder)
    first, second = notebooks
    assert (first.run_name, first.settings) == (second.run_name, second.settings)
    assert first.run_name == "small"
    assert first.finished
    assert second.finished
    told = [(step, values) for notebook in notebooks for step, values in notebook.lines]
    expected = [
        (step, {f"{fit}/{name}": v for name, v in line.items()}) for fit, step, line in logged(folder)
    ]
    scores = [
        (10, {f"{role}/score": report.score(role.split("-")[0])})
        for role in ("teacher-cb", "student-cb-seed0")
    ]
    # The speed is another in every attempt.
    for _, values in [*told, *expected]:
        for name in list(values):
            if name.endswith("tokens_per_second"):
                del values[name]
    assert sorted(told, key=str) == sorted([*expected, *scores], key=str)
    assert max(Counter((step, name) for step, values in told for name in values).values()) == 1
    assert {"student-cb-seed0/loss/sinkhorn", "student-cb-seed0/validation/accuracy"} <= {
        n for _, v in told for n in v
    }

    run(tracked, folder)
    assert notebooks[2].lines == []


def test_a_tracker_is_told_nothing_of_this_machine(tracked, notebooks, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    run(tracked, tmp_path / "run")
    (notebook,) = notebooks
    config = notebook.config
    assert config["train.learning_rate"] == 2e-3
    assert config["recipe_sha256"] == recipe_sha256(tracked)
    assert json.loads(config["loss"])[1]["kind"] == "forward_kl"
    assert {type(value) for value in config.values()} <= {str, int, float, bool}
    text = json.dumps([config, notebook.settings])
    assert "/" not in text
    assert "0123456789abcdef" not in text


def test_a_tracker_that_fails_costs_its_figures_and_not_the_run(tracked, notebooks, tmp_path, monkeypatch):
    def refuse(self: Notebook, values: dict, step: int | None = None, **_: Any) -> None:
        if any("student" in name for name in values):
            raise ConnectionError("no route to the server\nand more")

    monkeypatch.setattr(Notebook, "log", refuse)
    listening = Listening()
    assert run(tracked, tmp_path / "run", progress=listening).verdict
    said = [line for line in listening.said if "report_to" in line]
    assert said == ["report_to trackio: gets no more figures (ConnectionError: no route to the server)"]
    assert any(fit == "student-cb-seed0" for fit, _, _ in logged(tmp_path / "run"))


def test_a_tracker_that_cannot_start_is_named(tracked, notebooks, tmp_path, monkeypatch):
    def refuse(self: Notebook) -> None:
        raise PermissionError("not logged in")

    monkeypatch.setattr(Notebook, "start", refuse)
    with pytest.raises(
        RecipeError, match=r"report_to: a tracker cannot be started \(PermissionError: not logged in\)"
    ):
        run(tracked, tmp_path / "run")


def test_a_tracker_that_is_not_installed_is_a_mistake_of_the_recipe(tracked, tmp_path, monkeypatch):
    monkeypatch.setattr(surroundings.importlib.util, "find_spec", lambda name: None)
    path = tmp_path / "small.yaml"
    path.write_text(write_recipe(dataclasses.replace(tracked, report_to=("comet_ml", "tensorboard"))))
    with pytest.raises(RecipeError) as found:
        read_recipe(path)
    assert [problem.split(": ", 1)[1] for problem in found.value.problems if "report_to" in problem] == [
        "report_to.0: needs comet-ml, which is not installed; type: pip install comet-ml",
        "report_to.1: needs tensorboard, which is not installed; type: pip install tensorboard",
    ]
    with pytest.raises(RecipeError, match="report_to: needs trackio, which is not installed"):
        run(tracked, tmp_path / "run")


def test_trackers_do_not_make_another_recipe(tracked, tmp_path):
    assert recipe_sha256(tracked) == recipe_sha256(dataclasses.replace(tracked, report_to=()))
    path = tmp_path / "small.yaml"
    for value, said in (
        ("[tensorbord]", "tensorboard"),
        ("[trackio, trackio]", "stands there twice"),
        ("all", "list"),
    ):
        path.write_text(write_recipe(tracked).replace("report_to: [trackio]", f"report_to: {value}"))
        with pytest.raises(RecipeError, match=said):
            read_recipe(path, check_surroundings=False)


def test_tensorboard_holds_the_figures(tracked, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(dataclasses.replace(tracked, report_to=("tensorboard",)), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "trackers" / "small"), size_guidance={"scalars": 0})
    events.Reload()
    for name in ("loss", "loss/labels", "gradient_norm", "learning_rate"):
        found = [(event.step, event.value) for event in events.Scalars(f"student-cb-seed0/{name}")]
        lines = [
            (s, line[name])
            for f, s, line in logged(tmp_path / "run")
            if f == "student-cb-seed0" and name in line
        ]
        assert [step for step, _ in found] == [2, 4, 6, 8, 10]
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in lines]
