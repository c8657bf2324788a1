"""One finished run of two tasks and two seeds, and a hub on this machine."""

from __future__ import annotations

import dataclasses
import shutil
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distill.publish import Publication, publish_run
from distill.runs import run

from ..fake_hub import TOKEN, FakeHub, serving

TO = "ada/small-cb"


@pytest.fixture(scope="session")
def finished(recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which no test changes."""
    data = dataclasses.replace(recipe.data, tasks=("cb", "copa"))
    train = dataclasses.replace(recipe.train, num_train_epochs=1, save_steps=100, eval_steps=None)
    teacher = dataclasses.replace(recipe.teacher, train=train)
    small = dataclasses.replace(recipe, data=data, train=train, teacher=teacher, preflight=False)
    return run(small, tmp_path_factory.mktemp("home-of-somebody") / "small").folder


@pytest.fixture
def ones_own(finished, tmp_path) -> Path:
    """A copy of that run's folder."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def publish(finished) -> Callable[..., Publication]:
    """`publish_run` with all that it has to be told of this run."""

    def call(run_folder: Path = finished, to: str | None = TO, **changes: object) -> Publication:
        said = {"task": "cb", "license": "apache-2.0", "license_of": {"tiny-bert": "mit"}}
        return publish_run(run_folder, to, **(said | changes))  # type: ignore[arg-type]

    return call


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[FakeHub]:
    """The hub that huggingface_hub asks while the test runs. Nobody waits between tries."""
    import huggingface_hub.constants as settings
    from huggingface_hub.utils import _http

    with serving() as served:
        monkeypatch.setattr(settings, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(settings, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(settings, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(settings, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(
            settings,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            served.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("distill.upload.WAITS", (0.0, 0.0, 0.0))
        hurried = {**vars(time), "sleep": lambda seconds: None}
        monkeypatch.setattr(_http, "time", types.SimpleNamespace(**hurried))
        _http.close_session()
        yield served
        _http.close_session()
