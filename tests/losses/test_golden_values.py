"""Every loss against numbers that another implementation produced."""

import itertools

import pytest
import torch

from distill.losses import (
    TAID,
    AdaptiveKL,
    ForwardKL,
    GhostTokenKL,
    JensenShannon,
    Labels,
    MeanSquaredLogits,
    ReverseKL,
    Rows,
    Sinkhorn,
    SkewKL,
    SkewReverseKL,
    SortedTransport,
    TotalVariation,
)

GOLDEN = [
    (ForwardKL(), [0.427821, 0.144263, 0.594522, 0.117661]),
    (ForwardKL(temperature=2.0), [0.115269, 0.065149, 0.276384, 0.030557]),
    (ReverseKL(), [0.319500, 0.219720, 1.216784, 0.121273]),
    (JensenShannon(), [0.087706, 0.041659, 0.173721, 0.029436]),
    (JensenShannon(beta=0.1), [0.036445, 0.013293, 0.054615, 0.010568]),
    (JensenShannon(beta=0.9), [0.029150, 0.018297, 0.087277, 0.010821]),
    (SkewKL(skew=0.1), [0.311792, 0.122590, 0.502688, 0.094976]),
    (SkewReverseKL(skew=0.1), [0.266220, 0.153347, 0.663348, 0.096629]),
    (TotalVariation(), [0.373660, 0.209480, 0.486423, 0.222908]),
    (AdaptiveKL(head=0.5), [0.371092, 0.181992, 0.905653, 0.119467]),
    (GhostTokenKL(kept=1), [0.340848, 0.097503, 0.548882, 0.104215]),
    (Labels(), [0.169846, 0.551445, 0.798916, 1.098612]),
    (SortedTransport(), [0.747321, 0.418960, 0.972847, 0.445817]),
]


@pytest.mark.parametrize(("loss", "expected"), GOLDEN, ids=lambda part: str(part)[:60])
def test_each_row_has_its_golden_value(loss, expected, golden_rows):
    torch.testing.assert_close(loss(golden_rows), torch.tensor(expected).double(), rtol=0, atol=6e-7)


def test_taid_has_its_golden_value_once_the_targets_entropy_is_added(golden_rows):
    target = (0.6 * golden_rows.student + 0.4 * golden_rows.teacher).softmax(-1)
    entropy = torch.distributions.Categorical(probs=target).entropy()
    expected = torch.tensor([0.726293, 0.869546, 0.937614, 1.098612]).double()
    torch.testing.assert_close(TAID(t=0.4)(golden_rows) + entropy, expected, rtol=0, atol=6e-7)


def test_limits_are_the_losses_they_are_said_to_be(golden_rows):
    forward, reverse = ForwardKL()(golden_rows), ReverseKL()(golden_rows)
    for limit, expected in (
        (SkewKL(skew=0), forward),
        (SkewReverseKL(skew=0), reverse),
        (AdaptiveKL(head=1), forward),
        (TAID(t=1.0), forward),
        (GhostTokenKL(kept=3), forward),
        (GhostTokenKL(kept=1000), forward),
        (SkewKL(skew=1e-9), forward),
        (SkewReverseKL(skew=1e-9), reverse),
    ):
        torch.testing.assert_close(limit(golden_rows), expected, rtol=1e-6, atol=0)
    hot = ForwardKL(temperature=1e4, scale="temperature_squared")(golden_rows)
    torch.testing.assert_close(hot, MeanSquaredLogits()(golden_rows), rtol=1e-3, atol=0)


def test_merging_classes_never_adds_divergence(golden_rows):
    values = [GhostTokenKL(kept=kept)(golden_rows) for kept in (1, 2, 3)]
    for fewer, more in itertools.pairwise(values):
        assert bool((fewer <= more + 1e-12).all())


@pytest.mark.parametrize("solver", ["distill", "pot"])
def test_sinkhorn_has_its_golden_values(solver, golden_rows):
    plain, debiased = Sinkhorn(debias=False, solver=solver), Sinkhorn(solver=solver)
    mean = float(golden_rows.mean(plain(golden_rows)))
    assert mean == pytest.approx(0.436322, abs=6e-7)
    assert 4 * mean == pytest.approx(1.745289, abs=6e-7)  # the published code's number: marginals of 1
    assert float(golden_rows.mean(debiased(golden_rows))) == pytest.approx(0.419712, abs=6e-7)


def test_the_self_cost_of_the_teacher_has_its_golden_value(golden_rows):
    from dataclasses import replace

    alone = replace(golden_rows, student=golden_rows.teacher)
    assert float(alone.mean(Sinkhorn(debias=False)(alone))) == pytest.approx(0.007012, abs=6e-7)


def test_the_exact_assignment_has_its_golden_value(golden_rows):
    exact = Sinkhorn(solver="pot", epsilon=0, debias=False)
    assert float(golden_rows.mean(exact(golden_rows))) == pytest.approx(0.399301, abs=6e-7)


def test_temperature_squared_multiplies_by_the_square(golden_rows):
    plain = ForwardKL(temperature=3.0)(golden_rows)
    torch.testing.assert_close(
        ForwardKL(temperature=3.0, scale="temperature_squared")(golden_rows), 9 * plain, rtol=1e-14, atol=0
    )
    torch.testing.assert_close(
        ForwardKL(temperature=3.0, scale=0.5)(golden_rows), plain / 2, rtol=1e-14, atol=0
    )


def test_jensen_shannon_ends_in_the_two_kls_and_its_formula_in_nothing(golden_rows):
    forward, reverse = ForwardKL()(golden_rows), ReverseKL()(golden_rows)
    assert torch.equal(JensenShannon(beta=0)(golden_rows), forward)
    assert torch.equal(JensenShannon(beta=1)(golden_rows), reverse)
    nearly = 1e-7
    torch.testing.assert_close(JensenShannon(beta=nearly)(golden_rows) / nearly, forward, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        JensenShannon(beta=1 - nearly)(golden_rows) / nearly, reverse, rtol=1e-5, atol=0
    )


def test_forward_of_one_order_is_reverse_of_the_other(golden_rows):
    from dataclasses import replace

    swapped = replace(golden_rows, student=golden_rows.teacher, teacher=golden_rows.student)
    torch.testing.assert_close(ForwardKL()(swapped), ReverseKL()(golden_rows), rtol=1e-13, atol=0)
    torch.testing.assert_close(JensenShannon()(swapped), JensenShannon()(golden_rows), rtol=1e-13, atol=0)


def test_a_head_of_everything_is_everything_however_sums_are_rounded():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 50, 5000, generator=generator)
    rows = Rows(student=student, teacher=teacher)
    # Running sums of these float32 rows end above 1 as often as below.
    ends_N = teacher.softmax(-1).sort(descending=True).values.cumsum(-1)[:, -1]
    assert bool((ends_N > 1).any())
    assert torch.equal(AdaptiveKL(head=1)(rows), ForwardKL()(rows))
