"""recipes/schema.json is what the code says, so that editors complete what the reader takes."""

import json
from pathlib import Path
from typing import get_args

from distill.losses import AnyLoss
from distill.recipe.json_schema import json_schema

FILE = Path(__file__).parents[3] / "recipes" / "schema.json"
REGENERATE = "python -c 'from distill.recipe.json_schema import json_schema; print(json_schema(), end=\"\")' > recipes/schema.json"


def test_the_schema_in_the_repository_is_the_codes():
    # As JSON: versions of pydantic differ in the order of the keys and in 0 and 0.0.
    assert json.loads(FILE.read_text(encoding="utf-8")) == json.loads(json_schema()), (
        f"regenerate it: {REGENERATE}"
    )


def test_the_schema_explains_every_key_and_closes_every_mapping():
    schema = json.loads(json_schema())
    own = [
        schema,
        *(
            part
            for name, part in schema["$defs"].items()
            if name not in {loss.__name__ for loss in get_args(AnyLoss)}
        ),
    ]
    assert len(own) >= 6
    for part in (*own, *schema["$defs"].values()):
        assert part["additionalProperties"] is False
        assert part["description"]
    for part in own:
        for name, entry in part["properties"].items():
            assert entry.get("description"), name


def test_the_schema_requires_the_kind_of_each_loss():
    definitions = json.loads(json_schema())["$defs"]
    for loss in get_args(AnyLoss):
        assert "kind" in definitions[loss.__name__]["required"]
