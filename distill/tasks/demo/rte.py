"""Does the hypothesis follow? Did it happen, in whatever words, and to the same thing?"""

from typing import Any

from .world import CITIES, THINGS, Cast

VERBS = (
    ("sell", "sold", "sold"),
    ("break", "broke", "broken"),
    ("buy", "bought", "bought"),
    ("lose", "lost", "lost"),
    ("find", "found", "found"),
    ("paint", "painted", "painted"),
    ("hide", "hid", "hidden"),
    ("repair", "repaired", "repaired"),
)
HAPPENED = (
    "{name} {past} the {thing}",
    "{name} managed to {verb} the {thing}",
    "{name} remembered to {verb} the {thing}",
    "the {thing} was {participle} by {name}",
)
DID_NOT_HAPPEN = (
    "{name} did not {verb} the {thing}",
    "{name} failed to {verb} the {thing}",
    "{name} forgot to {verb} the {thing}",
    "the {thing} was not {participle} by {name}",
)

# How often both sentences are in the plainest form, so that only the negation and the words are to be compared.
SHARE_PLAIN = 0.5


def rows(cast: Cast, count: int) -> list[dict[str, Any]]:
    """Rows in the official layout; a third of those not entailed is about another thing."""
    made = []
    for number in range(count):
        entailed = number % 2 == 0
        name = cast.person()
        verb, past, participle = cast.random.choice(VERBS)
        thing, other = cast.random.sample(THINGS, 2)
        happened = cast.random.random() < 0.5
        elsewhere = not entailed and number % 3 == 0
        agree = entailed or elsewhere
        words = {"name": name, "verb": verb, "past": past, "participle": participle}
        forms, others = (HAPPENED, DID_NOT_HAPPEN) if happened else (DID_NOT_HAPPEN, HAPPENED)
        if cast.random.random() < SHARE_PLAIN:
            told, claimed = forms[0], (forms if agree else others)[0]
        else:
            told = cast.random.choice(forms)
            claimed = cast.random.choice([form for form in (forms if agree else others) if form != told])
        place = cast.random.choice(CITIES)
        premise = told.format(thing=thing, **words)
        premise = f"in {place}, {premise}" if number % 4 < 2 else f"{premise} in {place}"
        hypothesis = claimed.format(thing=other if elsewhere else thing, **words)
        made.append(
            {
                "premise": f"{premise[0].upper()}{premise[1:]}.",
                "hypothesis": f"{hypothesis[0].upper()}{hypothesis[1:]}.",
                "label": "entailment" if entailed else "not_entailment",
            }
        )
    return made
