"""The laws on generated rows, and the laws on losses with known mistakes."""

import math
from dataclasses import replace

import pytest
import torch
from distill.losses.laws import LAWS, LawBroken, laws_of
from distill.losses.softmax import log_ratio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.losses import (
    TAID,
    AdaptiveKL,
    ForwardKL,
    GhostTokenKL,
    JensenShannon,
    Labels,
    MeanSquaredLogits,
    MultiLevelTransport,
    ReverseKL,
    Rows,
    SampledTargets,
    Sinkhorn,
    SkewKL,
    SkewReverseKL,
    SortedTransport,
    TotalVariation,
)

LOSSES = [
    ForwardKL(),
    ForwardKL(temperature=0.5, scale="temperature_squared"),
    ReverseKL(temperature=3.0),
    JensenShannon(),
    JensenShannon(beta=0.1, temperature=2.0),
    Labels(),
    Labels(smoothing=0.3),
    SkewKL(),
    SkewKL(skew=0.7, temperature=2.0, scale="temperature_squared"),
    SkewReverseKL(),
    TotalVariation(temperature=2.0),
    AdaptiveKL(),
    AdaptiveKL(head=0.9, temperature=0.5),
    TAID(),
    TAID(t=0.9, temperature=2.0),
    GhostTokenKL(kept=2),
    GhostTokenKL(kept=5, temperature=2.0),
    MeanSquaredLogits(),
    SampledTargets(samples=5),
    SampledTargets(samples=3, power=0.5, temperature=2.0),
    Sinkhorn(),
    Sinkhorn(debias=False, cost="squared_euclidean", iterations=5),
    Sinkhorn(cost="total_variation", epsilon=0.02),
    Sinkhorn(memory="low"),
    SortedTransport(),
    SortedTransport(kept=2, temperature=2.0),
    MultiLevelTransport(),
    MultiLevelTransport(kept=2, debias=False),
]
generated = settings(
    max_examples=100, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)


@st.composite
def ordinary_rows(draw) -> Rows:
    """Rows of random logits at many scales and in every precision, students near and far from their teachers."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows, classes = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    spread = draw(st.sampled_from([0.01, 1.0, 5.0, 30.0]))
    distance = draw(st.sampled_from([1e-3, 0.1, 1.0]))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    teacher = spread * torch.randn(rows, classes, generator=generator)
    student = (1 - distance) * teacher + distance * spread * torch.randn(rows, classes, generator=generator)
    weighted = draw(st.booleans())
    return Rows(
        student=student.to(dtype),
        teacher=teacher.to(dtype),
        label=torch.randint(classes, (rows,), generator=generator),
        weight=torch.rand(rows, generator=generator) + 0.1 if weighted else None,
        group=torch.randint(2, (rows,), generator=generator) if draw(st.booleans()) else None,
    )


def obeys(loss, cases: int) -> None:
    """One generated case after another, each under one of the laws that the loss claims."""
    laws = laws_of(loss)

    @settings(generated, max_examples=cases)
    @given(st.sampled_from(sorted(laws)), ordinary_rows())
    def holds(name: str, rows: Rows) -> None:
        laws[name](loss, rows)

    holds()


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_every_loss_obeys_the_laws_it_claims(loss):
    first_of_its_kind = loss is next(other for other in LOSSES if other.kind == loss.kind)
    obeys(loss, cases=300 if first_of_its_kind else 100)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_every_loss_obeys_the_laws_it_claims_in_many_cases(loss):
    obeys(loss, cases=3000 if loss.additive else 300)


@st.composite
def wild_rows(draw) -> Rows:
    """Rows of the numbers that break losses: ±6e4, ±3e38 (where they fit), −inf, ties."""
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows, classes = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    numbers = [-math.inf, -6e4, 6e4, -1.0, 0.0, 1e-6, 88.0, 1e3]
    if dtype != torch.float16:
        numbers += [-3e38, 3e38]

    def logits() -> torch.Tensor:
        chosen = torch.tensor(numbers)[torch.randint(len(numbers), (rows, classes), generator=generator)]
        chosen[:, 0] = chosen[:, 0].clamp(min=-6e4)  # one class, at least, must be possible
        return chosen.to(dtype)

    return Rows(
        student=logits(), teacher=logits(), label=torch.randint(classes, (rows,), generator=generator)
    )


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_wild_logits_give_finite_values_and_gradients(loss):
    # Below temperature 1 a true gradient can exceed float16's range, so logits there are widened first.
    @generated
    @given(st.sampled_from([1e-3, 1.0, 1e3]), wild_rows())
    def stays_finite(temperature: float, rows: Rows) -> None:
        tried = replace(loss, temperature=temperature, scale=1.0) if hasattr(loss, "scale") else loss
        if isinstance(loss, Sinkhorn | SortedTransport | MultiLevelTransport):
            tried = replace(loss, temperature=temperature)
        student = rows.student.float() if temperature < 1 else rows.student.clone()
        live = replace(rows, student=student.requires_grad_())
        live.check_finite()
        values = tried(live)
        live.mean(values).backward()
        assert bool(values.isfinite().all())
        assert bool(student.grad.isfinite().all())
        if loss.additive:
            assert bool((values >= 0).all())

    stays_finite()


# Mistakes that published losses have made, each written on the textbook KL.


def log_softmaxes(rows: Rows, axis: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
    return rows.teacher_logits().log_softmax(axis), rows.student_logits().log_softmax(axis)


def textbook_kl(rows: Rows) -> torch.Tensor:
    p, q = log_softmaxes(rows)
    return torch.where(p == -math.inf, 0.0, p.exp() * (p - q)).sum(-1)


def mean_over_the_vocabulary(rows: Rows) -> torch.Tensor:
    return ForwardKL()(rows) / rows.student.shape[1]


def softmax_over_rows(rows: Rows) -> torch.Tensor:
    p, q = log_softmaxes(rows, axis=0)
    return (p.exp() * (p - q)).sum(-1)


def cross_entropy_called_kl(rows: Rows) -> torch.Tensor:
    p, q = log_softmaxes(rows)
    return -(p.exp() * q).sum(-1)


def detached_student(rows: Rows) -> torch.Tensor:
    return ForwardKL()(replace(rows, student=rows.student.detach()))


def detached_weights_in_reverse_kl(rows: Rows) -> torch.Tensor:
    p, q = log_softmaxes(rows)
    return (q.exp().detach() * (q - p)).sum(-1)


def divided_by_the_batch(rows: Rows) -> torch.Tensor:
    return ForwardKL()(rows) / len(rows)


def reduced_by_itself(rows: Rows) -> torch.Tensor:
    return ForwardKL()(rows).mean()


def trained_teacher(rows: Rows) -> torch.Tensor:
    live = rows.teacher.float().log_softmax(-1)
    return (live.exp() * (live - rows.student.float().log_softmax(-1))).sum(-1)


def softmax_in_half_precision(rows: Rows) -> torch.Tensor:
    return textbook_kl(rows).to(torch.float32) if rows.student.dtype == torch.float64 else _half_kl(rows)


def _half_kl(rows: Rows) -> torch.Tensor:
    p, q = rows.teacher.log_softmax(-1), rows.student.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).float()


def mask_by_multiplying(rows: Rows) -> torch.Tensor:
    p, q = rows.teacher.log_softmax(-1), rows.student.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1) * (rows.weights > 0)


def swallowed_nan(rows: Rows) -> torch.Tensor:
    return ForwardKL()(rows).nan_to_num(0.0)


def infinite_reverse_kl(rows: Rows) -> torch.Tensor:
    p, q = log_softmaxes(rows)
    return (q.exp() * (q - p)).sum(-1)


def batchmean_over_tokens(rows: Rows) -> torch.Tensor:
    # One sequence: "batchmean" divides by the number of sequences and sums over tokens.
    summed = torch.nn.functional.kl_div(*log_softmaxes(rows)[::-1], reduction="sum", log_target=True)
    return summed.expand(len(rows))


def mask_of_the_next_token(rows: Rows) -> torch.Tensor:
    values = ForwardKL()(replace(rows, weight=None))
    return values.where(rows.weights.roll(-1) > 0, 0.0)


def padding_with_logit_0(rows: Rows) -> torch.Tensor:
    return ForwardKL()(replace(rows, student=rows.student.nan_to_num(nan=torch.nan, neginf=0.0)))


class GradientWithoutTemperature(ForwardKL):
    def scaled(self, values_N, slope_NV):
        return values_N, slope_NV


class GradientWithoutItsMean(ReverseKL):
    def compare(self, teacher, student):
        values_N, _ = super().compare(teacher, student)
        return values_N, student.probability_NV * sum(log_ratio(student, teacher))


class GradientOfTheOtherKL(ForwardKL):
    def compare(self, teacher, student):
        return super().compare(teacher, student)[0], ReverseKL().compare(teacher, student)[1]


MISTAKES = [
    (batchmean_over_tokens, "split_invariance"),
    (mask_of_the_next_token, "masked_rows"),
    (padding_with_logit_0, "impossible_class"),
    (GradientWithoutTemperature(temperature=2.0), "gradient_is_the_slope"),
    (GradientWithoutItsMean(), "gradient_is_the_slope"),
    (GradientOfTheOtherKL(), "gradient_is_the_slope"),
    (textbook_kl, "never_negative"),
    (mean_over_the_vocabulary, "impossible_class"),
    (softmax_over_rows, "shift_invariance"),
    (softmax_over_rows, "split_invariance"),
    (cross_entropy_called_kl, "zero_at_equality"),
    (detached_student, "gradient_is_the_slope"),
    (detached_weights_in_reverse_kl, "gradient_is_the_slope"),
    (divided_by_the_batch, "split_invariance"),
    (reduced_by_itself, "one_value_a_row"),
    (trained_teacher, "teacher_gets_no_gradient"),
    (softmax_in_half_precision, "half_precision"),
    (mask_by_multiplying, "masked_rows"),
    (swallowed_nan, "nan_shows"),
    (infinite_reverse_kl, "finite_at_extremes"),
]


def near_rows() -> Rows:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(50, 20, generator=generator)
    return Rows(
        student=teacher + 1e-5 * torch.randn(50, 20, generator=generator),
        teacher=teacher,
        label=torch.randint(20, (50,), generator=generator),
    )


def far_rows() -> Rows:
    generator = torch.Generator().manual_seed(1)
    student, teacher = 2 * torch.randn(2, 5, 4, generator=generator)
    return Rows(student=student, teacher=teacher, label=torch.randint(4, (5,), generator=generator))


@pytest.mark.parametrize(
    ("mistaken", "law"),
    MISTAKES,
    ids=lambda part: (
        getattr(part, "__name__", None) or (part if isinstance(part, str) else type(part).__name__)
    ),
)
def test_a_known_mistake_breaks_a_named_law(mistaken, law):
    rows = near_rows() if law == "never_negative" else far_rows()
    with pytest.raises(LawBroken):
        LAWS[law](mistaken, rows)
    LAWS[law](ForwardKL(), rows)


def test_each_law_is_broken_by_something():
    def sees_positions(rows: Rows) -> torch.Tensor:
        return ForwardKL()(rows) * torch.arange(1, len(rows) + 1)

    def sees_class_numbers(rows: Rows) -> torch.Tensor:
        return (rows.student_logits().softmax(-1) * torch.arange(rows.student.shape[1])).sum(-1)

    def counts_weights_twice(rows: Rows) -> torch.Tensor:
        return ForwardKL()(rows) * rows.weights

    class OverItsBound(ForwardKL):
        bound = 1e-3

    others = {
        "row_order": sees_positions,
        "relabelled_classes": sees_class_numbers,
        "weight_counts_rows": counts_weights_twice,
        "bounded": OverItsBound(),
    }
    for law, mistaken in others.items():
        with pytest.raises(LawBroken):
            LAWS[law](mistaken, far_rows())
    assert {law for _, law in MISTAKES} | set(others) == set(LAWS)


def test_losses_are_excused_only_from_what_they_do_not_claim():
    assert set(LAWS) - set(laws_of(ForwardKL())) == set()
    assert set(LAWS) - set(laws_of(Labels())) == {"zero_at_equality"}
    assert set(LAWS) - set(laws_of(Sinkhorn())) == {"split_invariance"}
    assert set(LAWS) - set(laws_of(Sinkhorn(debias=False))) == {"split_invariance", "zero_at_equality"}
    assert set(LAWS) - set(laws_of(TAID())) == {"gradient_is_the_slope"}
    assert set(LAWS) - set(laws_of(AdaptiveKL())) == {"gradient_is_the_slope"}
    assert {"never_negative", "finite_at_extremes", "nan_shows"} <= set(laws_of(SampledTargets())) < set(LAWS)
    for loss in (Sinkhorn(solver="pot"), Sinkhorn(gradient="envelope"), Sinkhorn(gradient="implicit")):
        assert set(LAWS) - set(laws_of(loss)) == {"split_invariance", "gradient_is_the_slope"}
    assert set(LAWS) - set(laws_of(SortedTransport(kept=3))) == set()
    assert set(LAWS) - set(laws_of(MultiLevelTransport())) == {"split_invariance"}
    assert laws_of(textbook_kl) == LAWS


@pytest.mark.parametrize(
    "loss",
    [
        Sinkhorn(solver="pot"),
        Sinkhorn(solver="pot", epsilon=0, debias=False),
        Sinkhorn(solver="geomloss", iterations=9),
        Sinkhorn(solver="geomloss", gradient="implicit", iterations=9),
        Sinkhorn(gradient="envelope"),
        Sinkhorn(gradient="implicit"),
    ],
    ids=repr,
)
def test_the_other_solvers_obey_the_laws_they_claim(loss):
    for law in laws_of(loss).values():
        law(loss, far_rows())
