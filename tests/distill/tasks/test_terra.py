"""TERRa: Russian, in a folder, and outside the SuperGLUE score."""

import pytest

from distill.errors import DataError
from distill.recipe import DataRecipe
from distill.tasks import SUPERGLUE, TASKS, load_task, mean_score, score_name, superglue_score


def test_terra_stands_outside_superglue_and_trains():
    assert "terra" not in SUPERGLUE
    assert TASKS["terra"].labels == TASKS["rte"].labels
    assert DataRecipe().tasks == SUPERGLUE
    assert DataRecipe(source="folder", path="x", tasks=("terra",)).tasks == ("terra",)


@pytest.mark.parametrize(
    ("tasks", "portions", "name"),
    [
        (["terra"], {}, "TERRa accuracy, dev"),
        (["terra"], {"terra": "100 training examples"}, "TERRa accuracy on 100 training examples, dev"),
        (["terra", "rte"], {}, "mean of 1 of the 8 SuperGLUE tasks (RTE) and TERRa, dev"),
    ],
)
def test_a_score_with_terra_is_never_called_superglue_score(tasks, portions, name):
    assert score_name(tasks, "folder", portions) == name
    assert "SuperGLUE score" not in score_name([*SUPERGLUE, "terra"], "folder", portions)


def test_terra_has_a_mean_but_no_superglue_score():
    metrics = {"terra": {"accuracy": 0.5}, "rte": {"accuracy": 1.0}}
    assert mean_score(metrics) == 75.0
    assert superglue_score(metrics) == 100.0
    with pytest.raises(ValueError, match="at least one of boolq"):
        superglue_score({"terra": {"accuracy": 0.5}})
    with pytest.raises(ValueError, match="at least one task"):
        mean_score({})


@pytest.mark.parametrize("source", ["demo", "hub"])
def test_terra_comes_from_a_folder_alone(source):
    with pytest.raises(DataError, match=f"TERRa: not among the {source}'s tasks; it comes from a folder"):
        load_task("terra", source=source)


def test_a_missing_folder_names_where_terra_is_to_be_had(tmp_path):
    with pytest.raises(DataError, match=r"russiansuperglue\.com/tasks/download/TERRa"):
        load_task("terra", source="folder", path=tmp_path)


def test_the_official_files_are_whole_and_oriented_as_rte(superglue):
    folder = superglue.parent / "russian_superglue"
    if not folder.is_dir():
        pytest.skip(f"no Russian SuperGLUE in {folder}")
    data = load_task("terra", source="folder", path=folder)
    assert (len(data.train), len(data.validation)) == (2616, 307)
    assert (data.partial, data.notes) == (False, ())
    task = data.task
    texts = [task.read_answer(e, task.labels[e.label]) for e in data.validation]
    assert task.score(texts) == {"accuracy": 1.0}
    assert all(task.completion(e).prompt.text.endswith("Верно?\nОтвет:") for e in data.train)
