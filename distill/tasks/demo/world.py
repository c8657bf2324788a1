"""The little world the demo tasks talk about, and one split's share of it.

Everybody in the world appears in one split only and every sentence names somebody, so training and validation share no
sentence. Jobs, things and places are the same in both: a task is about how they are put together. All words are common ones, so that most are a single piece for most tokenizers.
"""

from dataclasses import dataclass, field
from random import Random

PEOPLE = [
    "Anna",
    "Emma",
    "Julia",
    "Laura",
    "Sarah",
    "Maria",
    "Helen",
    "Alice",
    "Clara",
    "Lucy",
    "Nora",
    "Rosa",
    "Irene",
    "Martha",
    "Ruth",
    "Diana",
    "Elena",
    "Grace",
    "Jane",
    "Kate",
    "Lily",
    "Linda",
    "Mary",
    "Nancy",
    "Olivia",
    "Paula",
    "Rachel",
    "Sofia",
    "Susan",
    "Tina",
    "Vera",
    "Wendy",
    "Amy",
    "Betty",
    "Carol",
    "Ellen",
    "Eva",
    "Fiona",
    "Hannah",
    "Ida",
    "Jenny",
    "Karen",
    "Lisa",
    "Megan",
    "Nina",
    "Adam",
    "Ben",
    "Carl",
    "David",
    "Eric",
    "Frank",
    "George",
    "Henry",
    "Ivan",
    "Jack",
    "Karl",
    "Leo",
    "Martin",
    "Nick",
    "Oscar",
    "Paul",
    "Peter",
    "Ralph",
    "Sam",
    "Simon",
    "Thomas",
    "Victor",
    "Walter",
    "Alan",
    "Bruno",
    "Chris",
    "Daniel",
    "Edward",
    "Felix",
    "Gary",
    "Hugo",
    "Ian",
    "James",
    "Kevin",
    "Louis",
    "Neil",
    "Owen",
    "Philip",
    "Robert",
    "Steve",
    "Tony",
    "Max",
    "Tom",
    "Alex",
    "Jim",
]
CITIES = [
    "Athens",
    "Berlin",
    "Cairo",
    "Dublin",
    "Geneva",
    "Lisbon",
    "London",
    "Madrid",
    "Milan",
    "Moscow",
    "Oslo",
    "Paris",
    "Prague",
    "Rome",
    "Tokyo",
    "Vienna",
]
THINGS = [
    "basket",
    "bell",
    "bicycle",
    "boat",
    "camera",
    "carpet",
    "chair",
    "clock",
    "coat",
    "desk",
    "drum",
    "guitar",
    "hammer",
    "ladder",
    "lamp",
    "mirror",
    "piano",
    "ring",
    "table",
    "tent",
]
ANIMALS = [
    "bird",
    "camel",
    "cat",
    "cow",
    "dog",
    "donkey",
    "duck",
    "fox",
    "goat",
    "horse",
    "mouse",
    "parrot",
    "pig",
    "rabbit",
    "sheep",
    "snake",
]
JOBS = {
    "author": "writes novels",
    "baker": "bakes bread",
    "barber": "cuts hair",
    "builder": "builds houses",
    "dentist": "pulls teeth",
    "doctor": "treats the sick",
    "driver": "drives a bus",
    "farmer": "grows corn",
    "judge": "decides in court",
    "painter": "paints portraits",
    "pilot": "flies planes",
    "sailor": "works on a ship",
    "singer": "sings on stage",
    "soldier": "serves in the army",
    "tailor": "sews suits",
    "teacher": "teaches children",
}


@dataclass(frozen=True, slots=True)
class Cast:
    """Who may appear in a split, and the generator that decides what happens to them."""

    random: Random
    people: tuple[str, ...] = field(repr=False)

    @classmethod
    def of(cls, split: str, random: Random) -> "Cast":
        """The people of a split: every third one is kept for validation."""
        return cls(
            random,
            tuple(name for number, name in enumerate(PEOPLE) if (number % 3 == 0) == (split == "validation")),
        )

    def person(self) -> str:
        """Anybody's name."""
        return self.random.choice(self.people)

    def persons(self, count: int) -> list[str]:
        """The names of different people."""
        return self.random.sample(self.people, count)
