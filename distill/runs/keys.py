"""What decides a fit's weights and answers, as a digest: a fit is done again exactly when one of these changes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import asdict
from functools import cached_property
from typing import Any

from distill.losses import Total
from distill.recipe import MemberRecipe, NewTokenizer, StudentRecipe
from distill.run_folder import Role
from distill.runs.job import Job


class Keys:
    """The keys of one task's fits."""

    def __init__(self, job: Job):
        self.job = job

    @cached_property
    def teacher(self) -> str:
        """Of the teacher, or of all of them and their mean."""
        if not self.job.several:
            return self.part(self.job.parts[0])
        wanted = self.job.recipe.teacher
        how = (
            [self.part(part) for part in self.job.parts],
            wanted.mean,
            wanted.weights,
            self.job.mean.temperature,
        )
        return self._key("teacher", self.job.recipe.seeds[0], how, None)

    def part(self, part: MemberRecipe) -> str:
        """Of one teacher."""
        train = self.job.train_of_part(part)
        how = asdict(train) if train else "fine-tuned"
        return self._key("teacher", self.job.seed_of(part), how, None, part)

    def student(self, seed: int, loss: Total) -> str:
        """Of a student."""
        return self._key("student", seed, [asdict(term) for term in loss.terms], self.teacher)

    def baseline(self, seed: int) -> str:
        """Of the same student without a teacher."""
        return self._key("baseline", seed, "labels", None)

    def _origin(self, part: MemberRecipe) -> Any:
        """What tells the weights that a teacher starts from: the digest of its files, or its config."""
        if part.config is None:
            return self.job.source(part).digest
        named = isinstance(part.tokenizer, str)
        return dict(part.config), self.job.find(part.tokenizer).digest if named else part.tokenizer  # type: ignore[arg-type]

    def _key(
        self, role: Role, seed: int, how: Any, teacher_key: str | None, part: MemberRecipe | None = None
    ) -> str:
        """Digest of everything that decides a fit's weights and answers."""
        recipe = self.job.recipe
        wanted = recipe.student
        start: Any = None if role == "teacher" else asdict(wanted)
        if role != "teacher" and wanted.model is not None:
            start = self.job.find(wanted.model, wanted.revision).digest, start
        asked = self.job.parts if part is None else (part,)
        # A student may take its tokens from the teacher's.
        started: tuple[MemberRecipe | StudentRecipe, ...] = (
            asked if role == "teacher" else (*self.job.parts, wanted)
        )
        aligned: Any = None
        if recipe.alignment is not None and role == "student":
            aligned = asdict(recipe.alignment)
        elif recipe.alignment is not None and role == "baseline":
            # What is hidden from an encoder is then what both models read as a whole; a decoder reads as ever.
            aligned = recipe.architecture == "encoder"
        # A teacher that is trained here is trained in float32, whatever it teaches in.
        teaches = role != "baseline" and (part is None or part.train is None)
        facts = {
            "role": role,
            "seed": seed,
            "how": how,
            "train": None if role == "teacher" else asdict(self.job.train_of(role)),
            "teacher": teacher_key,
            "teacher_model": self._origin(part or self.job.parts[0]),
            "student": start,
            "precision": [each.precision for each in asked] if teaches else None,
            "corpus": self.job.corpus.digests if any(_reads_corpus(start) for start in started) else None,
            "data": self.job.data.sha256,
            "diagnostics": [data.sha256 for data in self.job.diagnostics],
            "architecture": recipe.architecture,
            "alignment": aligned,
            "max_length": recipe.data.max_length,
            "chat": recipe.data.chat,
            "negatives": recipe.data.negatives,
            "data_seed": recipe.data.seed,
            "devices": self.job.accelerator.num_processes,
            "versions": {
                name: importlib.metadata.version(name)
                for name in (
                    "distill",
                    "torch",
                    "transformers",
                    *(("peft",) if start and wanted.adapter else ()),
                )
            },
        }
        teacher = recipe.teacher
        if role == "student" and (teacher.cache or teacher.alone):
            facts["asked"] = teacher.alone, teacher.cache and asdict(teacher.cache)
        if (
            wanted.from_teacher is not None
            and wanted.from_teacher.weights == "fine_tuned"
            and role == "baseline"
        ):
            facts["teacher"] = self.teacher
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _reads_corpus(start: MemberRecipe | StudentRecipe) -> bool:
    """Whether the training texts of all tasks decide a model's tokens."""
    cut = start.from_teacher if isinstance(start, StudentRecipe) else None
    return isinstance(start.tokenizer, NewTokenizer) or (cut is not None and cut.vocabulary != "teacher")
