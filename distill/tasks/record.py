"""ReCoRD: which entity of the news passage fills the placeholder of the query? (arXiv 1810.12885)."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from random import Random

import numpy as np

from distill.errors import DataError

from .row import Row
from .task import Answer, Array, Example, Task, ratio, unit_index

PLACEHOLDER = "@placeholder"
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
HIGHLIGHT = re.compile(r"\s*@highlight\s*")


class ReCoRD(Task):
    """Pairs (passage, query with a candidate in the place of the placeholder). Metrics: F1 and exact match.

    The candidate with the largest logit[1] - logit[0] answers the query; it is compared with each gold
    answer after SQuAD normalisation, the best one counts, and queries are averaged. Candidates are the
    passage's entity strings, each once. The query is the unit, however many gold answers it has.
    Columns of the counts: F1, exact match, 1.
    """

    name = "record"
    title = "ReCoRD"
    labels = ("wrong", "right")
    metrics = ("f1", "em")
    truncate = "only_first"
    unit = ("query", "queries")
    official_units = (100730, 10000)

    def read(self, row: Row) -> list[Example]:
        """One example a query and candidate."""
        number = row.integer("idx")
        passage = row.row("passage")
        text = passage.text("text")
        spans = []
        for entity in passage.rows("entities"):
            start, end = entity.integer("start"), entity.integer("end") + 1  # the official end is inclusive
            if not 0 <= start < end <= len(text):
                entity.fail(
                    "end", f"an inclusive end of a span that starts at {start} of {len(text)} characters"
                )
            spans.append((start, text[start:end].strip()))
        candidates = list(dict.fromkeys(entity for _, entity in sorted(spans)))
        shown = cleaned(text)
        examples = []
        for asked in row.rows("qas"):
            group = f"{number}-{asked.integer('idx')}"
            query = asked.text("query")
            if PLACEHOLDER not in query:
                asked.fail("query", f"a text that contains {PLACEHOLDER}")
            if not candidates:
                passage.fail("entities", "at least one entity")
            labelled = asked.fields.get("answers") is not None
            golds = (
                tuple(sorted({answer.text("text") for answer in asked.rows("answers")})) if labelled else ()
            )
            right = {normalised(text) for text in golds}
            for place, candidate in enumerate(candidates):
                label = int(normalised(candidate) in right) if golds else None
                pair = (shown, query.replace(PLACEHOLDER, candidate))
                examples.append(Example(f"{group}-{place}", (pair,), label, group, candidate, golds))
        return examples

    def training_examples(self, examples: Sequence[Example], *, negatives: int, seed: int) -> list[Example]:
        """Every right candidate, and `negatives` wrong ones a query, in their original order.

        Raises:
            ValueError: `negatives` is below 1.
            DataError: an example has no label.
        """
        if negatives < 1:
            raise ValueError(f"negatives must be at least 1, got {negatives}")
        wrong: dict[str, list[str]] = {}
        for example in examples:
            if example.label is None:
                raise DataError(
                    f"{self.title} {example.id}: no gold answer; only labelled queries can be trained on"
                )
            if example.label == 0:
                wrong.setdefault(example.group, []).append(example.id)
        kept = set()
        for group, names in wrong.items():
            draw = Random(f"{seed}:{group}")  # noqa: S311 - a sample, not a secret
            kept.update(draw.sample(names, min(negatives, len(names))))
        return [example for example in examples if example.label == 1 or example.id in kept]

    def counts(self, answers: Sequence[Answer]) -> Array:
        """Counts a query, (U, 3)."""
        logits_NC = self.logits(answers)
        margin_N = logits_NC[:, 1] - logits_NC[:, 0]
        index_N, units = unit_index(answers)
        best: list[int] = [-1] * units
        for number, (unit, answer) in enumerate(zip(index_N, answers, strict=True)):
            if not answer.golds:
                raise DataError(
                    f"{self.title} {answer.id} has no gold answers; unlabelled splits cannot be scored"
                )
            if best[unit] < 0 or margin_N[number] > margin_N[best[unit]]:
                best[unit] = number
        counts_UK = np.ones((units, 3))
        for unit, number in enumerate(best):
            found = answers[number]
            counts_UK[unit, 0] = max(overlap(found.answer, text) for text in found.golds)
            counts_UK[unit, 1] = max(normalised(found.answer) == normalised(text) for text in found.golds)
        return counts_UK

    def measure(self, counts: Array) -> dict[str, Array]:
        """F1 and exact match of summed counts."""
        return {
            metric: ratio(counts[..., column], counts[..., 2]) for column, metric in enumerate(self.metrics)
        }

    def majority(self, train: Sequence[Example], validation: Sequence[Example]) -> dict[str, float]:
        """The score of the candidate that the passage mentions most often (the first one on a tie)."""
        mentioned: dict[tuple[str, str], int] = {}
        answers = []
        for example in validation:
            key = (example.texts[0][0], example.answer)
            if key not in mentioned:
                word = rf"(?<!\w){re.escape(example.answer)}(?!\w)"
                mentioned[key] = len(re.findall(word, example.texts[0][0]))
            answers.append(example.answered((0.0, float(mentioned[key]))))
        return self.score(answers)


def cleaned(passage: str) -> str:
    """Join the @highlight lines to the passage as sentences."""
    parts = [part for part in HIGHLIGHT.split(passage) if part]
    return " ".join(part if part[-1] in ".?!\"'" else f"{part}." for part in parts)


def normalised(text: str) -> str:
    """SQuAD normalisation: lower case, no punctuation, no articles, single spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def overlap(found: str, wanted: str) -> float:
    """F1 of the words two normalised strings share, as the official script computes it."""
    found_words, wanted_words = normalised(found).split(), normalised(wanted).split()
    shared = sum((Counter(found_words) & Counter(wanted_words)).values())
    if not shared:
        return float(found_words == wanted_words)
    return 2 * shared / (len(found_words) + len(wanted_words))


TASK = ReCoRD()
