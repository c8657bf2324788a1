"""A recipe's preflight without its run: models are built and one batch is tried, nothing is trained or kept."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from distill.engine.preflight import Preflight
from distill.losses import Total
from distill.models import Batch, Student
from distill.models.source import trusted_repositories
from distill.processes import new_accelerator
from distill.run_folder import RunFolder
from distill.runs.corpus import Corpus
from distill.runs.job import Job
from distill.runs.preflight import measure
from distill.runs.run import _quiet_libraries, load_data
from distill.runs.teachers import Teachers
from distill.runs.workbench import Fit, Workbench
from distill.tasks import Answer, Example

if TYPE_CHECKING:
    from collections.abc import Callable

    from distill.models import Prediction
    from distill.progress import Progress
    from distill.recipe import Recipe


def dry_run(
    recipe: Recipe, *, progress: Progress | None = None, trust_remote_code: Iterable[str] = ()
) -> dict[str, Preflight]:
    """What one real batch tells about the first student of each task.

    A teacher that the run would train stands in as it is before that, without a score.

    Args:
        recipe: what would be run.
        progress: told what is going on; default nothing.
        trust_remote_code: as `run` takes it.

    Raises:
        DataError: the data is missing, or nothing in it is to be learnt.
        RecipeError: the gradient is not finite.
        ModelError: a model is missing.
    """
    _quiet_libraries()
    from distill.progress import Silent

    trusted = trusted_repositories(trust_remote_code)
    data = load_data(recipe)
    corpus = Corpus(recipe, [data[name] for name in recipe.data.tasks])
    accelerator = new_accelerator()
    found: dict[str, Preflight] = {}
    for name in recipe.data.tasks:
        with tempfile.TemporaryDirectory(prefix="distill-") as folder:
            place, told = RunFolder(folder), progress or Silent()
            job = Job(recipe, place, data[name], [], corpus, accelerator, told, trusted)
            found[name] = _tried(Workbench(job))
        accelerator.free_memory()
    return found


def _tried(bench: Workbench) -> Preflight:
    job, teachers = bench.job, bench.teachers
    untrained = [number for number, part in enumerate(job.parts) if part.train is not None]
    for number in untrained:
        folder = job.folder.model("teacher", job.task.name, job.member(number))
        teachers.new(job.parts[number]).save(folder)
    seed = job.recipe.seeds[0]
    loss = Total(terms=job.recipe.loss)
    student = bench.students.new(seed)
    teacher: Callable[[Student], Callable[[Batch], Prediction]] | None = None
    if loss.needs_teacher:
        # Neither answers of the whole training set nor a cache of them: one batch does not need that.
        teacher = teachers.run_beside if teachers.runs_for(loss) else lambda student: _asked(job, teachers)
    fit = Fit("student", job.task.name, seed, key="")
    engine = bench.engine(fit, student, loss, job.train_of("student"), teacher, None)

    def answers(examples: Sequence[Example]) -> list[Answer]:
        return job.reading.answer(examples, teachers.running or teachers.load()).answers

    if not untrained:
        return measure(bench, engine, answers)
    note = "the run trains the teacher first: measured with it as it is before that, its score left out"
    return measure(bench, engine, None, [note])


def _asked(job: Job, teachers: Teachers) -> Callable[[Batch], Prediction]:
    """A classifier that is asked about each batch once. In a run it has answered all examples before training."""
    teacher = teachers.load()
    features = job.reading.examples(job.training, teacher, seed=job.recipe.data.seed)
    remembered: dict[tuple[int, ...], Prediction] = {}

    def ask(batch: Batch) -> Prediction:
        index = tuple(batch.index_B.tolist())
        if index not in remembered:
            remembered[index] = teacher(features.batch(index).to(batch.index_B.device))
        return remembered[index]

    return ask
