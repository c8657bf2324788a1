"""Whatever the file holds, reading it gives a Recipe or a RecipeError of whole lines, soon."""

import random
import statistics
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import RecipeError
from distill.recipe import Recipe, read_recipe, recipe_text, shipped_recipes, write_recipe

from .test_malformed import GOOD, MALFORMED

QUICK = {"deadline": None, "derandomize": True, "database": None}
SEEDS = [GOOD.encode()] + [
    text if isinstance(text, bytes) else text.encode() for _, text, _ in MALFORMED if len(text) < 2_000
]
PIECES = [
    b"[", b"]", b"{", b"}", b":", b": ", b"- ", b"\n", b"\n  ", b"\t", b"'", b'"', b"&a ", b"*a", b"!!", b"!x ", b"<<: ", b"? ",
    b"| ", b"> ", b"%", b"---\n", b"...\n", b"#", b"\\", b'"\\x', b"\0", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"1e-4", b"1e999",
    b"9" * 30, b"null", b"true", b"kind: ", b"loss:\n", b"per_task: {cb: {", b"from_teacher: ", b"\r", b"\xc2\x85", b"\xf0\x9f\x98\x80",
]  # fmt: skip


def check_problems(problems: list[str], path: Path) -> None:
    assert problems
    for problem in problems:
        assert problem.startswith((f"{path}:", "--set "))
        assert len(problem.splitlines()) == 1
        assert problem.isprintable()
        assert "different (" not in problem


def read_bytes(folder: Path, data: bytes, overrides: tuple[str, ...] = ()) -> float:
    """Read a recipe, check what comes of it, and say how long the reading took, in seconds of this process."""
    path = folder / "fuzz.yaml"
    path.write_bytes(data)
    start = time.process_time()
    try:
        recipe = read_recipe(path, overrides)
    except RecipeError as error:
        seconds = time.process_time() - start
        check_problems(error.problems, path)
    else:
        seconds = time.process_time() - start
        assert isinstance(recipe, Recipe)
        path.write_text(write_recipe(recipe), encoding="utf-8")
        assert read_recipe(path, check_surroundings=False) == recipe
    assert seconds < 2
    return seconds


@settings(max_examples=200, **QUICK)
@given(
    data=st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
def test_random_bytes_and_text_never_raise_anything_else(tmp_path_factory, data: bytes):
    read_bytes(tmp_path_factory.getbasetemp(), data)


@settings(max_examples=500, **QUICK)
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(PIECES) | st.binary(max_size=3)),
        min_size=1,
        max_size=4,
    ),
)
def test_mutated_recipes_never_raise_anything_else(
    tmp_path_factory, seed: bytes, edits: list[tuple[float, int, bytes]]
):
    for where, length, piece in edits:
        index = int(where * len(seed))
        seed = seed[:index] + piece + seed[index + length :]
    read_bytes(tmp_path_factory.getbasetemp(), seed)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["rte", "labels", "demo"]),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "kind",
                    "weight",
                    "layers",
                    "model",
                    "train",
                    "tasks",
                    "per_task",
                    "cb",
                    "max_steps",
                    "config",
                    "labels",
                    "0",
                ]
            ),
            inside,
            max_size=3,
        )
    ),
    max_leaves=8,
)


def as_yaml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {as_yaml(inside)}" for key, inside in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(as_yaml(inside) for inside in value) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@settings(max_examples=250, **QUICK)
@given(
    sections=st.dictionaries(
        st.sampled_from(
            ["name", "data", "teacher", "student", "loss", "train", "seeds", "baseline", "output", "cache"]
        ),
        values,
        min_size=1,
    )
)
def test_any_shape_of_values_never_raises_anything_else(tmp_path_factory, sections: dict[str, object]):
    text = "".join(f"{key}: {as_yaml(value)}\n" for key, value in sections.items())
    read_bytes(tmp_path_factory.getbasetemp(), text.encode("utf-8", "surrogatepass"))


@settings(max_examples=200, **QUICK)
@given(
    key=st.lists(
        st.sampled_from(
            ["train", "loss", "0", "1", "5", "weight", "teacher", "per_task", "cb", "name", "x", ""]
        ),
        max_size=4,
    ),
    value=st.text(max_size=10) | values.map(as_yaml),
)
def test_any_override_never_raises_anything_else(tmp_path_factory, key: list[str], value: str):
    read_bytes(tmp_path_factory.getbasetemp(), GOOD.encode(), (f"{'.'.join(key)}={value}",))


def mutated(draw: random.Random, texts: list[bytes]) -> bytes:
    """One of the texts with a few bytes flipped, cut, doubled, moved, or replaced by pieces of YAML or of another text."""
    text = bytearray(draw.choice(texts))
    for _ in range(draw.choice((1, 1, 2, 4, 8, 32))):
        start = draw.randrange(len(text) + 1)
        end = min(len(text), start + draw.choice((0, 1, 2, 8, 64)))
        kind = draw.randrange(7)
        if kind == 0 and end > start:
            text[start] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del text[start:end]
        elif kind == 2:
            text[start:start] = text[start:end] * draw.choice((1, 2, 50))
        elif kind == 3:
            text[start:end] = draw.choice(PIECES)
        elif kind == 4:
            text[start:end] = draw.randbytes(draw.choice((1, 2, 4)))
        elif kind == 5:
            moved = bytes(text[start:end])
            del text[start:end]
            place = draw.randrange(len(text) + 1)
            text[place:place] = moved
        else:
            other = draw.choice(texts)
            place = draw.randrange(len(other))
            text[start:end] = other[place : place + draw.choice((4, 32, 256))]
    return bytes(text)


def test_mutations_of_shipped_recipes_never_raise_anything_else(tmp_path: Path):
    mutate_shipped(tmp_path, 300, seed=0)


@pytest.mark.trust
@pytest.mark.parametrize("seed", range(1, 5))
def test_sixteen_thousand_mutations_of_shipped_recipes_never_raise_anything_else(tmp_path: Path, seed: int):
    mutate_shipped(tmp_path, 4_000, seed)


def mutate_shipped(folder: Path, count: int, seed: int) -> None:
    draw = random.Random(seed)
    texts = [recipe_text(name).encode() for name in shipped_recipes()]
    read = sum(len(text) for text in texts) / len(texts)
    seconds = [read_bytes(folder, mutated(draw, texts)) for _ in range(count)]
    # The slowest ones may be the garbage collector's or a busy machine's.
    assert statistics.median(seconds) < 0.05, f"recipes of some {read:.0f} bytes"
    assert statistics.quantiles(seconds, n=100)[-1] < 0.25


@pytest.mark.trust
@settings(max_examples=4_000, **QUICK)
@given(
    pieces=st.lists(
        st.sampled_from(PIECES)
        | st.sampled_from(SEEDS).map(lambda text: text[:80])
        | st.binary(max_size=8)
        | st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass")),
        max_size=12,
    )
)
def test_four_thousand_texts_of_pieces_never_raise_anything_else(tmp_path_factory, pieces: list[bytes]):
    read_bytes(tmp_path_factory.getbasetemp(), b"".join(pieces))
