"""The verdict: paired, honest about chance, and right when the truth is known."""

from __future__ import annotations

import random

import numpy as np
import pytest

from distill.evaluation import Interval, Resampler, interval, judge, sentence, task_score
from distill.tasks import Answer


def answers(count: int, accuracy: float, seed: int) -> list[Answer]:
    """RTE answers that are right with a given probability."""
    draw = random.Random(seed)
    made = []
    for i in range(count):
        gold = i % 2
        said = gold if draw.random() < accuracy else 1 - gold
        made.append(Answer(id=str(i), group=str(i), gold=gold, logits=(1.0 - said, float(said))))
    return made


def test_equal_models_get_no_gain_with_an_interval_of_zero():
    same = {"rte": [answers(200, 0.7, 1), answers(200, 0.7, 2)]}
    verdict = judge(same, same)
    assert verdict["gain"] == 0
    assert verdict["ci95"] == [0, 0]
    assert verdict["significant"] is False
    assert verdict["sentence"].startswith("No gain that can be told from chance")


def test_a_real_gain_is_found_and_a_real_loss_too():
    better = {"rte": [answers(400, 0.9, s) for s in range(3)]}
    worse = {"rte": [answers(400, 0.6, 10 + s) for s in range(3)]}
    up, down = judge(better, worse), judge(worse, better)
    assert up["significant"]
    assert up["sentence"].startswith("The teacher helped: +")
    assert down["significant"]
    assert down["sentence"].startswith("The teacher hurt: -")
    assert up["gain"] == pytest.approx(-down["gain"])


def test_chance_alone_is_called_a_gain_in_about_one_case_in_twenty():
    called = 0
    for trial in range(100):
        first = {"rte": [answers(150, 0.7, 1000 + 7 * trial)]}
        second = {"rte": [answers(150, 0.7, 50_000 + 7 * trial)]}
        called += judge(first, second)["significant"]
    assert called <= 12  # 5 expected; more than 12 has a probability below 0.2 %


def test_a_pair_that_differs_in_few_examples_has_a_narrow_interval():
    base = answers(300, 0.7, 3)
    flipped = [
        Answer(a.id, a.group, a.gold, (a.logits[1], a.logits[0])) if i < 6 else a for i, a in enumerate(base)
    ]
    paired = judge({"rte": [flipped]}, {"rte": [base]})
    unpaired = judge({"rte": [answers(300, 0.7, 4)]}, {"rte": [base]})

    def width(verdict):
        return verdict["ci95"][1] - verdict["ci95"][0]

    assert width(paired) < 0.4 * width(unpaired)


def test_the_bootstrap_resamples_whole_questions():
    """MultiRC's F1a and EM move together by question: resampled scores must be scores of resampled questions."""
    from distill.tasks import TASKS

    draw = random.Random(0)
    made = [
        Answer(f"0-{q}-{a}", f"0-{q}", draw.randrange(2), (draw.random(), draw.random()))
        for q in range(20)
        for a in range(4)
    ]
    resampler = Resampler({"multirc": 20}, 1, resamples=50, seed=1)
    scores = resampler.scores({"multirc": [made]})["multirc"]
    weights = resampler._draws["multirc"]
    groups = list(dict.fromkeys(answer.group for answer in made))
    for r in (0, 17, 49):
        chosen = []
        for copy in range(int(weights[r].max())):
            for group, times in zip(groups, weights[r], strict=True):
                if copy < times:
                    chosen += [
                        Answer(f"{a.id}#{copy}", f"{a.group}#{copy}", a.gold, a.logits)
                        for a in made
                        if a.group == group
                    ]
        metrics = TASKS["multirc"].score(chosen)
        assert scores[r] == pytest.approx(100 * np.mean([metrics["f1a"], metrics["em"]]), abs=1e-4)


def test_several_seeds_widen_the_interval_when_they_disagree():
    steady = {"rte": [answers(200, 0.75, 1)] * 3}
    torn = {"rte": [answers(200, 0.55, 1), answers(200, 0.75, 1), answers(200, 0.95, 1)]}
    base = {"rte": [answers(200, 0.7, 9)] * 3}

    def width(verdict):
        return verdict["ci95"][1] - verdict["ci95"][0]

    assert width(judge(torn, base)) > 1.3 * width(judge(steady, base))


@pytest.mark.parametrize("accuracies", [(0.6, 0.9), (0.5, 0.7, 0.9), (0.4, 0.5, 0.8, 0.8, 1.0)])
def test_resampled_means_vary_as_means_of_seeds_do(accuracies):
    """With so many examples that these say nothing more: the variance of a mean of S seeds, s² / S."""
    count = 20_000
    by_seed = [
        [Answer(str(i), str(i), 1, (0.0, 1.0) if i < accuracy * count else (1.0, 0.0)) for i in range(count)]
        for accuracy in accuracies
    ]
    resampler = Resampler({"rte": count}, len(accuracies), resamples=1000)
    found = resampler.scores({"rte": by_seed})["rte"]
    expected = np.var([100 * accuracy for accuracy in accuracies], ddof=1) / len(accuracies)
    assert np.mean(found) == pytest.approx(100 * np.mean(accuracies), abs=1)
    assert np.var(found) == pytest.approx(expected, rel=0.15)


def test_tasks_weigh_alike_whatever_their_size():
    student = {"rte": [answers(400, 0.9, 1)], "cb": [cb_answers(50, 0.5, 1)]}
    baseline = {"rte": [answers(400, 0.7, 2)], "cb": [cb_answers(50, 0.5, 1)]}
    verdict = judge(student, baseline)
    assert verdict["tasks"]["cb"]["gain"] == 0
    assert verdict["gain"] == pytest.approx(verdict["tasks"]["rte"]["gain"] / 2)


def cb_answers(count: int, accuracy: float, seed: int) -> list[Answer]:
    draw = random.Random(seed)
    made = []
    for i in range(count):
        gold = i % 3
        said = gold if draw.random() < accuracy else (gold + 1) % 3
        made.append(Answer(str(i), str(i), gold, tuple(float(said == c) for c in range(3))))
    return made


def test_a_task_score_is_the_mean_of_its_metrics_in_points():
    made = cb_answers(90, 0.6, 5)
    from distill.tasks import TASKS

    metrics = TASKS["cb"].score(made)
    assert task_score("cb", made) == pytest.approx(50 * (metrics["accuracy"] + metrics["macro_f1"]))


def test_the_sentence_says_what_the_interval_covers():
    assert "one seed" in sentence(Interval(1.0, -1.0, 3.0), 1)
    assert "3 seeds" in sentence(Interval(1.0, 0.5, 3.0), 3)
    assert interval(2.0, np.linspace(-10, 10, 1001)).low == pytest.approx(-9.5)
