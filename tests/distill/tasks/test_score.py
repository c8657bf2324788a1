import pytest

from distill.tasks import SUPERGLUE, score_name, superglue_score


def table(boolq, cb, copa, multirc, record, rte, wic, wsc, cb_order=("accuracy", "macro_f1")):
    """A row of the paper, in points, as metrics of tasks."""
    return {
        "boolq": {"accuracy": boolq / 100},
        "cb": {metric: value / 100 for metric, value in zip(cb_order, cb, strict=True)},
        "copa": {"accuracy": copa / 100},
        "multirc": {"f1a": multirc[0] / 100, "em": multirc[1] / 100},
        "record": {"f1": record[0] / 100, "em": record[1] / 100},
        "rte": {"accuracy": rte / 100},
        "wic": {"accuracy": wic / 100},
        "wsc": {"accuracy": wsc / 100},
    }


@pytest.mark.parametrize(
    ("row", "score"),
    [
        (table(62.2, (50.0, 22.2), 55.0, (59.9, 0.8), (32.4, 31.5), 52.7, 50.0, 63.5), 47.73),
        (table(62.4, (71.4, 49.6), 63.0, (20.3, 0.3), (14.4, 13.8), 54.2, 55.3, 61.5), 47.66),
        (table(77.7, (94.6, 93.7), 69.0, (70.5, 24.7), (70.6, 69.8), 75.8, 74.9, 68.3), 72.21),
    ],
)
def test_the_dev_rows_of_the_paper_recompute(row, score):
    assert superglue_score(row) == pytest.approx(score, abs=0.005)


TEST_ROWS = {
    "most frequent": (table(62.3, (21.7, 48.4), 50.0, (61.1, 0.3), (33.4, 32.5), 50.3, 50.0, 65.1, ("macro_f1", "accuracy")), 47.05),
    "CBoW": (table(62.1, (49.0, 71.2), 51.6, (0.0, 0.4), (14.0, 13.6), 49.7, 53.0, 65.1, ("macro_f1", "accuracy")), 44.45),
    "BERT-large": (table(77.4, (75.7, 83.6), 70.6, (70.0, 24.0), (72.0, 71.3), 71.6, 69.5, 64.3, ("macro_f1", "accuracy")), 68.96),
    "BERT++": (table(79.0, (84.7, 90.4), 73.8, (70.0, 24.1), (72.0, 71.3), 79.0, 69.5, 64.3, ("macro_f1", "accuracy")), 71.48),
    "human": (table(89.0, (95.8, 98.9), 100.0, (81.8, 51.9), (91.7, 91.3), 93.6, 80.0, 100.0, ("macro_f1", "accuracy")), 89.79),
}  # fmt: skip


@pytest.mark.parametrize("name", TEST_ROWS)
def test_the_test_rows_of_the_paper_recompute(name):
    row, score = TEST_ROWS[name]
    assert superglue_score(row) == pytest.approx(score, abs=0.0051)


def test_the_cbow_row_of_the_paper_is_misprinted():
    row, _ = TEST_ROWS["CBoW"]
    assert abs(superglue_score(row) - 44.3) > 0.1


def test_diagnostics_do_not_enter_the_score():
    row = TEST_ROWS["human"][0]
    assert superglue_score(row | {"axb": {"matthews": -1.0}, "axg": {"accuracy": 0.0}}) == superglue_score(
        row
    )


def test_tasks_weigh_the_same_whatever_their_number_of_metrics():
    assert superglue_score({"cb": {"accuracy": 1.0, "macro_f1": 0.0}, "rte": {"accuracy": 1.0}}) == 75.0


def test_a_missing_metric_or_no_task_at_all_is_refused():
    with pytest.raises(ValueError, match="CB lacks macro_f1, found accuracy"):
        superglue_score({"cb": {"accuracy": 1.0}})
    with pytest.raises(ValueError, match=r"at least one of boolq, .* found \['axb'\]"):
        superglue_score({"axb": {"matthews": 1.0}})
    with pytest.raises(ValueError, match="at least one of boolq"):
        score_name(["axb"], "hub")


@pytest.mark.parametrize(
    ("tasks", "source", "partial", "name"),
    [
        (SUPERGLUE, "hub", {}, "SuperGLUE score, dev"),
        ((*SUPERGLUE, "axb", "axg"), "folder", None, "SuperGLUE score, dev"),
        (("wsc", "cb", "copa"), "folder", {}, "mean of 3 of the 8 SuperGLUE tasks (CB, COPA, WSC), dev"),
        (
            ("cb", "boolq"),
            "folder",
            {"boolq": "1,061 training examples", "record": "64 training queries"},
            "mean of 2 of the 8 SuperGLUE tasks (BoolQ on 1,061 training examples, CB), dev",
        ),
        (
            SUPERGLUE,
            "folder",
            {"boolq": "1,061 training examples"},
            "mean of the 8 SuperGLUE tasks (BoolQ on 1,061 training examples), dev",
        ),
        (SUPERGLUE, "hub", {"boolq": ""}, "SuperGLUE score, dev"),
        (SUPERGLUE, "demo", {}, "demo-task score (built-in demo tasks, not SuperGLUE)"),
    ],
)
def test_only_all_eight_tasks_on_complete_data_are_called_superglue(tasks, source, partial, name):
    assert score_name(tasks, source, partial) == name
