"""The loss classes are the recipe's schema: pydantic validates them, and torch is not needed for it."""

import subprocess
import sys
import textwrap
from typing import Annotated

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from distill.losses import (
    TAID,
    AnyLoss,
    ForwardKL,
    GhostTokenKL,
    JensenShannon,
    Labels,
    MultiLevelTransport,
    ReverseKL,
    Sinkhorn,
    SkewKL,
    SortedTransport,
)

ADAPTER: TypeAdapter = TypeAdapter(Annotated[AnyLoss, Field(discriminator="kind")])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"kind": "forward_kl", "temperature": 2.0}, ForwardKL(temperature=2.0)),
        ({"kind": "forward_kl", "temperature": 2}, ForwardKL(temperature=2.0)),
        ({"kind": "reverse_kl", "scale": "temperature_squared"}, ReverseKL(scale="temperature_squared")),
        ({"kind": "reverse_kl", "scale": 4}, ReverseKL(scale=4.0)),
        ({"kind": "jensen_shannon", "beta": 0.1, "weight": 0.5}, JensenShannon(beta=0.1, weight=0.5)),
        ({"kind": "skew_kl", "skew": 0.2}, SkewKL(skew=0.2)),
        ({"kind": "ghost_token_kl", "kept": 8}, GhostTokenKL(kept=8)),
        ({"kind": "taid", "t": 0.5, "previous": None}, TAID(t=0.5)),
        ({"kind": "labels", "smoothing": 0.1}, Labels(smoothing=0.1)),
        ({"kind": "sinkhorn", "debias": False, "group_size": 16}, Sinkhorn(debias=False, group_size=16)),
        ({"kind": "sorted_transport", "kept": 256}, SortedTransport(kept=256)),
        ({"kind": "multi_level_transport", "sequence": 0}, MultiLevelTransport(sequence=0.0)),
        ({"kind": "sinkhorn", "memory": "low"}, Sinkhorn(memory="low")),
        ({"kind": "sinkhorn", "solver": "pot", "epsilon": 0}, Sinkhorn(solver="pot", epsilon=0.0)),
    ],
)
def test_a_recipes_dict_becomes_the_loss(written, meant):
    assert ADAPTER.validate_python(written) == meant
    assert ADAPTER.validate_python(ADAPTER.dump_python(meant)) == meant


@pytest.mark.parametrize(
    ("written", "place", "message"),
    [
        (
            {"kind": "forward_kl", "temprature": 2.0},
            ("forward_kl", "temprature"),
            "Unexpected keyword argument",
        ),
        ({"kind": "sinkhorn", "reach": 1}, ("sinkhorn", "reach"), "Unexpected keyword argument"),
        (
            {"kind": "forward_kl", "temperature": -1},
            ("forward_kl",),
            "temperature must be a positive finite number",
        ),
        (
            {"kind": "forward_kl", "weight": -1},
            ("forward_kl",),
            "weight must be a finite number of at least 0",
        ),
        ({"kind": "sinkhorn", "epsilon": 0}, ("sinkhorn",), "needs solver 'pot'"),
        ({"kind": "sinkhorn", "cost": "l2"}, ("sinkhorn", "cost"), "Input should be 'l1'"),
        ({"kind": "sinkhorn", "iterations": 2.5}, ("sinkhorn", "iterations"), "valid integer"),
        ({"kind": "kl"}, (), "'forward_kl'"),
        ({"temperature": 1.0}, (), "discriminator"),
    ],
)
def test_a_mistake_in_a_recipe_is_located(written, place, message):
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python(written)
    (error,) = caught.value.errors()
    assert error["loc"] == place
    assert message in error["msg"]


def test_the_schema_names_every_kind_and_field():
    schema = ADAPTER.json_schema()
    kinds = set(schema["discriminator"]["mapping"])
    assert kinds == {
        "adaptive_kl",
        "forward_kl",
        "ghost_token_kl",
        "jensen_shannon",
        "labels",
        "mean_squared_logits",
        "reverse_kl",
        "sampled_targets",
        "sinkhorn",
        "skew_kl",
        "skew_reverse_kl",
        "taid",
        "total_variation",
        "hidden_states",
        "attention_maps",
        "relations",
        "pkd",
        "dual_space",
        "sorted_transport",
        "multi_level_transport",
    }
    assert schema["$defs"]["ForwardKL"]["additionalProperties"] is False
    assert set(schema["$defs"]["Labels"]["properties"]) == {"kind", "weight", "smoothing"}


def test_importing_and_validating_losses_loads_no_torch(tmp_path):
    script = """
        import sys
        import distill.losses
        heavy = {"torch", "numpy", "pydantic", "transformers", "datasets", "ot", "geomloss", "accelerate"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        from typing import Annotated
        from pydantic import Field, TypeAdapter
        adapter = TypeAdapter(Annotated[distill.losses.AnyLoss, Field(discriminator="kind")])
        total = adapter.validate_python({"kind": "sinkhorn", "epsilon": 0.2}) + 0.5 * distill.losses.Labels()
        assert total.names == ("sinkhorn", "labels") and not total.additive
        heavy.discard("pydantic")
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    command = [sys.executable, "-P", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_computing_a_loss_loads_torch_and_nothing_else(tmp_path):
    script = """
        import sys
        import torch
        from distill.losses import ForwardKL, Rows, Sinkhorn
        rows = Rows(student=torch.eye(2), teacher=torch.ones(2, 2))
        rows.mean((ForwardKL() + Sinkhorn())(rows))
        heavy = {"pydantic", "transformers", "datasets", "ot", "geomloss", "accelerate"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    command = [sys.executable, "-P", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
