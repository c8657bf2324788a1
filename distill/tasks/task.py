"""What a task is: rows of the official files become examples, stored answers become scores.

Shape suffixes: N answers, C classes (or choices), U units, K columns of counts.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from distill.errors import DataError, NumericsError

from .formats import Completion, TextToText
from .row import Row

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Answer:
    """One stored prediction. Every score is recomputed from a sequence of these alone.

    Attributes:
        id: the example's.
        group: the example's.
        gold: the example's label.
        logits: one a class or choice: those of a head, or the summed log-probabilities of a decoder's answers.
            Empty where the model wrote a text.
        answer: what the prediction is about: ReCoRD's candidate, and the noun phrase of a WSC text.
        golds: the example's.
        text: what an encoder–decoder wrote; None where the model gave logits.
    """

    id: str
    group: str
    gold: int | None
    logits: tuple[float, ...]
    answer: str = ""
    golds: tuple[str, ...] = ()
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a stored prediction says, in words.

    Attributes:
        id: of the example; of a query where the task asks for one of several candidates.
        gold: the right answer; several are separated by " | ".
        said: the answer given.
        right: whether it is a right one.
        confidence: the probability that the model gave to its answer, of all that it could choose; None where it wrote
            a text.
    """

    id: str
    gold: str
    said: str
    right: bool
    confidence: float | None


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to classify.

    Attributes:
        id: unique within the split.
        texts: one (first, second) pair for classification, one pair a choice for multiple choice.
        label: the gold class or choice; None on unlabelled splits.
        group: the unit the metric counts and the bootstrap resamples (question, query, minimal pair, or
            the example itself).
        answer: ReCoRD only: the candidate entity.
        golds: ReCoRD only: the gold answers of the query, sorted, each once.
        fields: the facts that `Task.completion` and `Task.text_to_text` word. Not formatted before it is asked
            for, so that a passage with many questions is kept once.
    """

    id: str
    texts: tuple[tuple[str, str | None], ...]
    label: int | None
    group: str
    answer: str = ""
    golds: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict, hash=False)

    def answered(self, logits: Iterable[float]) -> Answer:
        """The prediction for this example, ready to be stored and scored."""
        return Answer(
            self.id,
            self.group,
            self.label,
            tuple(float(logit) for logit in logits),
            self.answer,
            self.golds,
        )


class Task(ABC):
    """One task: how its rows read, what its metrics are.

    Attributes:
        name: the key in recipes, such as "cb".
        title: the official spelling, which is also the folder's name, such as "CB".
        kind: "classification" (one pair an example) or "multiple_choice" (one pair a choice).
        labels: the official label names in class order.
        metrics: the keys of `score`, in the order the official tables print them.
        truncate: what may be cut when a pair is too long: never the question.
        unit: the singular and plural of what the metric counts.
        official_units: how many units the official train and validation files hold.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    kind: ClassVar[Literal["classification", "multiple_choice"]] = "classification"
    labels: ClassVar[tuple[str, ...]]
    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    truncate: ClassVar[Literal["only_first", "longest_first"]] = "longest_first"
    unit: ClassVar[tuple[str, str]] = ("example", "examples")
    official_units: ClassVar[tuple[int, int]]

    @abstractmethod
    def read(self, row: Row) -> list[Example]:
        """The examples of one row of the official file."""

    @abstractmethod
    def completion(self, example: Example) -> Completion:
        """The example for a decoder: the answer with the largest summed log-probability is its answer."""

    @abstractmethod
    def text_to_text(self, example: Example) -> TextToText:
        """The example for an encoder–decoder: `read_answer` reads what it writes."""

    def completion_logits(self, scores: Sequence[float]) -> tuple[float, ...]:
        """The logits of an example from the summed log-probabilities of its completion's answers."""
        return tuple(scores)

    def read_answer(self, example: Example, text: str) -> Answer:
        """The prediction of a model that wrote `text`, ready to be stored and scored."""
        return Answer(
            example.id, example.group, example.label, (), example.answer, example.golds, text.strip()
        )

    def questions(self, examples: Sequence[Example]) -> list[int]:
        """The positions of the examples an encoder–decoder is asked: all of them (ReCoRD: one a query)."""
        return list(range(len(examples)))

    def expected(self, example: Example) -> tuple[str, ...]:
        """The strings that an encoder–decoder may have to write for this example."""
        return self.labels

    def label_text(self, example: Example) -> tuple[str, ...]:
        """The name of the example's class as the targets of a text-to-text row; none if unlabelled."""
        return () if example.label is None else (self.labels[example.label],)

    def class_of(self, answer: Answer) -> int:
        """The class that a written answer names, or -1, which is no class and always wrong.

        Case and white space do not count: uncased WordPiece tokenizers give "not _ entailment" back.
        """
        names = [squeezed(label) for label in self.labels]
        said = squeezed(answer.text or "")
        return names.index(said) if said in names else -1

    def examples(self, rows: Iterable[Mapping[str, Any]]) -> list[Example]:
        """Read the rows of an official file.

        Raises:
            DataError: a row is malformed, or two examples have the same id. Rows are counted from 1.
        """
        examples = []
        seen = set()
        for number, fields in enumerate(rows):
            where = f"{self.title} row {number + 1}"
            for example in self.read(Row(where, fields, number)):
                if example.id in seen:
                    raise DataError(f"{where}: the id {example.id} (from idx) occurs twice, expected once")
                seen.add(example.id)
                examples.append(example)
        return examples

    def training_examples(self, examples: Sequence[Example], *, negatives: int, seed: int) -> list[Example]:
        """The examples to train on: all of them, except where a task has far too many negatives (ReCoRD).

        Args:
            examples: the training split.
            negatives: how many wrong candidates a query keeps, at least 1.
            seed: fixes which ones. A query's draw does not depend on the other queries.
        """
        return list(examples)

    def counts(self, answers: Sequence[Answer]) -> Array:
        """Sufficient statistics of each unit, (U, K), units in order of first appearance.

        Metrics depend on their sum alone, so a bootstrap over units is `measure(weights_BU @ counts_UK)`.

        Raises:
            DataError: an answer has no gold label, occurs twice, or has the wrong number of logits.
            NumericsError: a logit is NaN or infinite.
        """
        correct_N = self.predicted(answers) == gold(answers)
        return sum_by_unit(np.stack([correct_N, np.ones(len(answers))], axis=1), answers)

    def measure(self, counts: Array) -> dict[str, Array]:
        """Metrics of summed counts, (..., K) to one array (...) a metric."""
        return {"accuracy": ratio(counts[..., 0], counts[..., 1])}

    def score(self, answers: Sequence[Answer]) -> dict[str, float]:
        """The task's metrics, as shares (1.0 is perfect).

        Raises:
            DataError: as `counts`, and when there are no answers.
        """
        if not answers:
            raise DataError(f"{self.title}: there are no answers to score")
        measured = self.measure(self.counts(answers).sum(axis=0))
        return {metric: float(measured[metric]) for metric in self.metrics}

    def majority(self, train: Sequence[Example], validation: Sequence[Example]) -> dict[str, float]:
        """The score of always giving the most frequent training label (validation's own without a train split).

        Raises:
            DataError: no example is labelled, or validation cannot be scored.
        """
        labels = Counter(example.label for example in train or validation if example.label is not None)
        if not labels:
            raise DataError(f"{self.title}: no labelled example to take the majority of")
        # The smaller class wins a tie, so that the baseline does not depend on the order of the rows.
        most = min(labels, key=lambda label: (-labels[label], label))
        logits = [float(label == most) for label in range(len(self.labels))]
        return self.score([example.answered(logits) for example in validation])

    def predicted(self, answers: Sequence[Answer]) -> NDArray[np.int64]:
        """The class with the highest logit (the first one on a tie) or of the written text (-1: none), (N,)."""
        self.check_ids(answers)
        written_N = np.array([answer.text is not None for answer in answers], dtype=bool)
        found_N = np.full(len(answers), -1, dtype=np.int64)
        found_N[written_N] = [self.class_of(answer) for answer in answers if answer.text is not None]
        logits_NC = self.logits([answer for answer in answers if answer.text is None])
        found_N[~written_N] = np.argmax(logits_NC, axis=1)
        return found_N

    def replies(self, answers: Sequence[Answer]) -> list[Reply]:
        """The answers in words, in their order.

        Raises:
            DataError, NumericsError: as `counts`.
        """
        found = []
        confidences = iter(self.probabilities([a for a in answers if a.text is None]).max(axis=1, initial=0))
        for answer, said, right in zip(answers, self.predicted(answers), gold(answers), strict=True):
            written = answer.text is not None
            found.append(
                Reply(
                    answer.id,
                    self.labels[right],
                    str(answer.text) if written else self.labels[said],
                    bool(said == right),
                    None if written else float(next(confidences)),
                )
            )
        return found

    def probabilities(self, answers: Sequence[Answer]) -> Array:
        """The softmax of the logits, (N, C)."""
        logits_NC = self.logits(answers)
        powers_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True, initial=-np.inf))
        probability_NC: Array = powers_NC / powers_NC.sum(axis=1, keepdims=True)
        return probability_NC

    def check_ids(self, answers: Sequence[Answer]) -> None:
        """Refuse two answers to one example."""
        seen = set()
        for answer in answers:
            if answer.id in seen:
                raise DataError(f"{self.title} {answer.id}: answered twice; each example counts once")
            seen.add(answer.id)

    def logits(self, answers: Sequence[Answer]) -> Array:
        """The checked logits, (N, C)."""
        self.check_ids(answers)
        for answer in answers:
            if len(answer.logits) != len(self.labels):
                raise DataError(
                    f"{self.title} {answer.id}: expected {len(self.labels)} logits "
                    f"({', '.join(self.labels)}), found {len(answer.logits)}"
                )
        logits_NC = np.array([answer.logits for answer in answers], dtype=np.float64)
        logits_NC = logits_NC.reshape(len(answers), len(self.labels))
        finite_N = np.isfinite(logits_NC).all(axis=1)
        if not finite_N.all():
            broken = answers[int(np.argmin(finite_N))]
            raise NumericsError(
                f"{self.title} {broken.id}: the logits are {broken.logits}, expected finite numbers"
            )
        return logits_NC


def squeezed(text: str) -> str:
    """The text without white space and case."""
    return "".join(text.split()).casefold()


def gold(answers: Sequence[Answer]) -> NDArray[np.int64]:
    """The gold labels, (N,).

    Raises:
        DataError: one is missing.
    """
    for answer in answers:
        if answer.gold is None:
            raise DataError(f"example {answer.id} has no gold label; unlabelled splits cannot be scored")
    return np.array([answer.gold for answer in answers], dtype=np.int64)


def unit_index(answers: Sequence[Answer]) -> tuple[NDArray[np.int64], int]:
    """The unit of each answer, (N,), numbered in order of first appearance, and the number of units."""
    numbers: dict[str, int] = {}
    index = [numbers.setdefault(answer.group, len(numbers)) for answer in answers]
    return np.array(index, dtype=np.int64), len(numbers)


def sum_by_unit(values: Array, answers: Sequence[Answer]) -> Array:
    """Sum (N, K) values over the answers of each unit, to (U, K)."""
    index_N, units = unit_index(answers)
    sums_UK = np.zeros((units, values.shape[1]))
    np.add.at(sums_UK, index_N, values)
    return sums_UK


def ratio(part: Array, whole: Array) -> Array:
    """Divide, with 0 where the whole is 0 (an absent class has F1 0, as in scikit-learn)."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(
        part, whole, out=np.zeros(np.broadcast_shapes(part.shape, whole.shape)), where=whole != 0
    )


def f1(hits: Array, predicted: Array, actual: Array) -> Array:
    """F1 of one class from its true positives, predictions and gold labels."""
    return ratio(2 * hits, predicted + actual)
