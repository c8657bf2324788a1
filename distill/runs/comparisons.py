"""How the students of one task are compared with a teacher that has other tokens."""

from __future__ import annotations

from distill.alignment import AlignedExample, Coverage, TokenReader
from distill.engine.comparison import Aligned, Comparison, CrossAttention, Reduced
from distill.losses import Total
from distill.models import DataSet, Student
from distill.runs.job import Job
from distill.runs.teachers import Teachers


class Comparisons:
    """Aligns a task's training examples once, for all students."""

    def __init__(self, job: Job, teachers: Teachers):
        self.job, self.teachers = job, teachers
        self._together: tuple[DataSet, DataSet, list[AlignedExample]] | None = None
        self._told = False

    def examples(self, student: Student) -> tuple[DataSet, DataSet, list[AlignedExample]]:
        """The training examples in the student's and the teacher's tokens. The baseline reads them too."""
        if self._together is None:
            self._together = self.job.reading.together(
                self.job.training, student, self.teachers.as_it_is(), seed=self.job.recipe.data.seed
            )
        return self._together

    def of(self, student: Student, loss: Total) -> Comparison:
        """How the terms of a loss see student and teacher; what is aligned is said once."""
        wanted = self.job.recipe.alignment
        assert wanted is not None  # noqa: S101 - who calls knows
        own, theirs, examples = self.examples(student)
        readers = TokenReader(student.tokenizer), TokenReader(self.teachers.as_it_is().tokenizer)
        made: Comparison
        if wanted.kind == "cross_attention":
            made = CrossAttention(own, theirs, readers=readers)
        elif wanted.kind == "reduce":
            made = Reduced(own, theirs, tokenizer=student.tokenizer, readers=readers, wanted=wanted)
        else:
            made = Aligned(
                own,
                theirs,
                examples,
                shift=1 if self.job.reading.head == "causal_lm" else 0,
                readers=readers,
                wanted=wanted,
                temperature=next(
                    (getattr(term, "temperature", 1.0) for term in loss if term.needs_teacher), 1.0
                ),
            )
        if not self._told:
            self._told = True
            self._tell(examples, made)
        return made

    def _tell(self, examples: list[AlignedExample], made: Comparison) -> None:
        found = sum((example.coverage for example in examples), Coverage())
        tokens = found.student_tokens + found.student_left
        self.job.progress.say(
            f"student-{self.job.task.name}: {found.student_tokens / max(tokens, 1):.1%} of its tokens stand in "
            f"{found.groups:,} groups that both models read, {found.single / max(found.groups, 1):.1%} of them of "
            f"one token on each side; {made.vocabulary.describe()}"
        )
