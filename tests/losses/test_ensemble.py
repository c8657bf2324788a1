"""Several teachers become one, exactly."""

import math

import pytest
import torch

from distill.losses import Ensemble, ForwardKL, Rows


def three_teachers() -> list[torch.Tensor]:
    return list(4 * torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)).double())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_mean_of_probabilities_is_what_a_loss_of_that_temperature_sees(temperature):
    teachers, weights = three_teachers(), (1.0, 0.0, 3.0)
    logits = Ensemble(weights=weights, temperature=temperature)(teachers)
    expected = sum(w / 4 * (z / temperature).softmax(-1) for w, z in zip(weights, teachers, strict=True))
    torch.testing.assert_close((logits / temperature).softmax(-1), expected, rtol=1e-12, atol=0)


def test_the_mean_of_logits_is_their_mean():
    teachers = three_teachers()
    torch.testing.assert_close(Ensemble(of="logits")(teachers), sum(teachers) / 3, rtol=1e-14, atol=1e-14)
    weighted = Ensemble(of="logits", weights=(1, 1, 2))(teachers)
    torch.testing.assert_close(
        weighted, (teachers[0] + teachers[1] + 2 * teachers[2]) / 4, rtol=1e-14, atol=1e-14
    )


@pytest.mark.parametrize("of", ["probabilities", "logits"])
def test_one_teacher_or_equal_ones_are_that_teacher(of):
    teacher, student = three_teachers()[:2]
    expected = ForwardKL()(Rows(student=student, teacher=teacher))
    for teachers in ([teacher], [teacher] * 3):
        values = ForwardKL()(Rows(student=student, teacher=Ensemble(of=of)(teachers)))
        torch.testing.assert_close(values, expected, rtol=1e-12, atol=0)


def test_wild_and_impossible_logits_keep_their_meaning():
    sure = torch.tensor([[6e4, -torch.inf, -6e4]])
    other = torch.tensor([[-6e4, -torch.inf, 6e4]])
    mixed = Ensemble()([sure, other]).softmax(-1)
    torch.testing.assert_close(mixed, torch.tensor([[0.5, 0.0, 0.5]]))
    assert bool((Ensemble(temperature=1e-3)([sure, other])[:, 1] == -torch.inf).all())
    # A teacher without weight is not asked.
    ignored = Ensemble(of="logits", weights=(1, 0))([torch.zeros(1, 3), sure])
    assert torch.equal(ignored, torch.zeros(1, 3))
    half = Ensemble()([sure.half(), other.bfloat16()])
    assert half.dtype == torch.float32
    assert not Ensemble()([torch.zeros(1, 3, requires_grad=True)]).requires_grad


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Ensemble(of="votes"), "of must be one of 'probabilities', 'logits', got 'votes'"),
        (lambda: Ensemble(weights=(1, -1)), r"weights\[1\] must be a finite number of at least 0, got -1"),
        (lambda: Ensemble(weights=(0, 0.0)), "weights must not all be 0"),
        (lambda: Ensemble(weights=(math.nan,)), r"weights\[0\] must be a finite number, got nan"),
        (lambda: Ensemble(temperature=0), "temperature must be a positive finite number, got 0"),
        (lambda: Ensemble()([]), "expected one teacher for each of the weights"),
        (lambda: Ensemble(weights=(1, 1))([torch.zeros(1, 2)]), r"each of the weights \(1, 1\), got 1"),
        (
            lambda: Ensemble()([torch.zeros(1, 2), torch.zeros(1, 3)]),
            r"logits of one shape, got \[\(1, 2\), \(1, 3\)\]",
        ),
    ],
)
def test_a_mistake_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
