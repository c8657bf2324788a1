"""Plain text as a task: passages of files, and how likely a language model finds them.

Shape suffixes: U passages, K columns of counts.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from distill.errors import DataError

from .formats import Completion, TextToText
from .row import Row
from .task import Answer, Array, Example, Task, ratio, sum_by_unit


class Text(Task):
    """Passages of text in which a model predicts tokens.

    The score has to be larger for a better model, lie between 0 and 1, and be comparable between models whatever
    their tokens: it is the geometric mean of the probability that a byte was given, 2 to the power of minus the bits a
    byte. Perplexity and the share of tokens on which a model's first choice is its teacher's stand beside it.
    """

    name = "text"
    title = "Text"
    labels = ()
    metrics = ("byte_probability",)
    unit = ("passage", "passages")
    official_units = (0, 0)

    def read(self, row: Row) -> list[Example]:
        """One passage: `{"text": …}`."""
        passage = row.text("text")
        return [Example(str(row.number), ((passage, None),), None, str(row.number))]

    def completion(self, example: Example) -> Completion:
        """Plain text asks nothing."""
        raise DataError(f"{self.title}: has no answers to choose from; a decoder reads the passage itself")

    def text_to_text(self, example: Example) -> TextToText:
        """Plain text asks nothing."""
        raise DataError(
            f"{self.title}: has no target to write; encoder–decoders are not trained on plain text"
        )

    def counts(self, answers: Sequence[Answer]) -> Array:
        """Of each passage: log-likelihood in nats, tokens, bytes, and tokens on which the teacher agrees (if known)."""
        widths = {len(answer.logits) for answer in answers}
        if not widths <= {3} and not widths <= {4}:
            raise DataError(
                f"{self.title}: expected log-likelihood, tokens, bytes and maybe agreements of every passage, "
                f"found {sorted(widths)} numbers"
            )
        return sum_by_unit(np.array([answer.logits for answer in answers], dtype=np.float64), answers)

    def measure(self, counts: Array) -> dict[str, Array]:
        """Metrics of summed counts; agreement only where it was counted."""
        nats, tokens, size = counts[..., 0], counts[..., 1], counts[..., 2]
        measured = {
            "byte_probability": np.exp(ratio(nats, size)),
            "perplexity": np.exp(ratio(-nats, tokens)),
            "bits_per_byte": ratio(-nats, size) / math.log(2),
        }
        if counts.shape[-1] > 3:
            measured["agreement"] = ratio(counts[..., 3], tokens)
        return measured

    def beside(self, answers: Sequence[Answer]) -> dict[str, float]:
        """What is said beside the score: perplexity, bits a byte, and agreement where it was counted."""
        measured = self.measure(self.counts(answers).sum(axis=0))
        return {name: float(value) for name, value in measured.items() if name not in self.metrics}

    def majority(self, train: Sequence[Example], validation: Sequence[Example]) -> dict[str, float]:
        """The score of knowing nothing but how often each byte occurs in the training passages."""
        seen = Counter(byte for example in train for byte in example.texts[0][0].encode())
        total = sum(seen.values()) + 256
        nats, size = 0.0, 0
        for byte, times in Counter(b for e in validation for b in e.texts[0][0].encode()).items():
            nats += times * math.log((seen[byte] + 1) / total)
            size += times
        return {"byte_probability": math.exp(nats / size)}


TASK = Text()
