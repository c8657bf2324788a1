"""Whom does the pronoun mean? The one it agrees with in gender and number, wherever that one stands."""

from typing import Any

from .world import Cast

WHO = {
    "she": (
        *("queen", "girl", "waitress", "princess", "aunt", "mother", "actress", "lady", "nun", "sister"),
        *("daughter", "grandmother", "wife", "woman"),
    ),
    "he": (
        *("king", "boy", "waiter", "prince", "uncle", "father", "actor", "gentleman", "monk", "brother"),
        *("son", "grandfather", "husband", "man"),
    ),
    "they": (
        *("queens", "girls", "women", "kings", "boys", "men", "parents", "workers", "sisters", "brothers"),
        *("soldiers", "children", "friends", "twins"),
    ),
}
FRAMES = (
    "{name} saw the {first} {met} the {second} because {pronoun} {reason}.",
    "The {first} {met} the {second}, {name} says, because {pronoun} {reason}.",
    "In front of {name} the {first} {met} the {second} because {pronoun} {reason}.",
)
MEETINGS = ("greet", "follow", "thank", "visit", "call", "help")
REASONS = (
    "needed help",
    "had a question",
    "wanted to talk",
    "could not sleep",
    "had lost the way",
    "felt lonely",
)


def rows(cast: Cast, count: int) -> list[dict[str, Any]]:
    """Rows in the official layout; the pronoun fits one of the two people and never the other."""
    made = []
    for number in range(count):
        label = number % 2 == 0
        pronoun, unfit = cast.random.sample(list(WHO), 2)
        meant, other = cast.random.choice(WHO[pronoun]), cast.random.choice(WHO[unfit])
        frame, meeting = cast.random.choice(FRAMES), cast.random.choice(MEETINGS)
        first, second = cast.random.sample((meant, other), 2)
        words = frame.format(
            name=cast.person(),
            first=first,
            second=second,
            met=meeting if frame is FRAMES[0] else f"{meeting}ed",
            pronoun=pronoun,
            reason=cast.random.choice(REASONS),
        ).split()
        asked = meant if label else other
        at = next(number for number, word in enumerate(words) if word.strip(",") == asked)
        made.append(
            {
                "text": " ".join(words),
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
