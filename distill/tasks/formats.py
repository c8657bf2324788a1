"""What a task looks like to a language model: a prompt with its answers, or a source with its targets."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Framed:
    """A text whose passage may lose its beginning where the whole is too long; the rest is never cut.

    Attributes:
        before: what stands before the passage.
        passage: what may be cut.
        after: what stands after it, such as the question.
    """

    before: str
    passage: str
    after: str

    @property
    def text(self) -> str:
        """The whole text."""
        return self.before + self.passage + self.after


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and the answers a decoder may continue it with.

    The wording is that of lm-evaluation-harness (tag super-glue-lm-eval-v1). What all answers of a prompt have in
    common stands in the prompt: it adds the same to the log-probability of each.

    Attributes:
        prompt: what the answers continue; it ends without white space.
        answers: the answers in class (or choice) order, each with the white space before it. ReCoRD has one: the
            query with the example's own candidate.
        gold: which answer is right; None where there is none to learn (unlabelled, or a wrong candidate).
    """

    prompt: Framed
    answers: tuple[str, ...]
    gold: int | None


@dataclass(frozen=True, slots=True)
class TextToText:
    """A source text and what an encoder–decoder has to write.

    Paper: T5, arXiv 1910.10683, appendix D, whose wording this is.

    Attributes:
        source: what the encoder reads.
        targets: the strings to learn, each a training row of its own: several where a ReCoRD query has several
            gold answers, none where the example is unlabelled or teaches nothing (WSC rows labelled False).
    """

    source: Framed
    targets: tuple[str, ...]
