"""Does the word mean the same in both sentences?"""

from typing import Any

from .world import Cast

WORDS = {
    "bank": (
        (
            "{a} opened an account at the bank",
            "{a} borrowed money from the bank",
            "the bank gave {a} a loan",
            "{a} took cash out of the bank",
        ),
        (
            "{a} fished from the bank",
            "{a} swam to the bank of the river",
            "{a} sat on the grassy bank by the water",
            "the boat of {a} reached the bank",
        ),
    ),
    "bat": (
        (
            "{a} hit the ball with a bat",
            "{a} swung the bat at the game",
            "the wooden bat of {a} cracked",
            "{a} carried a bat to the stadium",
        ),
        (
            "{a} saw a bat in the cave",
            "a bat flew past {a} at night",
            "{a} watched the bat hang upside down",
            "the bat that {a} saw ate insects",
        ),
    ),
    "bark": (
        (
            "{a} peeled the bark off the tree",
            "{a} cut letters into the bark",
            "{a} saw moss on the bark",
            "the bark that {a} touched was rough wood",
        ),
        (
            "{a} heard the bark of a dog",
            "a loud bark woke {a}",
            "the bark of the puppy scared {a}",
            "{a} heard a bark behind the fence",
        ),
    ),
    "spring": (
        (
            "{a} planted flowers in spring",
            "{a} loves the warm days of spring",
            "after winter {a} waits for spring",
            "{a} was born in the spring of that year",
        ),
        (
            "{a} replaced a spring in the mattress",
            "a metal spring of the machine hit {a}",
            "{a} stretched the steel spring",
            "the spring in the watch of {a} broke",
        ),
    ),
    "ring": (
        (
            "{a} wore a gold ring",
            "{a} bought a diamond ring",
            "{a} put a ring on the finger",
            "the wedding ring of {a} was lost",
        ),
        (
            "{a} heard the ring of the phone",
            "a ring at the door woke {a}",
            "{a} answered at the first ring",
            "the ring of the bell startled {a}",
        ),
    ),
    "match": (
        (
            "{a} lit a match",
            "{a} struck a match in the dark",
            "{a} started the fire with a match",
            "the match burned the fingers of {a}",
        ),
        (
            "{a} won the tennis match",
            "{a} watched the football match",
            "{a} scored a goal in the match",
            "the match that {a} played ended in a draw",
        ),
    ),
    "nail": (
        (
            "{a} hammered a nail into the wall",
            "{a} hung the picture on a nail",
            "{a} pulled the rusty nail out of the board",
            "the iron nail that {a} used was bent",
        ),
        (
            "{a} broke a nail while typing",
            "{a} painted each nail red",
            "{a} bit a nail nervously",
            "{a} cut the nail of the big toe",
        ),
    ),
    "palm": (
        (
            "{a} sat under a palm on the beach",
            "{a} climbed a palm for coconuts",
            "the palm in the garden of {a} is tall",
            "{a} saw a palm in the desert",
        ),
        (
            "{a} held the coin in the palm",
            "{a} wrote the number on the palm",
            "{a} read the lines of the palm",
            "the palm of {a} was sweaty",
        ),
    ),
    "trunk": (
        (
            "{a} put the suitcase in the trunk",
            "{a} packed clothes in a trunk",
            "{a} locked the trunk of the car",
            "the trunk of {a} was full of luggage",
        ),
        (
            "the elephant touched {a} with its trunk",
            "{a} saw the elephant lift its trunk",
            "{a} fed the trunk of the elephant",
            "the elephant sprayed {a} from its trunk",
        ),
    ),
    "seal": (
        (
            "{a} saw a seal on the ice",
            "a seal swam past the boat of {a}",
            "{a} fed fish to the seal",
            "{a} watched a seal dive into the sea",
        ),
        (
            "{a} broke the seal of the letter",
            "{a} put a wax seal on the envelope",
            "{a} stamped the paper with a seal",
            "the seal on the contract of {a} was official",
        ),
    ),
    "crane": (
        (
            "{a} saw a crane catch a frog",
            "a crane flew over the lake of {a}",
            "{a} watched the crane build a nest",
            "the feathers of the crane amazed {a}",
        ),
        (
            "{a} lifted steel with a crane",
            "a crane raised the beams for {a}",
            "{a} operated the crane at the building site",
            "{a} drove a crane at the harbour",
        ),
    ),
    "mouse": (
        (
            "{a} saw a mouse eat cheese",
            "the cat of {a} chased a mouse",
            "{a} set a trap for the mouse",
            "a mouse ran into a hole near {a}",
        ),
        (
            "{a} clicked the mouse",
            "{a} plugged the mouse into the computer",
            "{a} moved the cursor with the mouse",
            "the wireless mouse of {a} needs a battery",
        ),
    ),
    "jam": (
        (
            "{a} spread jam on the bread",
            "{a} made jam from strawberries",
            "{a} ate toast with jam",
            "a jar of jam stood before {a}",
        ),
        (
            "{a} sat in a traffic jam",
            "a jam on the road delayed {a}",
            "{a} was stuck in a jam of cars",
            "the jam on the highway made {a} late",
        ),
    ),
    "wave": (
        (
            "a wave hit the boat of {a}",
            "{a} surfed on a big wave",
            "{a} saw a wave break on the beach",
            "a wave from the sea soaked {a}",
        ),
        (
            "{a} said goodbye with a wave",
            "{a} greeted us with a wave of the hand",
            "a friendly wave from {a} made us smile",
            "{a} gave the crowd a wave",
        ),
    ),
    "club": (
        (
            "{a} joined a chess club",
            "{a} became a member of the club",
            "the club elected {a} as president",
            "{a} met friends at the club",
        ),
        (
            "{a} hit the ball with a golf club",
            "{a} swung a heavy club at the thief",
            "{a} carved a wooden club",
            "the cave man scared {a} with a club",
        ),
    ),
    "pen": (
        (
            "{a} wrote a letter with a pen",
            "{a} signed with a black pen",
            "the pen of {a} ran out of ink",
            "{a} lent us a pen for the exam",
        ),
        (
            "{a} put the sheep in the pen",
            "{a} fed the pigs in the pen",
            "the lambs ran out of the pen of {a}",
            "{a} built a pen for the goats",
        ),
    ),
}


def rows(cast: Cast, count: int) -> list[dict[str, Any]]:
    """Rows in the official layout, with exact character offsets."""
    made = []
    for number in range(count):
        label = number % 2 == 0
        word = cast.random.choice(list(WORDS))
        senses = list(WORDS[word])
        cast.random.shuffle(senses)
        if label:
            contexts = cast.random.sample(senses[0], 2)
        else:
            contexts = [cast.random.choice(sense) for sense in senses]
        row: dict[str, Any] = {"word": word, "label": label, "version": 1.1}
        for side, (context, person) in enumerate(zip(contexts, cast.persons(2), strict=True), 1):
            sentence = context.format(a=person) + "."
            sentence = sentence[0].upper() + sentence[1:]
            start = f" {sentence.lower()} ".replace(".", " ").index(f" {word} ")
            row |= {f"sentence{side}": sentence, f"start{side}": start, f"end{side}": start + len(word)}
        made.append(row)
    return made
