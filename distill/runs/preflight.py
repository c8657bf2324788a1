"""What a run finds out right before the first student of a task is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from distill.engine.preflight import Preflight, Scores, examples_to_score, preflight, scores_of
from distill.engine.token_differences import TokenDifferences, TokenFacts, head_columns
from distill.models import EnsembleTeacher, Teacher
from distill.models.loading import load_tokenizer
from distill.models.recording import unwrapped
from distill.run_folder import fit_name, read_json, write_json
from distill.tasks import Answer, Example, read_predictions

if TYPE_CHECKING:
    from distill.engine import Engine
    from distill.runs.job import Job
    from distill.runs.workbench import Workbench


def look_ahead(bench: Workbench, engine: Engine) -> None:
    """Measure, say and keep what a student's training will be like; the teacher's answers are stored already.

    Raises:
        DataError, RecipeError: see `distill.engine.preflight.preflight`.
    """
    job = bench.job
    task = job.task.name
    teacher = fit_name("teacher", task, job.recipe.seeds[0])

    def answers(examples: Sequence[Example]) -> list[Answer]:
        asked = {example.id for example in examples}
        stored = read_predictions(job.folder.predictions(teacher, task))
        return [answer for answer in stored if answer.id in asked]

    found = measure(bench, engine, answers)

    def keep() -> None:
        for line in found.as_text().splitlines():
            job.progress.say(line)
        path = job.folder.preflight
        write_json(path, (read_json(path) if path.is_file() else {}) | {task: found.as_dict()})

    job.processes.first(keep)


def measure(
    bench: Workbench,
    engine: Engine,
    teacher_answers: Callable[[Sequence[Example]], list[Answer]] | None,
    notes: Sequence[str] = (),
) -> Preflight:
    """Measure what a student's training will be like.

    Args:
        bench: where it is to be trained.
        engine: about to train it.
        teacher_answers: what the teacher says of validation examples; None where it is not trained.
        notes: what else a reader should know.
    """
    job = bench.job
    validation = job.data.validation
    chosen = examples_to_score(validation)
    examples = [validation[index] for index in chosen]

    def scores() -> Scores:
        assert teacher_answers is not None  # noqa: S101 - is not called otherwise
        student = job.reading.answer(examples, engine.student).answers
        return scores_of(
            job.task, job.data.train, examples, teacher=teacher_answers(examples), student=student
        )

    return preflight(
        engine,
        f"student-{job.task.name}",
        tokens=_differences(job, bench.teachers.running, engine) if engine.loss.needs_teacher else None,
        baseline=job.recipe.baseline,
        scores=None if teacher_answers is None else scores,
        notes=notes,
    )


def _differences(job: Job, running: Teacher | EnsembleTeacher | None, engine: Engine) -> TokenDifferences:
    student, speaks = engine.student, job.reading.speaks
    if isinstance(running, EnsembleTeacher):
        running = running.members[0]
    return TokenDifferences(
        TokenFacts.of(student.tokenizer, head_columns(unwrapped(student.model)) if speaks else None),
        TokenFacts.of(
            load_tokenizer(job.files(0)),
            head_columns(unwrapped(running.model)) if speaks and running is not None else None,
        ),
        chat=job.recipe.data.chat,
        aligned=job.recipe.alignment is not None or not speaks,
        trimmed=student.tokens is not None,
    )
