"""The teachers of one task: built, fetched, run, remembered or read from disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from distill.cache import (
    CachedEnsemble,
    CachedTeacher,
    CacheSpec,
    CacheSummary,
    EachAlone,
    header_of,
    write_cache,
)
from distill.engine import predict
from distill.engine.batches import Plan, total_steps
from distill.errors import ModelError
from distill.losses import Total
from distill.models import (
    EnsembleInTurn,
    EnsembleTeacher,
    MaskedTokens,
    RememberedTeacher,
    Student,
    Teacher,
)
from distill.models.loading import load_tokenizer
from distill.recipe import MemberRecipe, NewTokenizer
from distill.recipe.predictions import SPARSE_COUNTS
from distill.run_folder import fit_name
from distill.runs.job import Job
from distill.runs.keys import Keys

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

AnyTeacher = RememberedTeacher | Teacher | EnsembleTeacher | EachAlone | CachedTeacher | CachedEnsemble


class Teachers:
    """The teacher of one task, or several that are one to the student.

    Attributes:
        running: the teacher itself, once something wanted it to run beside the student.
        caches: what each cache written or found here holds, by the name of its teacher's fit.
    """

    def __init__(self, job: Job, keys: Keys):
        self.job, self.keys = job, keys
        self.running: Teacher | EnsembleTeacher | None = None
        self.caches: dict[str, CacheSummary] = {}
        self._remembered: RememberedTeacher | None = None
        self._cached: CachedTeacher | CachedEnsemble | None = None

    # From files or nothing.

    def new(self, part: MemberRecipe) -> Student:
        """A teacher that is yet to be fine-tuned."""
        head, labels, seed = self.job.reading.head, self.job.task.labels, self.job.seed_of(part)
        if part.config is None:
            return Student.load(self.job.source(part), kind=head, labels=labels, seed=seed)
        tokenizer = self.tokenizer(part.tokenizer)
        return Student.from_config(part.config, tokenizer, kind=head, labels=labels, seed=seed)

    def tokenizer(self, wanted: str | NewTokenizer | None) -> PreTrainedTokenizerBase:
        """The one a model from scratch reads: named, made here, or the (first) teacher's.

        Raises:
            ModelError: a new one is wanted for a model that is no decoder.
        """
        if isinstance(wanted, str):
            return load_tokenizer(self.job.find(wanted))
        if wanted is None:
            return load_tokenizer(self.job.files(0))
        if self.job.recipe.architecture != "decoder":
            raise ModelError(
                "tokenizer: a new one is for decoders, which need no special tokens; name a tokenizer"
            )
        return self.job.corpus.new_tokenizer(wanted.train)

    def load(self) -> Teacher | EnsembleTeacher:
        """The teacher that knows the task."""
        if not self.job.several:
            return self.load_member(0)
        members = [self.load_member(number) for number in range(len(self.job.parts))]
        return EnsembleTeacher(members, self.job.mean)

    def load_to_answer(self) -> Teacher | EnsembleTeacher:
        """The same, but several that are cached one after the other are in memory one after the other too."""
        if not self.job.several or self.job.recipe.teacher.cache is None:
            return self.load()
        members = [partial(self.load_member, number) for number in range(len(self.job.parts))]
        return EnsembleInTurn(members, self.job.mean)

    def load_member(self, number: int) -> Teacher:
        """One of the teachers."""
        return Teacher.load(
            self.job.files(number),
            kind=self.job.reading.head,
            labels=self.job.task.labels,
            precision=self.job.parts[number].precision,
            device=self.job.accelerator.device,
        )

    # What a student's loss reads.

    def for_loss(self, loss: Total) -> Callable[[Student], AnyTeacher]:
        """How a student gets what its loss reads of the teacher: from disk, from memory, or from the teacher itself."""
        if self.job.recipe.teacher.cache is not None:
            return self.read_from_disk
        if self.job.recipe.teacher.alone:
            return lambda student: EachAlone(self.run_beside(student))
        return self.run_beside if self.runs_for(loss) else self._remember

    def runs_for(self, loss: Total) -> bool:
        """Whether the teacher must run beside the student: what it says is too much to be remembered."""
        return self.job.reading.speaks or loss.reads_activations

    def run_beside(self, student: Student) -> Teacher | EnsembleTeacher:
        """The teacher itself, for losses that compare it with the student token by token.

        Raises:
            ModelError: the two do not read the same tokens.
        """
        running = self.as_it_is()
        if self.job.recipe.alignment is not None:
            return running
        tokens = self._own_tokens(running, student)
        return running if tokens is None else running.reading(tokens)

    def as_it_is(self) -> Teacher | EnsembleTeacher:
        """The teacher itself, loaded once."""
        if self.running is None:
            self.running = self.load()
        return self.running

    def read_from_disk(self, student: Student) -> CachedTeacher | CachedEnsemble:
        """The teachers' predictions, written where they are not on disk yet, read by all seeds.

        Raises:
            ModelError: teachers and student do not read the same tokens.
            CheckpointError: a cache is damaged, of another teacher, or cannot be written.
        """
        if self._cached is None:
            # One teacher after the other: no two of them are in memory together.
            members = [self._cached_member(number, student) for number in range(len(self.job.parts))]
            self._cached = CachedEnsemble(members, self.job.mean) if self.job.several else members[0]
        return self._cached

    def _remember(self, student: Student) -> RememberedTeacher:
        """The teacher's logits on the training examples, computed once for all seeds."""
        if self._remembered is None:
            # One teacher after the other: no two of them are in memory together.
            logits = [self._read_by(number) for number in range(len(self.job.parts))]
            logits_NC = self.job.mean(logits) if self.job.several else logits[0]
            self._remembered = RememberedTeacher(logits_NC.to(self.job.accelerator.device))
        return self._remembered

    def _read_by(self, number: int) -> Tensor:
        """What one teacher says of the training examples."""
        teacher = self.load_member(number)
        examples = self.job.examples_for(teacher)
        name = fit_name("teacher", self.job.task.name, 0, self.job.member(number))
        self.job.progress.begin(f"{name} reads", len(examples))
        logits_NC = predict(
            teacher,
            examples,
            batch_size=self.job.recipe.train.per_device_eval_batch_size,
            device=self.job.accelerator.device,
            progress=self.job.progress,
        )
        self.job.progress.end(f"{len(examples)} training examples")
        return logits_NC

    def _own_tokens(self, teacher: Teacher | EnsembleTeacher, student: Student) -> tuple[int, ...] | None:
        """A teacher's token for each of the student's, where the student has only some of them; None if it has all.

        Raises:
            ModelError: the student's tokens are others.
        """
        theirs, ours = teacher.tokenizer.get_vocab(), student.tokenizer.get_vocab()
        if theirs == ours:
            return None
        # The training examples hold kept tokens only, so that both tokenizers cut them into the same pieces.
        if student.tokens and all(theirs.get(name) == student.tokens[token] for name, token in ours.items()):
            return student.tokens
        speaks = self.job.reading.speaks
        advice = "say how to align them (alignment: {kind: match}), or " if speaks else ""
        raise ModelError(
            "loss: a term compares student and teacher token by token, but they have different tokenizers; "
            f"{advice}give the student the teacher's"
        )

    # On disk.

    def _cached_member(self, number: int, student: Student) -> CachedTeacher:
        job = self.job
        teacher, part = self.load_member(number), job.parts[number]
        tokens = self._own_tokens(teacher, student)
        name = fit_name("teacher", job.task.name, 0, job.member(number))
        folder = job.folder.path / "teacher-cache" / name
        if job.recipe.cache is not None:
            facts = json.dumps([self.keys.part(part), asdict(self._cache_spec), tokens])
            content = hashlib.sha256(facts.encode()).hexdigest()
            folder = Path(job.recipe.cache) / f"predictions-{name}-{content[:16]}"
        header = header_of(
            teacher.model,
            teacher.tokenizer,
            labels=job.task.labels,
            max_length=job.recipe.data.max_length,
            template=f"{type(job.reading).__name__}{' in a chat' if job.recipe.data.chat else ''}",
            token_map=tokens,
        )
        self.caches[name] = job.processes.first(
            lambda: write_cache(
                folder,
                header,
                job.examples_for(student),
                teacher if tokens is None else teacher.reading(tokens),
                self._cache_spec,
                epochs=self._drawn_epochs(student),
                device=job.accelerator.device,
                progress=job.progress,
            )
        )
        return CachedTeacher.open(folder, header)

    @property
    def _cache_spec(self) -> CacheSpec:
        """What the recipe keeps, at the temperature and in the number that the loss's terms want."""
        wanted = self.job.recipe.teacher.cache
        assert wanted is not None  # noqa: S101 - who calls knows
        if wanted.keep == "full":
            return CacheSpec()
        term = next(term for term in self.job.recipe.loss if term.needs_teacher)
        return CacheSpec(
            wanted.keep,
            getattr(term, SPARSE_COUNTS[wanted.keep]),
            getattr(term, "temperature", 1.0),
            wanted.dtype,
            wanted.seed,
        )

    def _drawn_epochs(self, student: Student) -> int:
        """How many different sets of examples the training sees: one, unless tokens are hidden anew in each epoch."""
        examples, train = self.job.examples_for(student), self.job.train_of("student")
        if not isinstance(examples, MaskedTokens):
            return 1
        devices = self.job.accelerator.num_processes
        plan = Plan(
            micro_batch=train.per_device_train_batch_size,
            accumulation=train.gradient_accumulation_steps,
            devices=devices,
        )
        return -(-total_steps(train, len(examples), devices) // plan.steps_per_epoch(len(examples)))
