"""ReCoRD: which entity of the news passage fills the placeholder of the query? (arXiv 1810.12885)."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from random import Random

import numpy as np

from distill.errors import DataError

from .formats import Completion, Framed, TextToText
from .row import Row
from .task import Answer, Array, Example, Reply, Task, ratio, unit_index

PLACEHOLDER = "@placeholder"
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
BULLET = "  - "
HIGHLIGHT = re.compile(r"\s*@highlight\s*")


class ReCoRD(Task):
    """Pairs (passage, query with a candidate in the place of the placeholder). Metrics: F1 and exact match.

    The candidate with the largest logit[1] - logit[0] answers the query; it is compared with each gold
    answer after SQuAD normalisation, the best one counts, and queries are averaged. Candidates are the
    passage's entity strings, each once. The query is the unit, however many gold answers it has. Where the
    answer is a written text, there is one a query, and it is that text which is compared.
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
        listed = ", ".join(sorted(candidates))
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
            fields = {"passage": text, "query": query, "entities": listed}
            for place, candidate in enumerate(candidates):
                label = int(normalised(candidate) in right) if golds else None
                pair = (shown, query.replace(PLACEHOLDER, candidate))
                examples.append(Example(f"{group}-{place}", (pair,), label, group, candidate, golds, fields))
        return examples

    def completion(self, example: Example) -> Completion:
        """The passage with its highlights as `  - …` lines, continued by one more: the query with the candidate.

        The white space before an answer belongs to it, as in the harness's `encode_pair`: a tokenizer may merge
        line breaks with the spaces behind them.
        """
        first, *highlights = example.fields["passage"].strip().split("\n@highlight\n")
        shown = f"{first}\n\n" + "".join(f"{BULLET}{highlight}.\n" for highlight in highlights)
        prompt = shown.rstrip()
        filled = example.fields["query"].replace(PLACEHOLDER, example.answer)
        answer = f"{shown[len(prompt) :]}{BULLET}{filled}"
        return Completion(Framed("", prompt, ""), (answer,), 0 if example.label == 1 else None)

    def completion_logits(self, scores: Sequence[float]) -> tuple[float, ...]:
        """0 for a wrong candidate, the sum of its log-probabilities for a right one: the largest sum answers."""
        return (0.0, *scores)

    def text_to_text(self, example: Example) -> TextToText:
        """`record query: … entities: a, b, … passage: …` of the example's query: a row for each gold answer."""
        before = f"record query: {example.fields['query']} entities: {example.fields['entities']} passage: "
        return TextToText(Framed(before, cleaned(example.fields["passage"]), ""), example.golds)

    def expected(self, example: Example) -> tuple[str, ...]:
        """The candidate."""
        return (example.answer,)

    def questions(self, examples: Sequence[Example]) -> list[int]:
        """The first candidate of each query: a source names them all."""
        first: dict[str, int] = {}
        for place, example in enumerate(examples):
            first.setdefault(example.group, place)
        return list(first.values())

    def read_answer(self, example: Example, text: str) -> Answer:
        """The prediction for the example's query. It is about no candidate, so none is stored, nor its label."""
        return Answer(example.group, example.group, None, (), golds=example.golds, text=text.strip())

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
        best = self._chosen(answers)
        counts_UK = np.ones((len(best), 3))
        for unit, found in enumerate(best):
            said = _said(found)
            counts_UK[unit, 0] = max(overlap(said, text) for text in found.golds)
            counts_UK[unit, 1] = max(normalised(said) == normalised(text) for text in found.golds)
        return counts_UK

    def replies(self, answers: Sequence[Answer]) -> list[Reply]:
        """What is answered to each query, with the probability that the chosen candidate is right."""
        return [
            Reply(
                found.group,
                " | ".join(found.golds),
                _said(found),
                any(normalised(_said(found)) == normalised(text) for text in found.golds),
                None if found.text is not None else float(self.probabilities([found])[0, 1]),
            )
            for found in self._chosen(answers)
        ]

    def _chosen(self, answers: Sequence[Answer]) -> list[Answer]:
        """The answer to each query: its candidate with the largest margin (the first on a tie), or its text."""
        self.check_ids(answers)
        logits_NC = self.logits([answer for answer in answers if answer.text is None])
        # A written text is alone in its query, so any margin will do.
        margin_N = np.zeros(len(answers))
        margin_N[[answer.text is None for answer in answers]] = logits_NC[:, 1] - logits_NC[:, 0]
        index_N, units = unit_index(answers)
        candidates_U = np.bincount(index_N, minlength=units)
        best: list[int] = [-1] * units
        for number, (unit, answer) in enumerate(zip(index_N, answers, strict=True)):
            if not answer.golds:
                raise DataError(
                    f"{self.title} {answer.id} has no gold answers; unlabelled splits cannot be scored"
                )
            if answer.text is not None and candidates_U[unit] > 1:
                raise DataError(
                    f"{self.title} {answer.id}: a written text answers its query alone, found {candidates_U[unit]}"
                )
            if best[unit] < 0 or margin_N[number] > margin_N[best[unit]]:
                best[unit] = number
        return [answers[number] for number in best]

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


def _said(answer: Answer) -> str:
    return answer.answer if answer.text is None else answer.text


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
