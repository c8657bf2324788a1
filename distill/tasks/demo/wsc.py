"""Whom does the pronoun mean? Either of two people by its form, only one by what is said of them."""

from typing import Any

from .world import Cast

# Two roles that meet, what the first does to the second, and what is said of either afterwards.
MEETINGS = (
    (
        "doctor",
        "patient",
        "examined",
        ("had a stethoscope", "had studied medicine"),
        ("felt ill", "had a fever"),
    ),
    (
        "teacher",
        "pupil",
        "praised",
        ("gave good lessons", "taught the class"),
        ("had done the homework", "learned quickly"),
    ),
    (
        "cook",
        "guest",
        "served",
        ("had prepared the meal", "worked in the kitchen"),
        ("had ordered soup", "was hungry"),
    ),
    (
        "thief",
        "witness",
        "feared",
        ("had stolen the money", "wanted to escape"),
        ("had seen the crime", "wanted to tell the police"),
    ),
    (
        "singer",
        "listener",
        "greeted",
        ("had a beautiful voice", "was on the stage"),
        ("had bought a ticket", "clapped loudly"),
    ),
    (
        "pilot",
        "passenger",
        "calmed",
        ("flew the plane", "sat in the cockpit"),
        ("had booked a seat", "was afraid of flying"),
    ),
    (
        "judge",
        "prisoner",
        "freed",
        ("had read the law", "ruled the court"),
        ("had been locked up", "sat in a cell"),
    ),
    (
        "farmer",
        "buyer",
        "invited",
        ("grew the corn", "milked the cows"),
        ("paid for the eggs", "had come to the shop"),
    ),
    (
        "nurse",
        "baby",
        "watched",
        ("worked in the hospital", "wore a uniform"),
        ("cried for milk", "was just born"),
    ),
    (
        "barber",
        "customer",
        "called",
        ("held the scissors", "cut the hair"),
        ("had long hair", "wanted a haircut"),
    ),
    (
        "writer",
        "reader",
        "thanked",
        ("had finished the novel", "invented the story"),
        ("had bought the book", "enjoyed the book"),
    ),
    ("driver", "cyclist", "saw", ("stopped the car", "held the wheel"), ("rode a bicycle", "wore a helmet")),
    (
        "king",
        "servant",
        "paid",
        ("wore a crown", "ruled the country"),
        ("cleaned the rooms", "obeyed every order"),
    ),
    (
        "coach",
        "player",
        "trained",
        ("led the team", "planned the training"),
        ("scored a goal", "ran after the ball"),
    ),
    (
        "hunter",
        "guard",
        "met",
        ("shot a deer", "followed the tracks"),
        ("watched the gate", "protected the forest"),
    ),
    (
        "lawyer",
        "client",
        "advised",
        ("spoke in court", "knew every law"),
        ("had been sued", "needed legal help"),
    ),
)
FRAMES = (
    "{n} says the {a} {v} the {b} because {p} {r}.",
    "The {a} {v} the {b}, {n} says, because {p} {r}.",
    "At the house of {n} the {a} {v} the {b} because {p} {r}.",
)


def rows(cast: Cast, count: int) -> list[dict[str, Any]]:
    """Rows in the official layout."""
    made = []
    for number in range(count):
        label = number % 2 == 0
        person = cast.person()
        first, second, verb, *said = cast.random.choice(MEETINGS)
        about = cast.random.randrange(2)
        reason = cast.random.choice(said[about])
        asked = (first, second)[about if label else 1 - about]
        if cast.random.random() < 0.5:
            first, second = second, first
        pronoun = cast.random.choice(("he", "she"))
        text = cast.random.choice(FRAMES).format(
            n=person.name, a=first, b=second, v=verb, p=pronoun, r=reason
        )
        words = text.split()
        at = next(i for i, w in enumerate(words) if w.strip(",") == asked)
        made.append(
            {
                "text": text,
                "target": {
                    "span1_index": at,
                    "span1_text": asked,
                    "span2_index": words.index(pronoun),
                    "span2_text": pronoun,
                },
                "label": label,
            }
        )
    return made
