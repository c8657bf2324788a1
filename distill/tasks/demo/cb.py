"""Is the speaker committed to the hypothesis, to its opposite, or to neither?

The verb that embeds a clause settles its truth (knows), its falsehood (wrongly believes) or nothing (hopes);
the clause and the hypothesis may each be negated, so no word tells entailment from contradiction.
"""

from typing import Any

from .world import THINGS, Cast

TRUE = ("knows", "noticed", "remembers", "is glad", "was surprised")
FALSE = ("wrongly believes", "pretends", "falsely claims")
OPEN = ("hopes", "thinks", "suspects", "was told", "guesses")
VERBS = {
    "sold": "sell",
    "broke": "break",
    "bought": "buy",
    "lost": "lose",
    "found": "find",
    "painted": "paint",
}
LABELS = ("entailment", "contradiction", "neutral")


def rows(cast: Cast, count: int) -> list[dict[str, Any]]:
    """Rows in the official layout, the three labels in turn.

    Half of the neutral rows come from a verb that leaves the clause open, half from a hypothesis about another
    person or thing, so that a neutral row has the verbs of the other two labels as often as not.
    """
    made = []
    for number in range(count):
        label = LABELS[number % 3]
        holder, doer = cast.persons(2)
        thing, other = cast.random.sample(THINGS, 2)
        past = cast.random.choice(list(VERBS))
        clause_true = cast.random.random() < 0.5
        opened = label == "neutral" and number % 2 == 0
        factive = cast.random.random() < 0.85
        attitude = cast.random.choice(OPEN if opened else TRUE if factive else FALSE)
        clause = sentence(doer, past, thing, clause_true)
        if label == "neutral":
            stated = cast.random.random() < 0.5
        else:
            stated = clause_true == (factive == (label == "entailment"))
        hypothesis = sentence(doer, past, other if label == "neutral" and not opened else thing, stated)
        made.append(
            {
                "premise": f"{holder} {attitude} that {clause}.",
                "hypothesis": hypothesis + ".",
                "label": label,
            }
        )
    return made


def sentence(name: str, past: str, thing: str, positive: bool) -> str:
    """Somebody did, or did not do, something to a thing."""
    return f"{name} {past} the {thing}" if positive else f"{name} did not {VERBS[past]} the {thing}"
