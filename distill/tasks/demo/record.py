"""Who did it? Everybody and every place named in the passage is a candidate; the query puts the deed in other words."""

from typing import Any

from .world import CITIES, Cast

# A deed as the passage may tell it, active or passive, and as a query may ask about it.
DEEDS = (
    (
        "{a} stole the {x}.",
        "The {x} was stolen by {a}.",
        ("The thief of the {x} is @placeholder.", "@placeholder stole the {x}."),
    ),
    (
        "{a} repaired the {x}.",
        "The {x} was repaired by {a}.",
        ("@placeholder repaired the {x}.", "Thanks to @placeholder the {x} works again."),
    ),
    (
        "{a} broke the {x}.",
        "The {x} was broken by {a}.",
        ("@placeholder broke the {x}.", "It was @placeholder who broke the {x}."),
    ),
    (
        "{a} bought the {x}.",
        "The {x} was bought by {a}.",
        ("@placeholder bought the {x}.", "The {x} belongs to @placeholder now."),
    ),
    (
        "{a} found the {x}.",
        "The {x} was found by {a}.",
        ("@placeholder found the {x}.", "The finder of the {x} is @placeholder."),
    ),
)
ELSEWHERE = (
    "{b} was asleep in {c}.",
    "{b} stayed at home in {c}.",
    "{b} was on holiday in {c}.",
    "In {c}, {b} knew nothing.",
)


def rows(cast: Cast, count: int) -> list[dict[str, Any]]:
    """Rows in the official layout, one query each."""
    made = []
    for number in range(count):
        doer, other = (person.name for person in cast.persons(2))
        thing, city = cast.random.choice(cast.things), cast.random.choice(CITIES)
        *told, queries = cast.random.choice(DEEDS)
        story = [cast.random.choice(told), cast.random.choice(ELSEWHERE)]
        cast.random.shuffle(story)
        text = "\n@highlight\n".join(story).format(a=doer, b=other, c=city, x=thing)
        spans = sorted((text.index(name), name) for name in (doer, other, city))
        made.append(
            {
                "source": "demo",
                "passage": {
                    "text": text,
                    "entities": [{"start": start, "end": start + len(name) - 1} for start, name in spans],
                },
                "qas": [
                    {
                        "query": cast.random.choice(queries).format(x=thing),
                        "idx": number,
                        "answers": [
                            {"start": start, "end": start + len(name) - 1, "text": name}
                            for start, name in spans
                            if name == doer
                        ],
                    }
                ],
            }
        )
    return made
