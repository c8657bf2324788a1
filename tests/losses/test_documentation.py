"""Docstrings say what a user must know, their examples run, and the table lists every loss."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import distill.losses
from distill.losses import Loss

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(distill.losses.__path__, prefix="distill.losses.")
)
EXPORTED = {
    name: thing
    for name in distill.losses.__all__
    if isinstance(thing := getattr(distill.losses, name), type)
    and issubclass(thing, Loss)
    and thing is not Loss
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    if name.rpartition(".")[2].startswith("triton_"):
        pytest.importorskip("triton", minversion="3.3", reason="no Triton, or an old one")
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


@pytest.mark.parametrize("name", EXPORTED)
def test_every_loss_documents_paper_shapes_units_raises_relations_and_an_example(name):
    text = EXPORTED[name].__doc__
    for heading in ("Paper:", "Shapes:", "Units:", "Raises:", "Relations:", "Example:"):
        assert re.search(rf"^    {heading}", text, flags=re.MULTILINE), f"{name} has no {heading}"
    assert re.search(r"arXiv:\d{4}\.\d{5}", text)
    assert ">>> " in text


def test_the_readmes_table_lists_exactly_the_exported_losses():
    readme = (Path(distill.losses.__path__[0]) / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\|[^|]*\| `(\w+)` \|", readme, flags=re.MULTILINE)
    assert sorted(listed) == sorted(EXPORTED)
    assert len(listed) == len(set(listed))


def test_the_union_of_recipe_losses_is_every_exported_loss():
    from typing import get_args

    assert set(get_args(distill.losses.AnyLoss)) == set(EXPORTED.values())
