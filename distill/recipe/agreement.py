"""Where the parts of a recipe contradict each other, each mistake with its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill.losses import AnyLoss

from .predictions import SPARSE_COUNTS, SPARSE_LOSSES
from .student import StudentRecipe, StudentVocabulary
from .teacher import CacheRecipe, TeacherRecipe
from .wording import Mistake, Place

if TYPE_CHECKING:
    from .data import DataRecipe
    from .schema import Recipe
    from .training import TrainRecipe

# The losses that take columns of different meaning.
SORTING = ("sorted_transport", "multi_level_transport")


def contradictions(recipe: Recipe) -> list[Mistake]:
    """Everything in a recipe that is right by itself and wrong beside the rest."""
    mistakes = data_mistakes(recipe)
    mistakes += alignment_mistakes(recipe)
    mistakes += teacher_mistakes(recipe.teacher, recipe.data)
    mistakes += ensemble_mistakes(recipe.teacher, recipe.loss)
    classifies = recipe.architecture == "encoder" and recipe.data.source != "text"
    mistakes += cache_mistakes(recipe.teacher, recipe.loss, classifies=classifies)
    mistakes += start_mistakes(recipe.teacher, recipe.student)
    mistakes += group_mistakes(recipe.loss, recipe.train, recipe.data)
    return mistakes + on_policy_mistakes(recipe)


def data_mistakes(recipe: Recipe) -> list[Mistake]:
    """Data or training that the architecture or the adapter does not go with."""
    mistakes: list[Mistake] = []
    if recipe.data.chat and (recipe.architecture != "decoder" or recipe.data.source == "text"):
        mistakes.append((("data", "chat"), "is only for tasks with architecture decoder; leave it out"))
    if recipe.architecture == "encoder_decoder" and recipe.data.source == "text":
        mistakes.append(
            (("architecture",), "must be encoder or decoder with data.source text, found encoder_decoder")
        )
    freezes = [recipe.train, *(recipe.train.for_task(task) for task in recipe.train.per_task)]
    if recipe.student.adapter is not None and any(train.freeze_embeddings for train in freezes):
        mistakes.append(
            (("train", "freeze_embeddings"), "is what student.adapter does anyway; leave one of them out")
        )
    return mistakes


def on_policy_mistakes(recipe: Recipe) -> list[Mistake]:
    """Texts of the student's own where it writes none, or nobody corrects them."""
    if recipe.train.on_policy is None:
        return []
    place: Place = ("train", "on_policy")
    mistakes: list[Mistake] = []
    if recipe.architecture != "decoder":
        mistakes.append(
            (
                place,
                f"is only for a decoder, which continues texts, found architecture {recipe.architecture}",
            )
        )
    if not any(term.needs_teacher for term in recipe.loss):
        mistakes.append(
            (
                place,
                "needs a loss with a term that compares with the teacher: the student's texts have no labels",
            )
        )
    return mistakes


def teacher_mistakes(teacher: TeacherRecipe, data: DataRecipe) -> list[Mistake]:
    """A teacher that is one model, not fine-tuned, for several tasks."""
    mistakes: list[Mistake] = []
    for number, part in enumerate(teacher.parts):
        if part.model and part.train is None and "{task}" not in part.model and len(data.tasks) > 1:
            place: Place = ("teacher", "members", number) if teacher.members else ("teacher",)
            mistakes.append(
                (
                    (*place, "model"),
                    f"must hold {{task}}, one fine-tuned model a task, since teacher.train is not given and data.tasks "
                    f"has {len(data.tasks)} tasks, found {part.model!r}",
                )
            )
    return mistakes


def alignment_mistakes(recipe: Recipe) -> list[Mistake]:
    """An alignment that the models, the data or the terms of the loss cannot use."""
    wanted = recipe.alignment
    if wanted is None:
        return _unaligned_mistakes(recipe)
    place: Place = ("alignment", "kind")
    mistakes: list[Mistake] = []
    if recipe.teacher.cache is not None:
        mistakes.append((("teacher", "cache"), "is of the student's own tokens; leave it or alignment out"))
    if recipe.train.on_policy is not None:
        mistakes.append(
            (("train", "on_policy"), "needs a teacher with the student's tokens; leave alignment out")
        )
    decodes = recipe.architecture != "encoder"
    if not decodes and recipe.data.source != "text":
        mistakes.append((("alignment",), "is for language models; a classifier's classes need none"))
    elif wanted.kind in ("spans", "chunks", "cross_attention") and not decodes:
        mistakes.append((place, f"must be match, shared or reduce for an encoder, found {wanted.kind}"))
    elif wanted.kind == "reduce" and decodes:
        mistakes.append((place, "must be match, shared, spans, chunks or cross_attention, found reduce"))
    terms = [(index, term) for index, term in enumerate(recipe.loss) if term.needs_teacher]
    for index, term in terms:
        if (term.kind == "dual_space") != (wanted.kind == "cross_attention"):
            mistakes.append(
                (
                    ("loss", index),
                    f"{term.kind} cannot be used with alignment.kind {wanted.kind}; cross_attention is for dual_space",
                )
            )
        elif term.kind == "dual_space":
            continue
        elif term.reads_activations:
            mistakes.append(
                (
                    ("loss", index),
                    f"{term.kind} compares models token by token, which alignment says are different; leave one out",
                )
            )
        elif (wanted.kind == "spans") != (term.kind in SORTING):
            sorting = " and ".join(SORTING)
            mistakes.append(
                (
                    ("loss", index),
                    f"must be {sorting} with alignment.kind spans, found {term.kind}"
                    if wanted.kind == "spans"
                    else f"{term.kind} is for alignment.kind spans, found {wanted.kind}",
                )
            )
    temperatures = {getattr(term, "temperature", 1.0) for _, term in terms}
    if wanted.kind == "shared" and len(temperatures) > 1:
        mistakes.append(
            (place, "shared needs terms of one temperature: that of the class of all other tokens")
        )
    return mistakes


def _unaligned_mistakes(recipe: Recipe) -> list[Mistake]:
    """A language model whose new tokenizer cannot be its teacher's, and nothing that says how to compare them."""
    cut = recipe.student.from_teacher
    new = cut is not None and isinstance(cut.vocabulary, StudentVocabulary) and cut.vocabulary.train
    speaks = recipe.architecture != "encoder" or recipe.data.source == "text"
    if not (new and speaks and any(term.needs_teacher for term in recipe.loss)):
        return []
    return [
        (
            ("student", "from_teacher", "vocabulary"),
            "gives the student other tokens than its teacher's; say how to compare them, such as "
            "alignment: {kind: shared}",
        )
    ]


def ensemble_mistakes(teacher: TeacherRecipe, loss: tuple[AnyLoss, ...]) -> list[Mistake]:
    """A mean of probabilities is taken at one temperature, so the terms must have one."""
    found = {getattr(term, "temperature", 1.0) for term in loss if term.needs_teacher}
    if teacher.members is None or teacher.mean == "logits" or len(found) < 2:
        return []
    shown = " and ".join(f"{temperature:g}" for temperature in sorted(found))
    return [
        (
            ("teacher", "mean"),
            f"must be logits where terms of the loss have different temperatures, found {shown}: a mean of "
            "probabilities is one at one temperature",
        )
    ]


def cache_mistakes(
    teacher: TeacherRecipe, loss: tuple[AnyLoss, ...], *, classifies: bool = False
) -> list[Mistake]:
    """A cache that the loss cannot be computed from, or that is of no use."""
    cache = teacher.cache
    at: Place = ("teacher", "cache" if cache else "alone")
    if cache is None and not teacher.alone:
        return []
    if cache is not None and teacher.alone:
        return [
            (("teacher", "alone"), "stands beside cache, which asks about each example alone; leave it out")
        ]
    if classifies:
        return [
            (
                at,
                "is for language models: a classifier's few logits are always computed once and held in memory; "
                "leave it out",
            )
        ]
    terms = [(index, term) for index, term in enumerate(loss) if term.needs_teacher]
    if not terms:
        return [(at, "is of no use: no term of the loss reads a teacher; leave it out")]
    for index, term in terms:
        if term.reads_activations:
            return [
                (
                    at,
                    f"holds no activations, which loss.{index} ({term.kind}) compares; leave one of them out",
                )
            ]
    if cache is None or cache.keep == "full":
        return []
    if teacher.members is not None:
        return [((*at, "keep"), f"must be full with members, whose logits are averaged, found {cache.keep}")]
    return [mistake for index, term in terms for mistake in _sparse_mistakes(cache, index, term, terms[0])]


def _sparse_mistakes(
    cache: CacheRecipe, index: int, term: AnyLoss, first: tuple[int, AnyLoss]
) -> list[Mistake]:
    """Why a term cannot read a cache of some classes a row."""
    if term.sparse != cache.keep:
        return [
            (
                ("loss", index, "kind"),
                f"must be {SPARSE_LOSSES[cache.keep]} with teacher.cache.keep {cache.keep}, found {term.kind}: use that "
                "one, or keep: full",
            )
        ]
    mistakes: list[Mistake] = []
    what = SPARSE_COUNTS[cache.keep]
    place, wanted = f"loss.{first[0]}.{what}", getattr(first[1], what)
    if cache.count is not None:
        place, wanted = "teacher.cache.count", cache.count
    if getattr(term, what) != wanted:
        mistakes.append(
            (
                ("loss", index, what),
                f"must equal {place} ({wanted}), found {getattr(term, what)}: one cache serves both",
            )
        )
    temperature, found = getattr(first[1], "temperature", 1.0), getattr(term, "temperature", 1.0)
    if found != temperature:
        mistakes.append(
            (
                ("loss", index, "temperature"),
                f"must equal that of loss.{first[0]} ({temperature:g}), found {found:g}: the cache keeps "
                f"probabilities of one temperature; or use keep: full",
            )
        )
    if getattr(term, "power", 1.0) != 1:
        mistakes.append(
            (
                ("loss", index, "power"),
                f"must be 1 with a cached sample, found {getattr(term, 'power', 1.0):g}",
            )
        )
    return mistakes


def start_mistakes(teacher: TeacherRecipe, student: StudentRecipe) -> list[Mistake]:
    """A student cut from the pretrained weights of a teacher that has none."""
    cut = student.from_teacher
    if teacher.parts[0].config is None or cut is None or cut.weights == "fine_tuned":
        return []
    return [
        (
            ("student", "from_teacher", "weights"),
            "must be fine_tuned: a teacher given by config has no pretrained weights",
        )
    ]


def group_mistakes(loss: tuple[AnyLoss, ...], train: TrainRecipe, data: DataRecipe) -> list[Mistake]:
    """Batch-wise losses whose groups the batches would cut, or that want different groups."""
    mistakes: list[Mistake] = []
    batchwise = [(index, term) for index, term in enumerate(loss) if not term.additive]
    sizes = [(index, getattr(term, "group_size", None)) for index, term in batchwise]
    for index, size in sizes[1:]:
        if size != sizes[0][1]:
            mistakes.append(
                (
                    ("loss", index, "group_size"),
                    f"must equal that of loss.{sizes[0][0]} ({_group(sizes[0][1])}), found {_group(size)}",
                )
            )
    for task in (None, *data.tasks):
        batches = train if task is None else train.for_task(task)
        at = ("train",) if task is None else ("train", "per_task", task)
        batch, accumulation = batches.per_device_train_batch_size, batches.gradient_accumulation_steps
        if task is not None and not {"per_device_train_batch_size", "gradient_accumulation_steps"} & set(
            train.per_task.get(task, {})
        ):
            continue
        for index, size in sizes:
            if size is None and accumulation != 1:
                mistakes.append(
                    (
                        (*at, "gradient_accumulation_steps"),
                        f"must be 1, found {accumulation}: loss.{index} compares the rows of a whole batch, and "
                        f"accumulation would cut it; or set loss.{index}.group_size to {batch} or a divisor of it",
                    )
                )
            elif size is not None and batch % size:
                mistakes.append(
                    (
                        (*at, "per_device_train_batch_size"),
                        f"must be a multiple of loss.{index}.group_size ({size}), found {batch}: a batch would cut "
                        "a group",
                    )
                )
    return mistakes


def _group(size: int | None) -> str:
    return "null, the whole batch" if size is None else str(size)
