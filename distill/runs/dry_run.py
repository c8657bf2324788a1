"""A recipe's preflight without its run: models are built and one batch is tried, nothing is trained or kept."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill.engine.preflight import Preflight
from distill.losses import Total
from distill.models import Batch, Student
from distill.run_folder import RunFolder
from distill.runs.corpus import Corpus
from distill.runs.preflight import measure
from distill.runs.run import _quiet_libraries, load_data
from distill.runs.workbench import Fit, Workbench
from distill.tasks import Answer, Example

if TYPE_CHECKING:
    from collections.abc import Callable

    from distill.models import Prediction
    from distill.progress import Progress
    from distill.recipe import Recipe


def dry_run(recipe: Recipe, *, progress: Progress | None = None) -> dict[str, Preflight]:
    """What one real batch tells about the first student of each task.

    A teacher that the run would train stands in as it is before that, without a score.

    Args:
        recipe: what would be run.
        progress: told what is going on; default nothing.

    Raises:
        DataError: the data is missing, or nothing in it is to be learnt.
        RecipeError: the gradient is not finite.
        ModelError: a model is missing.
    """
    _quiet_libraries()
    from accelerate import Accelerator

    from distill.progress import Silent

    data = load_data(recipe)
    corpus = Corpus(recipe, [data[name] for name in recipe.data.tasks])
    accelerator = Accelerator()
    found: dict[str, Preflight] = {}
    for name in recipe.data.tasks:
        with tempfile.TemporaryDirectory(prefix="distill-") as folder:
            bench = Workbench(
                recipe, RunFolder(folder), data[name], [], corpus, accelerator, progress or Silent()
            )
            found[name] = _tried(bench)
        accelerator.free_memory()
    return found


def _tried(bench: Workbench) -> Preflight:
    untrained = [number for number, part in enumerate(bench.parts) if part.train is not None]
    for number in untrained:
        member = number if bench.ensemble else None
        bench._new_teacher_model(bench.parts[number]).save(
            bench.folder.model("teacher", bench.task.name, member)
        )
    recipe, seed = bench.recipe, bench.recipe.seeds[0]
    loss = Total(terms=recipe.loss)
    student = bench._new_student(seed)
    teacher: Callable[[Student], Callable[[Batch], Prediction]] | None = None
    if loss.needs_teacher:
        # Neither answers of the whole training set nor a cache of them: one batch does not need that.
        runs = bench.reading.speaks or loss.reads_activations
        teacher = bench._running_teacher if runs else lambda student: _asked(bench)
    fit = Fit("student", bench.task.name, seed, key="")
    train = recipe.train.for_task(bench.task.name)  # type: ignore[arg-type]
    engine = bench._engine(fit, student, loss, train, teacher, None)

    def answers(examples: Sequence[Example]) -> list[Answer]:
        return bench.reading.answer(examples, bench._running or bench._load_teacher()).answers

    if not untrained:
        return measure(bench, engine, answers)
    note = "the run trains the teacher first: measured with it as it is before that, its score left out"
    return measure(bench, engine, None, [note])


def _asked(bench: Workbench) -> Callable[[Batch], Prediction]:
    """A classifier that is asked about each batch once. In a run it has answered all examples before training."""
    teacher = bench._load_teacher()
    features = bench.reading.examples(bench.training, teacher, seed=bench.recipe.data.seed)
    remembered: dict[tuple[int, ...], Prediction] = {}

    def ask(batch: Batch) -> Prediction:
        index = tuple(batch.index_B.tolist())
        if index not in remembered:
            remembered[index] = teacher(features.batch(index).to(batch.index_B.device))
        return remembered[index]

    return ask
