"""MultiRC: which of the answers to a question about a paragraph are correct?"""

import re
from collections.abc import Sequence

import numpy as np

from .formats import Completion, Framed, TextToText
from .row import Row
from .task import Answer, Array, Example, Task, f1, gold, ratio, sum_by_unit

TAG = re.compile(r"</?(?:br|b|i|p)\s*/?>", re.IGNORECASE)
SPACES = re.compile(r"\s+")


class MultiRC(Task):
    """Pairs (paragraph, question and answer). Metrics: F1a and exact match.

    F1a is the F1 of "True" over all answer options; exact match is the share of questions with every
    option right. A question is named by (paragraph, question), and is the unit.
    Columns of the counts: true positives, predicted True, gold True, 1 if every option is right, 1.
    """

    name = "multirc"
    title = "MultiRC"
    labels = ("False", "True")
    metrics = ("f1a", "em")
    truncate = "only_first"
    unit = ("question", "questions")
    official_units = (5131, 953)

    def read(self, row: Row) -> list[Example]:
        """One example an answer option of the paragraph's questions."""
        paragraph = row.integer("idx")
        passage = row.row("passage")
        text = without_tags(passage.text("text"))
        examples = []
        for question in passage.rows("questions"):
            group = f"{paragraph}-{question.integer('idx')}"
            asked = without_tags(question.text("question"))
            for answer in question.rows("answers"):
                name = f"{group}-{answer.integer('idx')}"
                option = without_tags(answer.text("text"))
                fields = {"paragraph": text, "question": asked, "answer": option}
                label = answer.label({0: 0, 1: 1})
                examples.append(Example(name, ((text, f"{asked} {option}"),), label, group, fields=fields))
        return examples

    def completion(self, example: Example) -> Completion:
        r"""`{paragraph}\nQuestion: …\nAnswer: {answer}\nIs the answer correct?` no, yes: in class order.

        The harness puts the answer option into both of its choices, lists yes before no, and compares that order
        with a label that counts False as 0, so that a perfect model scores 0 there.
        """
        question, answer = example.fields["question"], example.fields["answer"]
        asked = f"\nQuestion: {question}\nAnswer: {answer}\nIs the answer correct?"
        return Completion(Framed("", example.fields["paragraph"], asked), (" no", " yes"), example.label)

    def text_to_text(self, example: Example) -> TextToText:
        """`multirc question: … answer: … paragraph: …`: True or False."""
        before = (
            f"multirc question: {example.fields['question']} answer: {example.fields['answer']} paragraph: "
        )
        return TextToText(Framed(before, example.fields["paragraph"], ""), self.label_text(example))

    def counts(self, answers: Sequence[Answer]) -> Array:
        """Counts a question, (U, 5). A text that is neither True nor False is a wrong option, not a False one."""
        found_N, gold_N = self.predicted(answers), gold(answers)
        predicted_N, actual_N = found_N == 1, gold_N == 1
        columns_NK = np.stack([predicted_N & actual_N, predicted_N, actual_N, found_N != gold_N], axis=1)
        sums_UK = sum_by_unit(columns_NK.astype(np.float64), answers)
        exact_U = sums_UK[:, 3] == 0
        return np.concatenate([sums_UK[:, :3], exact_U[:, None], np.ones((len(sums_UK), 1))], axis=1)

    def measure(self, counts: Array) -> dict[str, Array]:
        """F1a and exact match of summed counts."""
        return {
            "f1a": f1(counts[..., 0], counts[..., 1], counts[..., 2]),
            "em": ratio(counts[..., 3], counts[..., 4]),
        }

    def majority(self, train: Sequence[Example], validation: Sequence[Example]) -> dict[str, float]:
        """The score of answering True everywhere, as in the SuperGLUE paper.

        False is more frequent, but F1a counts True answers only: a constant False scores 0, and a baseline
        must be the best that needs no model.
        """
        return self.score([example.answered((0.0, 1.0)) for example in validation])


def without_tags(text: str) -> str:
    """Replace HTML line breaks and formatting, which some releases of the data carry, by single spaces."""
    return SPACES.sub(" ", TAG.sub(" ", text)).strip() if TAG.search(text) else text


TASK = MultiRC()
