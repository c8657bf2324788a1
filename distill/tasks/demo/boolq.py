"""Does the passage say so? Looks up one of the facts it states, which may be put in other words."""

from typing import Any

from .world import ANIMALS, CITIES, JOBS, THINGS, Cast

# What is said once and asked in the same words, and what takes two sentences or other words.
SHORT = {
    "job": "{name} is a {job} in {city}.",
    "city": "{name} lives in {city} and is a {job}.",
    "thing": "{name} owns a {thing} and a {animal}.",
    "animal": "{name} has a {animal} and a {thing}.",
}
OPENINGS = (
    "{name} is a {job} in {city}.",
    "{name} {work} in {city}.",
    "{name} lives in {city} and is a {job}.",
    "{name} lives in {city} and {work}.",
)
CONTINUATIONS = (
    "{name} owns a {thing} and a {animal}.",
    "{name} has a {animal} and a {thing} at home.",
)
QUESTIONS = {
    "job": ("is {name} a {job}", "does {name} work as a {job}"),
    "city": ("does {name} live in {city}", "is {name} at home in {city}"),
    "thing": ("does {name} own a {thing}", "does {name} have a {thing}"),
    "animal": ("does {name} own a {animal}", "does {name} have a {animal}"),
}
SHARE_SHORT = 0.5
VALUES = {"job": list(JOBS), "city": CITIES, "thing": THINGS, "animal": ANIMALS}


def rows(cast: Cast, count: int) -> list[dict[str, Any]]:
    """Rows in the official layout; in a row to deny, one fact of the question is replaced by one of its kind."""
    made = []
    for number in range(count):
        person = cast.person()
        said = {kind: cast.random.sample(values, 2) for kind, values in VALUES.items()}
        facts = {kind: values[0] for kind, values in said.items()}
        kind = cast.random.choice(list(QUESTIONS))
        if cast.random.random() < SHARE_SHORT:
            told = SHORT[kind]
        else:
            told = f"{cast.random.choice(OPENINGS)} {cast.random.choice(CONTINUATIONS)}"
        passage = told.format(name=person, work=JOBS[facts["job"]], **facts)
        label = number % 2 == 0
        asked = {"name": person, kind: said[kind][0 if label else 1]}
        question = cast.random.choice(QUESTIONS[kind]).format(**asked).lower()
        made.append({"question": question, "passage": passage, "label": label})
    return made
