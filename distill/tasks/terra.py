"""TERRa: does the premise entail the hypothesis, in Russian? (Russian SuperGLUE, arXiv 2010.15925)."""

from .formats import Completion, Framed, TextToText
from .rte import RTE
from .task import Example


class TERRa(RTE):
    """Pairs (premise, hypothesis). Metric: accuracy. Not one of the SuperGLUE tasks, nor part of their score."""

    name = "terra"
    title = "TERRa"
    official_units = (2616, 307)

    def completion(self, example: Example) -> Completion:
        r"""RTE's prompt in Russian: `{premise}\nВопрос: {hypothesis} Верно?\nОтвет:` да, нет."""
        question = f"\nВопрос: {example.fields['hypothesis']} Верно?\nОтвет:"
        prompt = Framed("", example.fields["premise"], question)
        return Completion(prompt, (" да", " нет"), example.label)

    def text_to_text(self, example: Example) -> TextToText:
        """`terra hypothesis: {hypothesis} premise: {premise}`: entailment or not_entailment."""
        before = f"terra hypothesis: {example.fields['hypothesis']} premise: "
        return TextToText(Framed(before, example.fields["premise"], ""), self.label_text(example))


TASK = TERRa()
