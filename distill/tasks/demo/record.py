"""Where did it happen? The passage names several places; the query tells what was done at one of them."""

from typing import Any

from .world import CITIES, Cast

# A kind of place, and what one does there.
KINDS = {
    "Hospital": ("had a broken leg treated", "was seen by a doctor", "got an operation"),
    "Bakery": ("bought fresh bread", "ordered a warm cake", "ate a sweet bun"),
    "Airport": ("boarded a plane", "missed a flight", "waited for the pilot"),
    "School": ("learned to read", "took an exam", "listened to the teacher"),
    "Bank": ("opened an account", "took out a loan", "paid in some money"),
    "Zoo": ("fed the monkeys", "photographed a lion", "saw the elephants"),
    "Library": ("borrowed three novels", "returned a book", "looked up an old newspaper"),
    "Theatre": ("applauded the actors", "saw a new play", "forgot the lines on stage"),
}
TOLD = (
    "{a} went from the {0} to the {1}.\n@highlight\n{b} saw the {2}.",
    "{b} met {a} near the {0} and the {1}.\n@highlight\nThe {2} was closed, {a} says.",
    "{a} passed the {0}, the {1} and the {2}.\n@highlight\n{b} stayed at home.",
)
ASKED = ("{a} {deed} at the @placeholder.", "At the @placeholder {a} {deed}.")


def rows(cast: Cast, count: int) -> list[dict[str, Any]]:
    """Rows in the official layout, one query each."""
    made = []
    for number in range(count):
        person, other = cast.persons(2)
        cities, kinds = cast.random.sample(CITIES, 3), cast.random.sample(list(KINDS), 3)
        places = [f"{city} {kind}" for city, kind in zip(cities, kinds, strict=True)]
        asked = cast.random.randrange(3)
        text = cast.random.choice(TOLD).format(*places, a=person, b=other)
        spans = sorted((text.index(name), name) for name in (other, *places))
        entities = {name: {"start": start, "end": start + len(name) - 1} for start, name in spans}
        query = cast.random.choice(ASKED).format(a=person, deed=cast.random.choice(KINDS[kinds[asked]]))
        made.append(
            {
                "source": "demo",
                "passage": {"text": text, "entities": list(entities.values())},
                "qas": [
                    {
                        "query": query,
                        "idx": number,
                        "answers": [{**entities[places[asked]], "text": places[asked]}],
                    }
                ],
            }
        )
    return made
