"""The training loop: one inner step, read top to bottom.

batch ─► teacher ─┐          (on policy: the batch's prompts, as the student continues them)
      └► student ─┴► align ─► rows ─► loss ─► Σ w·v / Σ w over the whole batch ─► backward ─► optimizer
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from distill.alignment import SharedHead, align_activations, align_classes
from distill.engine.batches import MicroBatch, Plan, check_groups, epoch_batches, total_steps
from distill.engine.checkpoint import latest_checkpoint, save_checkpoint
from distill.engine.comparison import Comparison, CrossAttention, Turn
from distill.engine.culprit import agreed_culprit
from distill.engine.figures import Figures, pulls
from distill.engine.gathered_rows import gather_rows
from distill.engine.optimizer import make_optimizer
from distill.engine.own_texts import OwnTexts
from distill.engine.random_state import own_random, restore_own
from distill.engine.sharded import Outline, tied_weights, total_norm
from distill.engine.spikes import WINDOW, Spikes
from distill.engine.training_state import go_back, state_of
from distill.engine.work import Part, Work
from distill.errors import RecipeError, ResourceError
from distill.losses import Loss, ModelPair, Rows, Total, Wanted
from distill.memory import enough_memory, ran_out_of_memory, what_was_wanted
from distill.models import Batch, DataSet, Prediction, SparsePrediction, Student, Teacher, set_dropout
from distill.processes import Processes, check_accelerator, new_accelerator
from distill.progress import Progress, Silent, losses
from distill.recipe import TrainRecipe
from distill.signals import HeldBack

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor


Made = TypeVar("Made")


# Between the random seeds of two devices, so that those of neighbouring runs do not meet.
DEVICE_SEEDS = 1_000_003


@dataclass(frozen=True)
class Beginning:
    """Where a step began: what its forward passes change besides gradients."""

    random: dict[str, Tensor]
    tokens: int
    figures: Figures


class Engine:
    """Trains one student with one loss on one data set.

    Normalisation is exact: however a batch is split into forward passes or devices, the gradient is that of
    Σ weight·value / Σ weight over the whole batch. A forward pass that memory does not hold is therefore made again in
    halves, for the rest of the training and in a continued one: the same batch, the same gradient to rounding.

    Args:
        student: its weights are changed in place.
        loss: a loss or a weighted sum of losses.
        features: the training examples.
        train: optimizer, schedule, batch sizes, precision, and how often a decoder trains on its own texts: there only
            the terms that compare with the teacher count, and rows are the tokens that it wrote.
        teacher: called on every batch; needed when a term of the loss compares with one, and a `Teacher` when a term
            compares what the models compute inside.
        comparison: how to compare with a teacher that has other tokens; `features` are then its `own`. None: both
            read the same tokens.
        seed: decides the order of the examples and the dropout masks.
        checkpoints: folder to save to and to continue from; None neither saves nor continues.
        owner: what identifies this training; a checkpoint of another owner is refused.
        evaluate: called every `train.eval_steps` steps with the student in inference mode; its figures are logged
            and never used to choose a checkpoint.
        log: receives one dictionary of figures every `train.logging_steps` steps. Where at least two terms read nothing
            but the student's logits it holds `gradient_share/<term>`: of that step's whole batch, the norm of the
            weighted term's gradient for the logits as a part of the terms' sum.
        progress: told where the run is.
        accelerator: for devices and processes; made here when None.
        example_name: what errors call the training example at an index.
        beside: what stands beside the figures that `progress` is told, such as "teacher 81.6".

    Raises:
        RecipeError: the batch would be split inside a batch-wise group, a teacher is missing, a term cannot
            compare these two models, there are no texts of the student's own to train on, or accelerate is set up in
            a way that is not supported (recipes/several-gpus.md).
        NumericsError: from `run`, when loss or gradient is not finite; the weights are those of the step before.
        ResourceError: from `run`, when memory does not hold a forward pass that cannot be made smaller, or a disk not
            what is written.

    Example:
        See "In your own script" of the README.
    """

    def __init__(
        self,
        student: Student,
        loss: Loss | Total,
        features: DataSet,
        train: TrainRecipe,
        *,
        teacher: Callable[[Batch], Prediction | SparsePrediction] | None = None,
        comparison: Comparison | None = None,
        seed: int = 0,
        checkpoints: Path | None = None,
        owner: str = "",
        evaluate: Callable[[], dict[str, float]] | None = None,
        log: Callable[[dict[str, Any]], None] | None = None,
        progress: Progress | None = None,
        accelerator: Accelerator | None = None,
        example_name: Callable[[int], str] | None = None,
        beside: str = "",
    ):
        self.accelerator = accelerator = accelerator or new_accelerator()
        check_accelerator(accelerator)
        self.processes = Processes(accelerator)
        self.student = student
        self.teacher = teacher
        self.comparison = comparison
        self.loss = loss if isinstance(loss, Total) else Total(terms=(loss,))
        self.features = features
        self.train = train
        self.seed = seed
        self.checkpoints = checkpoints
        self.owner = owner
        self.evaluate = evaluate
        self.log = log or (lambda figures: None)
        self._logs = any(self.processes.gather(log is not None))
        self.progress = progress or Silent()
        self.example_name = example_name or "training example {}".format
        self.beside = beside
        self.name = owner.split("@")[0] or "training"
        self.plan = Plan(
            micro_batch=train.per_device_train_batch_size,
            accumulation=train.gradient_accumulation_steps,
            devices=accelerator.num_processes,
            group=self.loss.group_size,
        )
        self.sharded: bool = accelerator.is_fsdp2
        if self.sharded and (self.loss.reads_activations or train.on_policy is not None):
            raise RecipeError(
                [
                    "accelerate: FSDP is only for losses that compare logits, on the data's own texts; use --multi_gpu (DDP)"
                ]
            )
        if self.sharded and (tied := tied_weights(student.model)):
            raise RecipeError(
                [
                    f"accelerate: FSDP cannot divide a student that shares {' and '.join(tied)}; use --multi_gpu (DDP)"
                ]
            )
        cut = None if self.loss.additive else check_groups(self.plan)
        if cut is not None:
            raise RecipeError([f"loss: {cut}"])
        if self.loss.needs_teacher and teacher is None:
            raise RecipeError(["loss: a term compares with a teacher, but no teacher was given"])
        if len(features) == 0:
            raise RecipeError(["data: there are no training examples"])
        self.own_texts: OwnTexts | None = None
        if train.on_policy is not None:
            if not self.loss.needs_teacher:
                raise RecipeError(["train.on_policy: no term of the loss compares with a teacher"])
            self.own_texts = OwnTexts(
                train.on_policy,
                features,
                student,
                teacher,
                seed=seed,
                batch_size=train.per_device_eval_batch_size,
            )

        # Devices see different examples: they hide different parts of them too.
        torch.manual_seed(seed + DEVICE_SEEDS * accelerator.process_index)
        self.step_number = 0
        self.tokens = 0
        self.seconds_before = 0.0  # an interruption
        self._started = time.monotonic()
        self.total_steps = total_steps(train, len(features), accelerator.num_processes)
        if train.freeze_embeddings:
            for module in student.model.modules():
                if isinstance(module, torch.nn.Embedding):
                    module.requires_grad_(False)
        if train.dropout is not None:
            set_dropout(student.model, train.dropout)
        # DDP waits for a gradient of every weight that is trained, and else for ever.
        self._waits_for_all = accelerator.num_processes > 1
        if self._waits_for_all:
            _freeze_unused(student, features, accelerator.device)
        # Weights that terms of the loss bring along: trained beside the student, kept in checkpoints, never in it.
        self.projections = self._build_projections()
        self._ask_teacher = teacher if self.loss.needs_teacher else None
        if isinstance(teacher, Teacher) and self.wanted[1]:
            self._ask_teacher = partial(teacher, wanted=self.wanted[1])
        optimizer, self.scheduler = make_optimizer(
            torch.nn.ModuleList([student.model, self.projections]), train, self.total_steps
        )
        student.model.train()
        self._outline = Outline(student.model) if self.sharded else None
        student.model, self.optimizer = accelerator.prepare(student.model, optimizer)
        if self._waits_for_all and not self.sharded:
            # A language model's buffers are constants: sending them around at every forward pass would only change
            # them under a pass that is still to go backward, and force all devices to make equally many.
            student.model.broadcast_buffers = False  # type: ignore[assignment]
        self._autocast = _wants_bf16(train, accelerator.device)
        self.figures = Figures()
        self.spikes = Spikes()
        self._resumed = False
        self._head: SharedHead | None = None

    def _build_projections(self) -> torch.nn.ModuleDict:
        self.models: ModelPair | None = None
        self.wanted = (Wanted(), Wanted())
        if not self.loss.reads_activations:
            return torch.nn.ModuleDict()
        if not isinstance(self.teacher, Teacher):
            raise RecipeError(
                [
                    "loss: a term compares what the models compute inside, so the teacher must run on every batch, "
                    f"found {type(self.teacher).__name__}"
                ]
            )
        shared = self.comparison.shared if isinstance(self.comparison, CrossAttention) else None
        self.models = ModelPair(
            self.student.shape,
            self.teacher.shape,
            self.student.origin,
            self.student.channels,
            self.student.vocabularies(self.teacher, shared),
        )
        # Its own draw: the student's dropout does not depend on whether a term has weights.
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            try:
                self.wanted = self.loss.wanted(self.models)
                return self.loss.build(self.models).to(self.accelerator.device)
            except ValueError as error:
                raise RecipeError([f"loss: {error}"]) from error

    def run(self) -> Student:
        """Train to the last step, continuing from the newest checkpoint if there is one.

        One process that SIGINT or SIGTERM asks to stop finishes its step, with the evaluation that belongs to it, and
        leaves a checkpoint before the signal takes its course; a second signal takes it at once. Several processes
        stop at once, each at a step of its own: they go on from the checkpoint before.

        Returns:
            The student, in inference mode.
        """
        if not self._resumed:
            self.resume()
        self.progress.begin(self.name, self.total_steps, self.step_number)
        self._started, tokens_before = time.monotonic(), self.tokens
        alone = self.accelerator.num_processes == 1
        with HeldBack() if alone else nullcontext() as stop:
            for batch in self._batches():
                self.step(batch)
                self._after_step(tokens_before)
                asked = stop is not None and stop.asked is not None
                due = self.step_number % self.train.save_steps == 0 and self.step_number < self.total_steps
                if self.checkpoints and (due or asked):
                    self._save()
                if stop is not None and asked:
                    stop.deliver()
        self.student.model = self.accelerator.unwrap_model(self.student.model)
        if self._outline:
            self.student.model = self._outline.filled(self.student.model)
        self.student.model.train(mode=False)
        return self.student

    def _after_step(self, tokens_before: int) -> None:
        """Log and tell where the training is, and evaluate where that is due."""
        if self._is_logged(self.step_number):
            figures = self._line() | {
                "tokens_per_second": round((self.tokens - tokens_before) / (time.monotonic() - self._started))
            }
            self.log({"step": self.step_number, **figures})
            self.progress.advance(self.step_number, self._told(figures))
        else:
            self.progress.advance(self.step_number)
        if self.evaluate and self.train.eval_steps and self.step_number % self.train.eval_steps == 0:
            self.student.model.train(mode=False)
            with enough_memory(
                f"{self.name}: evaluation at step {self.step_number}",
                "lower train.per_device_eval_batch_size",
            ):
                self.log({"step": self.step_number, **self.evaluate()})
            self.student.model.train()

    def _told(self, figures: Mapping[str, float]) -> str:
        """The figures that a person follows."""
        speed = f"{figures['tokens_per_second']:,} tokens/s"
        return "  ".join(filter(None, (f"loss {losses(figures)}", speed, self.beside)))

    def _line(self) -> dict[str, float]:
        """The figures since the last line of the log, of all devices, which must all call this."""
        figures = self.figures.taken(self.processes.gather, self.loss)
        if self.own_texts:
            logged = (self.step_number - 1) // self.train.logging_steps * self.train.logging_steps
            figures |= self.own_texts.figures(range(logged, self.step_number), self.processes.gather)
        return figures | {"learning_rate": float(self.scheduler.get_last_lr()[0])}

    def step(self, batch: list[int]) -> None:
        """One optimizer step on the examples of `batch`, forward pass by forward pass."""
        where = f"{self.name}: step {self.step_number + 1}"
        work, begun = self._work(batch), self._beginning()
        loss, totals = self.within_memory(where, lambda: self._add_up(work))
        loss = self._share(loss, begun.tokens)
        self._average_projections()
        if self._waits_for_all and work.reads_no_logits:
            self._forget_unreached()
        parameters = [p for _, p in self._trained() if p.grad is not None]
        norm = total_norm([p.grad for p in parameters if p.grad is not None])
        lost, length = torch.stack([loss, norm.to(loss)]).tolist()  # waits for the device once
        if not (math.isfinite(lost) and math.isfinite(length)):
            raise agreed_culprit(self, work, begun)
        if self.train.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.train.max_grad_norm, norm)
        self.figures.sums["gradient_norm"] = norm
        with enough_memory(where, "take a smaller student, or train.freeze_embeddings: true"):
            self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.step_number += 1
        self._warn_of_a_spike(lost)
        if self.loss.scheduled:
            rows_of = {name: rows for names, rows in work.rows.items() for name in names}
            figures = {
                name: float(self.accelerator.reduce(total, "sum")) / rows_of[name]
                for name, total in totals.items()
            }
            self.loss = self.loss.advance(figures, progress=self.step_number / self.total_steps)

    def _add_up(self, work: Work) -> tuple[Tensor, dict[str, Tensor]]:
        """The gradient of a step; this device's share of its loss, and the sum of each term's weighted values."""
        added = torch.zeros((), device=self.accelerator.device)
        totals: dict[str, Tensor] = {}
        pulled: dict[str, Tensor] = {}
        measured = self._logs and self._is_logged(self.step_number + 1) and self._share_logits(work.loss)
        for last, micro in _mark_last(self.plan.split(work.micro_batches)):
            with self.accelerator.no_sync(self.student.model) if not last else nullcontext():
                parts = [
                    (part, part.terms.evaluate(part.rows, self.projections))
                    for whole in self._parts(work, micro)
                    for part in self._across_devices(whole)
                ]
                means = [
                    part.rows.mean(part.terms.combine(values), total_weight=part.total)
                    for part, values in parts
                ]
                # Devices average their gradients: multiplying by their number makes the sum over the whole batch.
                loss = torch.stack(means).sum() * self.plan.devices
                if self._waits_for_all and work.reads_no_logits:
                    loss = loss + sum(part.rows.student[:0].sum() for part, _ in parts)
                for (part, values), mean in zip(parts, means, strict=True):
                    if part.own is not None:
                        mean = part.counted.mean(part.terms.combine(values), total_weight=part.total)
                    added += mean.detach()
                self.accelerator.backward(loss)
            for part, values in parts:
                for name, total in self.figures.add(part.counted, values).items():
                    totals[name] = totals.get(name, torch.zeros_like(total)) + total
                if measured:
                    for name, square in pulls(part).items():
                        pulled[name] = pulled.get(name, torch.zeros_like(square)) + square
        self.figures.pulled = {name: float(square) for name, square in pulled.items()}
        return added, totals

    def _is_logged(self, step: int) -> bool:
        return step % self.train.logging_steps == 0 or step == self.total_steps

    def _share_logits(self, loss: Total) -> bool:
        """Whether there are terms to compare, and all of them pull at one tensor: the logits as the student gave them."""
        return len(loss) > 1 and self.comparison is None and not loss.reads_activations

    def within_memory(self, where: str, work: Callable[[], Made]) -> Made:
        """Do what makes forward passes and no step; where memory runs out, do it again with half the examples in each.

        The failed attempt's gradients and figures are dropped and random numbers drawn again. Where checkpoints are
        kept one is made, so that a continued training splits its batches in the same way.

        Args:
            where: to name in what is said.
            work: asks `plan` how batches are split.

        Raises:
            ResourceError: a forward pass holds one example, or one group of a batch-wise loss; or several processes
                share the step, which would have to agree while some of them wait for the others' gradients.
        """
        begun = self._beginning()
        while True:
            try:
                return work()
            except Exception as error:
                if not ran_out_of_memory(error):
                    raise
                self.plan = self._smaller_plan(where, error)
            # Only now that the error is gone are the tensors of the failed attempt.
            from accelerate.utils.memory import clear_device_cache

            self._back_to(begun)
            clear_device_cache(garbage_collection=True)
            if self.checkpoints:
                self._save()

    def _smaller_plan(self, where: str, error: Exception) -> Plan:
        found = (
            f"{where}: out of memory with {self.plan.held} examples a forward pass ({what_was_wanted(error)})"
        )
        if self.plan.devices > 1:
            raise ResourceError(
                f"{found} in process {self.accelerator.process_index} of {self.plan.devices}; halve "
                "train.per_device_train_batch_size and double train.gradient_accumulation_steps: the gradient stays "
                "the same"
            ) from error
        smaller = self.plan.halved(whole_groups=not self.loss.additive)
        if smaller is None and self.plan.held == 1:
            raise ResourceError(
                f"{found}, which cannot be fewer; lower data.max_length, take a smaller student or teacher, or set "
                "train.freeze_embeddings: true or precision: bf16"
            ) from error
        if smaller is None:
            raise ResourceError(
                f"{found}, and a group of a batch-wise loss must not be cut; lower the loss's group_size or "
                "train.per_device_train_batch_size (either changes what is compared), or data.max_length"
            ) from error
        self.progress.say(
            f"{found}; goes on with {smaller.held} at once: the same batch, the same gradient, more forward passes"
        )
        return smaller

    def _beginning(self) -> Beginning:
        return Beginning(own_random(self.accelerator), self.tokens, self.figures.copied())

    def _back_to(self, begun: Beginning) -> None:
        """Forget the forward passes since."""
        for _, parameter in self._trained():
            parameter.grad = None
        restore_own(self.accelerator, begun.random)
        self.tokens, self.figures = begun.tokens, begun.figures.copied()

    def _warn_of_a_spike(self, loss: float) -> None:
        height = self.spikes.above(loss)
        if height is not None:
            self.progress.say(
                f"{self.name}: step {self.step_number}: loss {loss:.4g} is {height:.0f} standard deviations above the "
                f"{WINDOW} before it; if it does not come down again, lower learning_rate or max_grad_norm. Said once"
            )

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        yield from self.student.model.named_parameters()
        yield from self.projections.named_parameters(prefix="loss")

    def _share(self, loss: Tensor, tokens_before: int) -> Tensor:
        """The loss of a step on all devices; count the tokens that all of them have read since."""
        if self.plan.devices == 1:
            return loss
        mine = torch.stack([loss.double(), loss.new_tensor(self.tokens - tokens_before, dtype=torch.float64)])
        whole, read = self.accelerator.reduce(mine, "sum").unbind()
        self.tokens = tokens_before + int(read)
        return whole.to(loss.dtype)  # type: ignore[no-any-return]

    def _average_projections(self) -> None:
        """Do for the projections what the wrapped student does by itself: average gradients over devices."""
        parameters = list(self.projections.parameters())
        if self.plan.devices == 1 or not parameters:
            return
        # A device whose rows reach a weight not at all has no gradient for it. One that no device reaches is left alone.
        reached = torch.tensor([p.grad is not None for p in parameters], device=self.accelerator.device)
        for parameter, devices in zip(
            parameters, self.accelerator.reduce(reached.int(), "sum").tolist(), strict=True
        ):
            if devices:
                mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.accelerator.reduce(mine, reduction="mean")

    def _forget_unreached(self) -> None:
        """Take away gradients of 0 that only DDP has asked for: on one device these weights would have none."""
        for parameter in self.student.model.parameters():
            if parameter.grad is not None and not bool(parameter.grad.any()):
                parameter.grad = None

    def _across_devices(self, part: Part) -> list[Part]:
        """A part of the loss as it is, or, where groups span devices, batch-wise terms with the rows of all of them."""
        if not self.plan.spans_devices or part.terms.additive:
            return [part]
        alone = [term for term in part.terms if term.additive]
        rows, own = gather_rows(part.rows, self.accelerator)
        batchwise = Total(term for term in part.terms if not term.additive)
        together = Part(batchwise, rows, part.total, own)
        return [replace(part, terms=Total(alone)), together] if alone else [together]

    def _written(self, own_texts: OwnTexts, micro_batches: list[MicroBatch]) -> Work:
        """The student's own texts for these forward passes, and how many rows they make on all devices."""
        prompts = [i for index, _, _ in micro_batches for i in index]
        with (
            torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self._autocast),
            enough_memory(
                f"{self.name}: step {self.step_number + 1}, texts of its own",
                "lower train.per_device_eval_batch_size or train.on_policy.max_new_tokens",
            ),
        ):
            texts = own_texts.write(
                self.accelerator.unwrap_model(self.student.model), prompts, self.step_number
            )
        place = itertools.count()
        renumbered = [([next(place) for _ in index], group, weight) for index, group, weight in micro_batches]
        rows = torch.tensor(
            sum(texts.rows_of(index) for index, _, weight in renumbered if weight),
            device=self.accelerator.device,
        )
        loss = self.loss.against_teacher
        total = max(int(self.accelerator.reduce(rows, "sum")), 1)
        return Work(texts, renumbered, loss, {loss.names: total}, prompts)

    def _split(self) -> tuple[Total | None, Total | None]:
        """The terms that need no teacher and those that do, where these see other rows."""
        alone = [term for term in self.loss if not term.needs_teacher]
        compared = [term for term in self.loss if term.needs_teacher]
        return Total(alone) if alone else None, Total(compared) if compared else None

    def _rows_of(self, batch: list[int]) -> dict[tuple[str, ...], int]:
        """How many rows a whole batch has for the terms of these names: what their sums are divided by."""
        if self.comparison is None:
            return {self.loss.names: max(self.features.rows_of(batch, self.epoch), 1)}
        alone, compared = self._split()
        found = {alone.names: self.features.rows_of(batch, self.epoch)} if alone else {}
        if compared:
            found[compared.names] = self.comparison.rows_of(batch, self.epoch)
        return {names: max(rows, 1) for names, rows in found.items()}

    def _work(self, batch: list[int]) -> Work:
        """What a step on a batch is made on: the data's own examples, or, on policy, what the student writes there."""
        micro_batches = self.plan.micro_batches(batch, self.accelerator.process_index)
        if self.own_texts and self.own_texts.taken_at(self.step_number):
            return self._written(self.own_texts, micro_batches)
        return Work(self.features, micro_batches, self.loss, self._rows_of(batch))

    def _parts(self, work: Work, micro: MicroBatch) -> list[Part]:
        """What one forward pass gives: the terms of the loss, with the rows that they see."""
        index, group, weight = micro
        batch = work.data.batch(index, group, self.epoch).to(self.accelerator.device)
        batch = replace(batch, weight_N=batch.weight_N * weight)
        self.tokens += int(batch.inputs["input_ids"].numel())
        if self.comparison is None:
            return [Part(work.loss, self._rows(batch), work.rows[work.loss.names])]
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self._autocast):
            said = self.student(batch, self.wanted[0])
            alone, compared = self._split()
            parts = []
            if alone:
                own = align_classes(
                    said.logits_NC,
                    None,
                    label_N=batch.label_N,
                    weight_N=batch.weight_N,
                    group_N=batch.group_N,
                )
                parts.append(Part(alone, own, work.rows[alone.names]))
            if compared:
                assert self._ask_teacher is not None  # noqa: S101 - was checked
                turn = Turn(batch, self.epoch, said, self.student, self._ask_teacher, self.models, group)
                parts.append(Part(compared, self.comparison.rows(turn), work.rows[compared.names]))
        return parts

    def _rows(self, batch: Batch) -> Rows:
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self._autocast):
            teacher = self._ask_teacher(batch) if self._ask_teacher else None
            student = self.student(batch, self.wanted[0])
        if isinstance(teacher, SparsePrediction):
            return Rows(
                student=student.logits_NC,
                sparse=teacher.sparse,
                label=batch.label_N,
                weight=batch.weight_N,
                group=batch.group_N,
            )
        activations = None
        if self.models and student.activations and teacher and teacher.activations:
            activations = align_activations(
                student.activations, teacher.activations, batch.inputs, self.models, batch.rows_BT
            )
        student_NC, teacher_NC = student.logits_NC, None if teacher is None else teacher.logits_NC
        if teacher_NC is not None and batch.rows_BT is not None:
            student_NC, teacher_NC = self._same_columns(student_NC, teacher_NC)
        return align_classes(
            student_NC,
            teacher_NC,
            label_N=batch.label_N,
            weight_N=batch.weight_N,
            group_N=batch.group_N,
            activations=activations,
        )

    def _same_columns(self, student_NV: Tensor, teacher_NW: Tensor) -> tuple[Tensor, Tensor]:
        """Both models' logits over the tokens of their one tokenizer, where their heads pad these differently."""
        if student_NV.shape[1] == teacher_NW.shape[1]:
            return student_NV, teacher_NW
        if self._head is None:
            tokens = max(self.student.tokenizer.get_vocab().values()) + 1
            self._head = SharedHead(student_NV.shape[1], teacher_NW.shape[1], tokens)
            self.progress.say(f"{self.name}: {self._head.describe()}")
        return student_NV[:, : self._head.columns], teacher_NW[:, : self._head.columns]

    @property
    def seconds(self) -> float:
        """How long the training has gone on, with the time before an interruption."""
        return self.seconds_before + time.monotonic() - self._started

    @property
    def epoch(self) -> int:
        """How many times every example has been seen."""
        return self.step_number // self.plan.steps_per_epoch(len(self.features))

    def _batches(self) -> Iterator[list[int]]:
        per_epoch = self.plan.steps_per_epoch(len(self.features))
        while self.step_number < self.total_steps:
            done = self.step_number % per_epoch
            batches = epoch_batches(
                self.features.lengths,
                self.plan.batch,
                seed=self.seed,
                epoch=self.epoch,
                by_length=self.train.group_by_length,
            )
            yield from batches[done : done + self.total_steps - self.step_number]

    def _save(self) -> None:
        tensors, values = state_of(self)

        def save() -> None:
            assert self.checkpoints is not None  # noqa: S101 - who calls knows
            save_checkpoint(self.checkpoints, self.step_number, tensors, values)

        self.processes.first(save)

    def resume(self) -> int:
        """Go back to the newest whole checkpoint, if there is one.

        Returns:
            The step it stands at; 0 without one.

        Raises:
            CheckpointError: the only checkpoints there are damaged, or lack what this training goes on from.
            MismatchError: they belong to another training.
        """
        self._resumed = True
        if self.checkpoints is None:
            return 0
        checkpoint, problems = latest_checkpoint(self.checkpoints, self.owner)
        for problem in problems:
            self.progress.say(f"{problem}; the one before it is used")
        if checkpoint is None:
            return 0
        go_back(self, checkpoint)
        return self.step_number


def _freeze_unused(student: Student, features: DataSet, device: torch.device) -> None:
    """Freeze weights on which nothing that a model says depends: they get no gradient on one device either."""
    model: torch.nn.Module = student.model
    model.to(device)
    mode = model.training
    model.train(mode=False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    said = student(features.batch([0]).to(device)).logits_NC
    gradients = torch.autograd.grad(said.sum(), trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    model.train(mode=mode)


def _wants_bf16(train: TrainRecipe, device: torch.device) -> bool:
    if train.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return train.precision == "bf16"


def _mark_last(items: list[Any]) -> Iterator[tuple[bool, Any]]:
    for position, item in enumerate(items):
        yield position == len(items) - 1, item
