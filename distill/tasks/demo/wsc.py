"""Whom does the pronoun mean? Both people could be meant: the reason that is given decides."""

from typing import Any

from .world import Cast

# The first reason is about the one who acts, the second about the other one.
EVENTS = (
    ("{a} lent {b} money because", ("was rich.", "was generous."), ("was poor.", "needed help.")),
    ("{a} apologised to {b} because", ("felt guilty.", "was sorry."), ("felt hurt.", "was angry.")),
    ("{a} carried {b} home because", ("was strong.", "was kind."), ("was tired.", "was injured.")),
    (
        "{a} taught {b} chess because",
        ("knew the game.", "was a good player."),
        ("wanted to learn.", "was a beginner."),
    ),
    ("{a} thanked {b} because", ("was grateful.", "was polite."), ("was helpful.", "had saved the day.")),
    ("{a} comforted {b} because", ("was kind.", "felt pity."), ("was crying.", "was sad.")),
    ("{a} robbed {b} because", ("was greedy.", "was a thief."), ("was rich.", "was an easy victim.")),
    ("{a} fed {b} because", ("was a good cook.", "was generous."), ("was hungry.", "was starving.")),
)


def rows(cast: Cast, count: int) -> list[dict[str, Any]]:
    """Rows in the official layout."""
    made = []
    for number in range(count):
        label = number % 2 == 0
        first, second = cast.namesakes(2)
        event, *reasons = cast.random.choice(EVENTS)
        about = cast.random.randrange(2)
        start = event.format(a=first.name, b=second.name)
        text = f"{start} {first.pronoun} {cast.random.choice(reasons[about])}"
        asked = (first, second)[about if label else 1 - about].name
        words = start.split()
        made.append(
            {
                "text": text,
                "target": {
                    "span1_index": words.index(asked),
                    "span1_text": asked,
                    "span2_index": len(words),
                    "span2_text": first.pronoun,
                },
                "label": label,
            }
        )
    return made
