"""Which sentence tells the cause, or the effect? Both are about the premise: one came before it, one after.

Every story is a chain of three events. The premise is the middle one, and the choices are the other two, so
that the right one depends on what is asked as well as on what brings about what.
"""

from typing import Any

from .world import Cast

STORIES = (
    ("{a} left the window open.", "The rain came into the room of {a}.", "{a} dried the floor."),
    ("{a} forgot to water the plants.", "The plants of {a} died.", "{a} threw the plants away."),
    ("{a} stayed up all night.", "{a} was very tired.", "{a} fell asleep at the desk."),
    ("{a} did not eat breakfast.", "{a} was very hungry.", "{a} ate a big lunch."),
    ("{a} ran for two hours.", "{a} became thirsty.", "{a} drank a bottle of water."),
    ("{a} ate spoiled fish.", "{a} felt sick.", "{a} went to see a doctor."),
    ("{a} studied hard for weeks.", "{a} passed the exam.", "{a} celebrated the good grade."),
    ("{a} drove too fast.", "{a} was stopped by the police.", "{a} paid a fine."),
    ("{a} dropped a glass.", "The glass of {a} broke.", "{a} swept up the pieces."),
    ("{a} worked hard all year.", "{a} got a raise.", "{a} bought a better car."),
    (
        "{a} walked in the snow without gloves.",
        "The hands of {a} were freezing.",
        "{a} warmed up by the fire.",
    ),
    ("{a} left the cake in the oven too long.", "The cake of {a} burned.", "{a} baked another cake."),
    ("{a} forgot the umbrella.", "{a} got wet in the rain.", "{a} put on dry clothes."),
    ("{a} touched a hot stove.", "{a} burned a finger.", "{a} put ice on the finger."),
    ("{a} left the gate open.", "The dog of {a} ran away.", "{a} searched the town for the dog."),
    ("{a} slipped on the ice.", "{a} broke a leg.", "{a} lay in hospital for a week."),
    ("{a} forgot to charge the phone.", "The phone of {a} went dead.", "{a} missed an important call."),
    ("{a} did not hear the alarm clock.", "{a} overslept.", "{a} was late for work."),
    ("{a} told a funny joke.", "The guests of {a} laughed.", "{a} was asked for another joke."),
    ("{a} left the bicycle unlocked.", "The bicycle of {a} was stolen.", "{a} had to walk home."),
    ("{a} bought a lottery ticket.", "{a} won a lot of money.", "{a} bought a house by the sea."),
    ("{a} sat in the sun too long.", "The skin of {a} was burned.", "{a} put cream on the skin."),
    ("{a} forgot to pay the bill.", "The lights of {a} were cut off.", "{a} had to use candles."),
    ("{a} planted seeds in spring.", "Flowers grew in the garden of {a}.", "{a} cut flowers for the table."),
)


def rows(cast: Cast, count: int) -> list[dict[str, Any]]:
    """Rows in the official layout."""
    made = []
    for number in range(count):
        name = cast.person()
        cause, premise, effect = (event.format(a=name) for event in cast.random.choice(STORIES))
        label = number % 2
        question = cast.random.choice(("cause", "effect"))
        right, wrong = (cause, effect) if question == "cause" else (effect, cause)
        choices = (right, wrong) if label == 0 else (wrong, right)
        made.append(
            {
                "premise": premise,
                "choice1": choices[0],
                "choice2": choices[1],
                "question": question,
                "label": label,
            }
        )
    return made
