"""A row of each official file, hand-made."""

BOOLQ = {"question": "is it wet", "passage": "Rain -- It is wet.", "idx": 0, "label": True}
CB = {"premise": "P.", "hypothesis": "H", "idx": 3, "label": "neutral"}
COPA = {
    "premise": "It rained.",
    "choice1": "Wet.",
    "choice2": "Dry.",
    "question": "effect",
    "idx": 0,
    "label": 0,
}
WIC = {
    "word": "bank",
    "sentence1": "Banks lend.",
    "sentence2": "By the bank, we sat.",
    "start1": 0,
    "end1": 5,
    "start2": 7,
    "end2": 11,
    "idx": 7,
    "label": False,
}
WSC = {
    "text": 'Mark told "Pete" that he\nwas late.',
    "target": {"span1_index": 2, "span1_text": "Pete", "span2_index": 4, "span2_text": "he"},
    "idx": 0,
    "label": True,
}
MULTIRC = {
    "idx": 2,
    "version": 1.1,
    "passage": {
        "text": "<b>Sent 1: </b>It rained.<br><b>Sent 2: </b>5 < 6.",
        "questions": [
            {
                "question": "What fell?",
                "idx": 9,
                "answers": [{"text": "Rain", "idx": 30, "label": 1}, {"text": "Snow", "idx": 31, "label": 0}],
            }
        ],
    },
}
#          0         1         2         3
#          0123456789012345678901234567890123456789
PASSAGE = "Ann met Bob in Rome\n@highlight\nBob left Rome."
RECORD = {
    "idx": 5,
    "source": "test",
    "passage": {
        "text": PASSAGE,
        "entities": [
            {"start": 15, "end": 18},
            {"start": 0, "end": 2},
            {"start": 8, "end": 10},
            {"start": 31, "end": 33},
        ],
    },
    "qas": [
        {
            "query": "The @placeholder is old, says @placeholder.",
            "idx": 8,
            "answers": [{"start": 15, "end": 18, "text": "Rome"}],
        }
    ],
}
AXB = {"idx": "4", "label": "not_entailment", "sentence1": "A.", "sentence2": "B.", "logic": "Negation"}
AXG = [
    {"hypothesis": "H.", "idx": 0, "label": "entailment", "pair_id": 9, "premise": "He."},
    {"hypothesis": "H.", "idx": 1, "label": "entailment", "pair_id": 5, "premise": "She."},
]
