"""However a batch is split into forward passes, its gradient is the whole batch's."""

from __future__ import annotations

import pytest

from distill.engine import Engine
from distill.errors import RecipeError
from distill.losses import ForwardKL, JensenShannon, Labels, ReverseKL, Sinkhorn
from distill.recipe import TrainRecipe

ADDITIVE = [
    0.5 * Labels() + 0.5 * ForwardKL(temperature=2.0),
    ReverseKL() + Labels(),
    JensenShannon(beta=0.3) + Labels(),
]


@pytest.mark.parametrize("loss", ADDITIVE, ids=["kl", "reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize(("micro", "accumulation"), [(4, 8), (8, 4), (1, 32)])
def test_a_split_batch_has_the_whole_batchs_gradient(
    new_student, gradient_of_one_batch, loss, micro, accumulation
):
    whole = gradient_of_one_batch(new_student(), loss, 32, 1)
    split = gradient_of_one_batch(new_student(), loss, micro, accumulation)
    assert whole.norm() > 1e-3
    assert (split - whole).abs().max() <= 1e-6 * max(1.0, float(whole.abs().max()))


def test_an_uneven_split_still_weighs_every_example_alike(new_student, gradient_of_one_batch):
    loss = 0.5 * Labels() + 0.5 * ForwardKL()
    whole = gradient_of_one_batch(new_student(), loss, 32, 1)
    uneven = gradient_of_one_batch(new_student(), loss, 20, 2)  # 20 + 12 examples
    assert (uneven - whole).abs().max() <= 1e-6


def test_sinkhorn_groups_survive_a_split_along_their_borders(new_student, gradient_of_one_batch):
    loss = Sinkhorn(group_size=8) + Labels()
    whole = gradient_of_one_batch(new_student(), loss, 32, 1)
    split = gradient_of_one_batch(new_student(), loss, 8, 4)
    assert (split - whole).abs().max() <= 1e-6


def test_a_split_through_a_sinkhorn_group_is_refused(new_student, teacher, features):
    train = TrainRecipe(per_device_train_batch_size=8, gradient_accumulation_steps=4)
    with pytest.raises(
        RecipeError, match=r"groups of 32 examples, but a forward pass holds 8 .* group would be cut"
    ):
        Engine(new_student(), Sinkhorn() + Labels(), features, train, teacher=teacher)


def test_a_loss_that_needs_a_teacher_says_so(new_student, features):
    with pytest.raises(RecipeError, match="no teacher was given"):
        Engine(new_student(), ForwardKL(), features, TrainRecipe())
