"""The laws on functions of logits: our losses obey all that can be stated, published mistakes break a named one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from distill.losses.conformance import Conformance, conformance
from torch import Tensor

from distill.errors import LossError
from distill.losses import ForwardKL, JensenShannon, Labels, ReverseKL, Rows, Sinkhorn


def as_function(loss, *, per_row: bool = False):
    """A loss of ours as what other libraries offer: logits and a mask in, one number out."""

    def function(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        flat = student.reshape(-1, student.shape[-1])
        rows = Rows(
            student=flat,
            teacher=teacher.reshape(flat.shape),
            weight=None if mask is None else mask.reshape(-1),
        )
        return loss(rows) if per_row else rows.mean(loss(rows))

    return function


def verdicts(result: Conformance, verdict: str) -> set[str]:
    return {finding.law for finding in result.findings if finding.verdict == verdict}


@pytest.mark.parametrize("per_row", [False, True], ids=["one_number", "values"])
@pytest.mark.parametrize(
    "loss", [ForwardKL(), ReverseKL(temperature=2.0), JensenShannon(), JensenShannon(beta=0.1)], ids=repr
)
def test_our_losses_obey_every_law_as_plain_functions(loss, per_row):
    result = conformance(as_function(loss, per_row=per_row))
    assert result.obeyed, result.as_text()
    excused = {"bounded", "weight_counts_rows", "temperature", "padded_vocabulary"}
    assert verdicts(result, "not stated") == excused | (set() if per_row else {"one_value_a_row"})
    assert result.count("obeyed") >= 22
    assert result.computes_in == "float64"


@pytest.mark.parametrize("loss", [ForwardKL, ReverseKL, JensenShannon, Labels, Sinkhorn])
def test_our_losses_obey_the_laws_they_claim(loss):
    result = conformance(f"distill.losses:{loss.__name__}")
    assert result.obeyed, result.as_text()
    assert result.count("obeyed") >= 15


# Mistakes that published losses make, each beside the law that names it.


def shared(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The sound part: ForwardKL's values, and the student's log-probabilities."""
    values = as_function(ForwardKL(), per_row=True)(student, teacher)
    return values, student.log_softmax(-1)


def divided_by_the_vocabulary(student, teacher):
    return shared(student, teacher)[0].mean() / student.shape[-1]


def softmax_over_the_batch(student, teacher):
    p, q = teacher.detach().log_softmax(0), student.log_softmax(0)
    return (p.exp() * (p - q)).sum(-1).mean()


def softmax_over_positions(student, teacher):
    # Over axis 1 of (B, T, V) logits, as for (N, V) logits it would be right.
    p, q = teacher.detach().log_softmax(1), student.log_softmax(1)
    return (p.exp() * (p - q)).sum(-1).mean()


def cross_entropy_called_kl(student, teacher):
    return -(teacher.detach().softmax(-1) * student.log_softmax(-1)).sum(-1).mean()


def batchmean_over_tokens(student, teacher):
    return shared(student, teacher)[0].sum() / len(student)


def summed(student, teacher):
    return shared(student, teacher)[0].sum()


def detached_student(student, teacher):
    return shared(student.detach(), teacher)[0].mean()


def no_gradient_through_the_mixture(student, teacher):
    p, q = teacher.detach().log_softmax(-1), student.log_softmax(-1)
    return (q.exp().detach() * (q - p)).sum(-1).mean()


def padded_with_logit_0(student, teacher):
    student = F.pad(student, (0, teacher.shape[-1] - student.shape[-1]))
    return shared(student, teacher)[0].mean()


def both_padded_with_logit_0(student, teacher):
    return shared(F.pad(student, (0, 2)), F.pad(teacher, (0, 2)))[0].mean()


def mask_ignored(student, teacher, mask):
    return shared(student, teacher)[0].mean()


def mask_shifted_by_one(student, teacher, mask):
    values = shared(student, teacher)[0]
    kept = mask.reshape(-1).roll(1)
    return (values * kept).sum() / kept.sum().clamp(min=1)


def masked_but_divided_by_all(student, teacher, labels):
    return (shared(student, teacher)[0] * (labels.reshape(-1) != -100)).mean()


def constant_when_all_masked(student, teacher, labels):
    kept = labels.reshape(-1) != -100
    if not bool(kept.any()):
        return torch.tensor(0.0)
    return (shared(student, teacher)[0] * kept).sum() / kept.sum()


def trained_teacher(student, teacher):
    return (teacher.softmax(-1) * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum(-1).mean()


def temperature_on_one_side(student, teacher, temperature=1.0):
    return shared(student / temperature, teacher)[0].mean()


def temperature_on_probabilities(student, teacher, temperature=1.0):
    return shared(student.softmax(-1) / temperature, teacher.softmax(-1) / temperature)[0].mean()


def softmax_in_half_precision(student, teacher):
    p, q = teacher.detach().log_softmax(-1), student.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


def swallowed_nan(student, teacher):
    return shared(student, teacher)[0].nan_to_num(0.0).mean()


def noisy(student, teacher):
    return shared(student + 0.1 * torch.randn_like(student), teacher)[0].mean()


def overwriting(student, teacher):
    value = shared(student, teacher)[0].mean()
    with torch.no_grad():
        teacher.data.sub_(1.0)
    return value


MISTAKES = [
    (divided_by_the_vocabulary, "unused_class"),
    (divided_by_the_vocabulary, "impossible_class"),
    (softmax_over_the_batch, "shift_invariance"),
    (softmax_over_the_batch, "split_invariance"),
    (softmax_over_positions, "sequences_are_rows"),
    (cross_entropy_called_kl, "zero_at_equality"),
    (batchmean_over_tokens, "sequences_are_rows"),
    (summed, "split_invariance"),
    (detached_student, "gradient_is_the_slope"),
    (no_gradient_through_the_mixture, "gradient_is_the_slope"),
    (padded_with_logit_0, "padded_vocabulary"),
    (both_padded_with_logit_0, "shift_invariance"),
    (mask_ignored, "masked_rows"),
    (mask_shifted_by_one, "masked_rows"),
    (masked_but_divided_by_all, "masked_rows"),
    (constant_when_all_masked, "all_masked"),
    (trained_teacher, "teacher_gets_no_gradient"),
    (temperature_on_one_side, "temperature"),
    (temperature_on_probabilities, "temperature"),
    (softmax_in_half_precision, "half_precision"),
    (swallowed_nan, "nan_shows"),
    (noisy, "repeatable"),
    (overwriting, "leaves_its_inputs"),
]


@pytest.mark.parametrize(("mistaken", "law"), MISTAKES, ids=lambda part: getattr(part, "__name__", part))
def test_a_published_mistake_breaks_a_named_law(mistaken, law):
    result = conformance(mistaken)
    assert law in verdicts(result, "broken"), result.as_text()
    assert not result.obeyed


def test_the_sound_part_of_the_mistakes_obeys_everything():
    def sound(student, teacher, mask, temperature=1.0):
        return as_function(ForwardKL(temperature=temperature))(student, teacher, mask)

    result = conformance(sound)
    assert result.obeyed, result.as_text()
    assert {law for _, law in MISTAKES} - verdicts(result, "obeyed") == {"padded_vocabulary"}


@pytest.mark.parametrize("power", [0, 2])
def test_a_temperature_may_bring_its_square_or_not(power):
    def hot(student, teacher, temperature=1.0):
        return temperature**power * as_function(ForwardKL(temperature=temperature))(student, teacher)

    assert "temperature" in verdicts(conformance(hot), "obeyed")


def test_a_loss_that_computes_in_float32_is_held_to_float32s_digits():
    def widened(student, teacher):
        return as_function(ForwardKL())(student.float(), teacher.float())

    result = conformance(widened)
    assert result.computes_in == "float32"
    assert result.obeyed, result.as_text()


def test_float32_does_not_excuse_a_wrong_gradient():
    def widened(student, teacher):
        return no_gradient_through_the_mixture(student.float(), teacher.float())

    result = conformance(widened)
    assert result.computes_in == "float32"
    assert "gradient_is_the_slope" in verdicts(result, "broken")


def test_the_teacher_comes_first_where_the_parameters_say_so():
    def turned(teacher_logits, student_logits):
        return as_function(ReverseKL())(student_logits, teacher_logits)

    result = conformance(turned)
    assert result.called == "(teacher, student) on (N, V) logits"
    assert result.obeyed, result.as_text()


def test_a_loss_of_sequences_alone_is_given_sequences():
    def sequences(student, teacher):
        batch, positions, classes = student.shape
        return as_function(ForwardKL())(student.reshape(batch * positions, classes), teacher)

    result = conformance(sequences)
    assert result.called == "(student, teacher) on (1, N, V) logits"
    assert result.obeyed, result.as_text()


def test_a_module_is_called_like_a_function_and_a_class_is_made_first():
    class Module(torch.nn.Module):
        def forward(self, student, teacher, labels):
            return as_function(ForwardKL())(student, teacher, labels != -100)

    for named in (Module(), Module):
        result = conformance(named)
        assert "labels=" in result.called
        assert result.obeyed, result.as_text()


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("no_such_module_at_all:loss", "cannot be imported"),
        ("torch.nn.functional:no_such_loss", "has no no_such_loss"),
        ("torch.nn.functional", "expected package.module:callable"),
        ("torch:__version__", "cannot be called"),
        ("distill.losses:HiddenStates", "these laws are about logits"),
        (lambda student: student.sum(), "cannot be called on"),
        (lambda student, teacher: (student.sum(), teacher.sum()), "got tuple"),
        (lambda student, teacher: student - teacher, "one number or one value a row"),
        (type("NeedsMore", (), {"__init__": lambda self, size: None}), "without arguments"),
    ],
)
def test_what_is_no_loss_is_refused_in_one_line(named, says):
    with pytest.raises(LossError, match=says) as caught:
        conformance(named)
    assert "\n" not in str(caught.value)


def test_the_table_is_the_findings():
    result = conformance(cross_entropy_called_kl)
    plain = result.as_dict()
    assert plain["broken"] == result.count("broken") > 0
    assert [law["law"] for law in plain["laws"]] == [finding.law for finding in result.findings]
    text = result.as_text()
    assert all(finding.law in text for finding in result.findings)
    (found,) = (finding.found for finding in result.findings if finding.law == "zero_at_equality")
    # The entropy of the teacher of one batch: the number is in the table, not only the verdict.
    assert float(found.split("up to ")[1].split(",")[0]) > 0.5


def test_the_benchmark_runs_every_peer_or_says_why_not(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "conformance.py"
    done = subprocess.run(
        [sys.executable, str(script), "--json", str(tmp_path / "found.json")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    for peer in ("trl", "liger-kernel", "textbrewer", "torchtune", "nvidia-modelopt", "silverspoon-kd"):
        named = [name for name in (*found["losses"], *found["skipped"]) if name.split()[0] == peer]
        assert named
        assert all(name in done.stdout for name in named)
    (own,) = (result for name, result in found["losses"].items() if name.startswith("distill "))
    assert own["broken"] == 0
    assert own["obeyed"] >= 24
