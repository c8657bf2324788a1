"""Which of the answers does the paragraph support? Lists to be gathered from two sentences."""

from typing import Any

from .world import ANIMALS, CITIES, THINGS, Cast

PARAGRAPHS = (
    "{name} keeps a {0} and a {1} and bought a {3} and a {4}.",
    "{name} keeps a {0} and a {1}. In {2} {name} bought a {3} and a {4}.",
    "In {2} {name} bought a {3} and a {4}. At home {name} keeps a {0} and a {1}.",
)
QUESTIONS = {"animals": "Which animals does {name} keep?", "things": "What did {name} buy?"}


def rows(cast: Cast, count: int) -> list[dict[str, Any]]:
    """Rows in the official layout, `count` questions in all, two to a paragraph.

    An answer to deny is either something of the asked kind that the paragraph does not name, or something that
    it names for the other question.
    """
    made = []
    asked = answered = 0
    for number in range(count // 2):
        person = cast.person()
        animals, things = cast.random.sample(ANIMALS, 4), cast.random.sample(THINGS, 4)
        text = cast.random.choice(PARAGRAPHS).format(
            *animals[:2], cast.random.choice(CITIES), *things[:2], name=person
        )
        questions = []
        for kind, own, foreign in (("animals", animals, things), ("things", things, animals)):
            wrong = own[2:3] + cast.random.sample(own[3:] + foreign[:1], 1)
            options = [(answer, 1) for answer in own[: cast.random.choice((1, 2))]]
            options += [(answer, 0) for answer in wrong[: 3 - len(options)]]
            cast.random.shuffle(options)
            answers = []
            for answer, label in options:
                answers.append({"text": f"a {answer}", "idx": answered, "label": label})
                answered += 1
            questions.append(
                {"question": QUESTIONS[kind].format(name=person), "idx": asked, "answers": answers}
            )
            asked += 1
        made.append({"idx": number, "version": 1.1, "passage": {"text": text, "questions": questions}})
    return made
