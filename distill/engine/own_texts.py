"""Texts that a student writes itself, to be trained on in place of a batch of the data's.

Shapes: B texts, T positions, V vocabulary.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from distill.errors import RecipeError
from distill.models import EnsembleTeacher, NextTokens, Teacher
from distill.models.sequences import padding_id

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from distill.models import Student
    from distill.models.sequences import Ids
    from distill.recipe import OnPolicy

Written = tuple[list[int], list[float], int, float]
"""Of the texts that a process wrote: lengths, shares of different tokens, how many ended; and the seconds it took."""
# Of a text's tokens, the share of different ones below which it says the same again and again.
REPEATING = 0.1


class OwnTexts:
    """A student's continuations of the prompts of its training examples (GKD, arXiv:2306.13649, algorithm 1).

    Which steps train on them depends on seed and step alone. What is written depends on seed, step, example and the
    student's weights: a continued run writes the same texts again, and torch's own generators are left alone. All
    texts of a step that this process trains on are written before its first forward pass, `batch_size` of similar
    length at a time, so that accumulation does not change a text; other devices, or another `batch_size`, change the
    student's probabilities by rounding only.

    Args:
        settings: how often, how long and how the texts are drawn.
        data: the examples whose prompts are continued.
        student: who writes.
        teacher: who judges; it must be able to read texts that were not there before.
        seed: of the draws.
        batch_size: texts that are written together.

    Raises:
        RecipeError: the data holds no texts to continue, the teacher does not read new ones, or the models do not
            read ones as long as these may become.
    """

    def __init__(
        self,
        settings: OnPolicy,
        data: object,
        student: Student,
        teacher: object,
        *,
        seed: int,
        batch_size: int,
    ):
        where = "train.on_policy: "
        if not isinstance(data, NextTokens):
            raise RecipeError(
                [f"{where}is only for a decoder, which continues texts, found {type(data).__name__}"]
            )
        if not isinstance(teacher, Teacher | EnsembleTeacher):
            raise RecipeError(
                [
                    f"{where}the teacher must run, since these texts are new to it, found {type(teacher).__name__}"
                ]
            )
        self.settings = settings
        self.data = data
        self.seed = seed
        self.batch_size = batch_size
        self._tokenizer = student.tokenizer
        longest = max(len(self._prompt(index)) for index in range(len(data)))
        teachers = teacher.members if isinstance(teacher, EnsembleTeacher) else (teacher,)
        for role, model in (("student", student.model), *(("teacher", each.model) for each in teachers)):
            room = getattr(model.config, "max_position_embeddings", None)
            if room is not None and longest + settings.max_new_tokens > room:
                raise RecipeError(
                    [
                        f"{where}max_new_tokens must leave room for prompts of up to {longest} tokens, found "
                        f"{settings.max_new_tokens}; the {role} reads {room} tokens in all"
                    ]
                )
        self._forget()

    def taken_at(self, step: int) -> bool:
        """Whether the step (counted from 0) trains on the student's own texts, on all devices alike."""
        # random() is below 1 and may be 0: a fraction of 0 is never, of 1 always.
        return self._draws(step).random() < self.settings.fraction

    def write(self, model: PreTrainedModel, index: Sequence[int], step: int) -> NextTokens:
        """Continue the prompts of the examples at `index`: a data set of one text each, in their order.

        The tokens that were written count, the one that ends a text included; the prompt's do not.

        Args:
            model: the student's, as transformers made it; left in the mode in which it comes.
            index: examples of the data.
            step: the optimizer step, counted from 0.
        """
        started = time.monotonic()
        prompts = [self._prompt(i) for i in index]
        written: list[Ids] = [()] * len(index)
        order = sorted(range(len(index)), key=lambda place: len(prompts[place]))
        mode = model.training
        model.train(mode=False)
        try:
            for start in range(0, len(order), self.batch_size):
                places = order[start : start + self.batch_size]
                draws = [self._draws(step, index[place]) for place in places]
                made = self._continue(model, [prompts[place] for place in places], draws)
                for place, ids in zip(places, made, strict=True):
                    written[place] = ids
        finally:
            model.train(mode=mode)
        self._remember(written, time.monotonic() - started)
        return NextTokens(
            [[*prompt, *ids] for prompt, ids in zip(prompts, written, strict=True)],
            [[False] * len(prompt) + [True] * len(ids) for prompt, ids in zip(prompts, written, strict=True)],
            self._tokenizer,
        )

    def figures(
        self, steps: range, gather: Callable[[Written], Sequence[Written]] = lambda own: [own]
    ) -> dict[str, float]:
        """What was written since the last call, during these steps; `gather` returns what all processes wrote.

        `steps`: share of the steps that were trained on own texts. `length`: mean tokens of a text. `ended`: share of
        texts that ended by themselves. `distinct`: mean share of a text's tokens that are different ones; `repeating`:
        share of texts where that is below 0.1. A student that says the same again and again has collapsed: `repeating`
        rises to 1, mostly with `ended` at 0. `written_tokens_per_second` is the speed of writing.
        """
        figures = {"steps": sum(map(self.taken_at, steps)) / max(len(steps), 1)}
        written = gather((self._lengths, self._distinct, self._ended, self._seconds))
        self._forget()
        lengths = [length for each, _, _, _ in written for length in each]
        distinct = [share for _, each, _, _ in written for share in each]
        if texts := len(lengths):
            tokens = sum(lengths)
            figures |= {
                "length": tokens / texts,
                "ended": sum(ended for _, _, ended, _ in written) / texts,
                "distinct": sum(distinct) / texts,
                "repeating": sum(share < REPEATING for share in distinct) / texts,
                "written_tokens_per_second": round(tokens / max(seconds for *_, seconds in written)),
            }
        return {f"on_policy/{name}": figure for name, figure in figures.items()}

    @property
    def unsaid(self) -> dict[str, Any]:
        """What was remembered since the last `figures`, as JSON keeps it; `remember` takes it back."""
        return {
            "lengths": self._lengths,
            "distinct": self._distinct,
            "ended": self._ended,
            "seconds": self._seconds,
        }

    def remember(self, unsaid: Mapping[str, Any]) -> None:
        """Go on counting from what `unsaid` said."""
        self._forget()
        self._lengths += unsaid["lengths"]
        self._distinct += unsaid["distinct"]
        self._ended, self._seconds = unsaid["ended"], unsaid["seconds"]

    def _prompt(self, index: int) -> Ids:
        return self.data.prompt(index, self.settings.prompt_tokens)

    def _draws(self, *of: int) -> random.Random:
        name = "-".join(map(str, (self.seed, *of)))
        return random.Random(f"on-policy-{name}")  # noqa: S311 - a text, not a secret

    def _continue(
        self, model: PreTrainedModel, prompts: Sequence[Ids], draws: Sequence[random.Random]
    ) -> list[list[int]]:
        """What a model in inference mode writes behind each prompt, with its end token where it ends."""
        from transformers import GenerationConfig

        end, pad = self._tokenizer.eos_token_id, padding_id(self._tokenizer)
        longest = max(map(len, prompts))
        device = next(model.parameters()).device
        # Left padding: what is written must follow its prompt.
        ids_BT = torch.tensor([[pad] * (longest - len(ids)) + list(ids) for ids in prompts], device=device)
        mask_BT = torch.tensor(
            [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device
        )
        new = self.settings.max_new_tokens
        chance_BT = torch.tensor([[draw.random() for _ in range(new)] for draw in draws], dtype=torch.float64)
        choose = Choose(self.settings, chance_BT.to(device), prompt=longest, tokens=len(self._tokenizer))
        # A model's own habits (penalties, forced tokens) would make texts that are not its distribution's.
        plain: Any = GenerationConfig
        writer: Any = model
        own, writer.generation_config = writer.generation_config, plain()
        try:
            made_BT: Tensor = writer.generate(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                generation_config=plain(
                    max_new_tokens=new, do_sample=False, eos_token_id=end, pad_token_id=pad
                ),
                logits_processor=[choose],
            )
        finally:
            writer.generation_config = own
        texts: list[list[int]] = made_BT[:, longest:].tolist()
        return [ids[: ids.index(end) + 1] if end in ids else ids for ids in texts]

    def _remember(self, written: Sequence[Ids], seconds: float) -> None:
        self._lengths += map(len, written)
        self._distinct += [len(set(ids)) / len(ids) for ids in written]
        self._ended += sum(ids[-1] == self._tokenizer.eos_token_id for ids in written)
        self._seconds += seconds

    def _forget(self) -> None:
        self._lengths: list[int] = []
        self._distinct: list[float] = []
        self._ended, self._seconds = 0, 0.0


class Choose:
    """Draws each text's next token by a random number of that text's own.

    transformers samples all texts of a batch from one generator, so that what stands beside a text would change it.
    Here the number picks the token by inverting the cumulative distribution, and all others are made impossible: what
    is left to transformers is to take the largest.

    Args:
        settings: temperature, top_k and top_p, applied in this order, as transformers does.
        chance_BT: numbers in [0, 1), one for each token to come.
        prompt: the positions before the first of these.
        tokens: of the tokenizer; an output layer padded beyond them says nothing there.
    """

    def __init__(self, settings: OnPolicy, chance_BT: Tensor, *, prompt: int, tokens: int):
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        self.chance_BT = chance_BT
        self.prompt = prompt
        self.tokens = tokens
        self._warpers: list[Any] = [TemperatureLogitsWarper(float(settings.temperature))]
        if settings.top_k is not None:
            self._warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p is not None:
            self._warpers.append(TopPLogitsWarper(settings.top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, V]` of which only the drawn token's is finite."""
        logits_BV = scores[:, : self.tokens]
        for warper in self._warpers:
            logits_BV = warper(input_ids, logits_BV)
        reached_BV = logits_BV.double().softmax(-1).cumsum(-1)
        chance_B1 = self.chance_BT[:, input_ids.shape[1] - self.prompt, None] * reached_BV[:, -1:]
        # The first token whose cumulative probability is above the number: never one of probability 0. (Beyond the
        # last are only numbers next to a model that says NaN, which the training step names.)
        drawn_B1 = torch.searchsorted(reached_BV, chance_B1, right=True).clamp(max=logits_BV.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn_B1, 0.0)
