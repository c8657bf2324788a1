"""The same examples put to lm-evaluation-harness: figures of a decoder that none of distill's code computes.

Two prompts, because they answer two questions. With distill's prompt the harness does all that follows it on its own:
it tokenizes, runs the model, sums log-probabilities, chooses and counts; so its log-likelihoods are distill's, or one of
the two is wrong. With its own prompt it gives the figure that others report of such a model. The wordings are meant to be
the same, but its COPA has two spaces before an answer, its WSC takes spaces before punctuation out, and it ends every
hypothesis of CB and question of BoolQ with one more mark, also where there is one.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import DataError, ModelError
from distill.progress import Progress, Silent
from distill.recipe import Architecture
from distill.tasks import TASKS, Answer, Example, Task, encode_completions
from distill.tasks.framing import special_tokens

if TYPE_CHECKING:
    from distill.models import Teacher

# The harness's names of the tasks that it scores correctly, and of their metrics.
CHECKED = {
    "boolq": "boolq",
    "cb": "cb",
    "copa": "copa",
    "rte": "sglue_rte",
    "wic": "wic",
    "wsc": "wsc",
}
METRICS = {"accuracy": "acc", "macro_f1": "f1"}
REFUSED = {
    "multirc": 'lm-eval takes the label 0, a wrong option, for the first of its answers, "yes": a perfect model scores 0',
    "record": "lm-eval's task needs transformers.data.metrics, which transformers no longer has",
}
# Of single precision some 1e-4 nats are left over a long answer; another token or a token too many is a larger difference.
TOLERANCE = 0.01

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Disagreement:
    """An example whose log-likelihoods are not the same.

    Attributes:
        id: of the example.
        distill: the log-likelihood of each answer, in nats.
        lm_eval: the harness's.
    """

    id: str
    distill: list[float]
    lm_eval: list[float]


@dataclass(frozen=True)
class IndependentCheck:
    """What lm-evaluation-harness says of the same model and examples.

    Attributes:
        version: of lm_eval.
        task: the harness's name of the task.
        task_version: its version of that task.
        same_prompt: the task's metrics where the harness reads distill's prompts and answers, as shares.
        own_prompt: where it reads its own, zero-shot.
        compared: examples that were compared one by one, with the same prompt.
        cut: examples that distill or the harness had to cut, which are not compared: they cut in other places.
        merged: answers whose first token holds the end of the prompt too. Distill counts it, the harness may not.
        other_answers: of those compared, how many are answered differently.
        largest_difference: between two log-likelihoods of those compared, in nats.
        disagreements: those compared with a difference above `TOLERANCE`. An example that is answered differently and
            not among these is a tie.
    """

    version: str
    task: str
    task_version: str
    same_prompt: dict[str, float]
    own_prompt: dict[str, float]
    compared: int
    cut: int
    merged: int
    other_answers: int
    largest_difference: float
    disagreements: list[Disagreement]


def reason_against(task: str, architecture: Architecture, *, chat: bool = False) -> str | None:
    """Why lm-evaluation-harness cannot check such a model on a task; None where it can.

    Args:
        task: a key of `distill.tasks.TASKS`.
        architecture: of the model.
        chat: whether prompts are put into a chat template.
    """
    if architecture == "encoder":
        return "lm-eval compares the likelihoods of written answers; an encoder's classifier has none (--architecture decoder)"
    if architecture == "encoder_decoder":
        return "lm-eval compares the likelihoods of answers; an encoder–decoder of distill writes one (--architecture decoder)"
    if chat:
        return "lm-eval puts prompts into a chat template in its own way; data.chat must be false"
    return None if task in CHECKED else REFUSED.get(task, "lm-eval has no such task")


def refuse_unchecked(task: str, architecture: Architecture, *, chat: bool = False) -> None:
    """Refuse what cannot be checked, before anything is loaded.

    Raises:
        DataError: of the task, the architecture, or for want of lm_eval.
    """
    reason = reason_against(task, architecture, chat=chat)
    if reason is not None:
        raise DataError(f"{TASKS[task].title}: cannot be checked with lm-eval: {reason}")
    if importlib.util.find_spec("lm_eval") is None:
        raise DataError(
            '--with lm-eval: needs lm_eval, which is not installed; type: pip install "distill[lm-eval]"'
        )


def check_independently(
    judge: Teacher,
    task: Task,
    examples: Sequence[Example],
    answers: Sequence[Answer],
    rows: Sequence[Row],
    *,
    max_length: int,
    batch_size: int,
    progress: Progress | None = None,
) -> IndependentCheck:
    """Put a decoder's examples to lm-evaluation-harness.

    Neither data nor code comes from the hub: the examples are `rows`, and the task that of the installed package.

    Args:
        judge: the decoder.
        task: one of `CHECKED`.
        examples: what was answered.
        answers: distill's answers to them.
        rows: the official rows that the examples were read from, from which the harness gets its own.
        max_length: the longest input in tokens when distill asked. The harness reads as far as the model can.
        batch_size: examples of a turn, and sequences of a forward pass.
        progress: told how far it is.

    Raises:
        ModelError: the tokenizer ends texts with a token of its own, which the harness takes for the answer's.
    """
    _, behind = special_tokens(judge.tokenizer)
    if behind:
        named = judge.tokenizer.convert_ids_to_tokens(behind)[0]
        raise ModelError(
            f"the tokenizer puts {named} behind every text, also behind a prompt that goes on; "
            "lm-eval then scores that in place of an answer's first token, so it cannot check this model"
        )
    encoded = encode_completions(task, examples, judge.tokenizer, max_length=max_length, answers="all")
    wanted = {example.id for example in examples}
    documents = [_document(task.name, row) for row in rows if str(int(row["idx"])) in wanted]
    worded = []
    for document, example in zip(documents, examples, strict=True):
        asked = task.completion(example)
        worded.append({**document, "prompt": asked.prompt.text, "choices": list(asked.answers)})
    progress = progress or Silent()
    with _quiet():
        from lm_eval.models.huggingface import HFLM

        reader = HFLM(
            pretrained=judge.model, tokenizer=judge.tokenizer, backend="causal", batch_size=batch_size
        )
        cut = {
            index
            for index, ids, (_, _, lost) in zip(encoded.index, encoded.input_ids, encoded.cuts, strict=True)
            if lost or len(ids) > reader.max_length + 1  # nothing follows the last token, which is not read
        }
        own = _task(task, documents)
        same = _task(
            task,
            worded,
            doc_to_text="prompt",
            doc_to_choice="choices",
            doc_to_target="label",
            target_delimiter="",
        )
        progress.begin(f"{task.name}, lm-eval", 2 * len(documents))
        same_prompt, theirs = _scored(task, same, reader, batch_size, progress, 0)
        own_prompt, _ = _scored(task, own, reader, batch_size, progress, len(documents))
        progress.end(f"{len(documents):,} examples, two prompts")
    differences, other, disagreements = [0.0], 0, []
    for index, (example, answer, found) in enumerate(zip(examples, answers, theirs, strict=True)):
        if index in cut:
            continue
        expected = list(answer.logits)
        differences.append(max(abs(a - b) for a, b in zip(expected, found, strict=True)))
        other += expected.index(max(expected)) != found.index(max(found))
        if not differences[-1] <= TOLERANCE:
            disagreements.append(Disagreement(example.id, expected, found))
    return IndependentCheck(
        version=importlib.metadata.version("lm_eval"),
        task=CHECKED[task.name],
        task_version=str(own.VERSION),
        same_prompt=same_prompt,
        own_prompt=own_prompt,
        compared=len(examples) - len(cut),
        cut=len(cut),
        merged=encoded.merged,
        other_answers=other,
        largest_difference=max(differences),
        disagreements=disagreements,
    )


def comparison(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of what distill and the harness found, and below it how far they agree, for a terminal.

    Args:
        results: by task what `distill.evaluate_model` returns; those without a check are left out.
    """
    checked = {name: result for name, result in results.items() if "lm_eval" in result}
    lines = [
        f"{'':<18} {'distill':>8} {'lm-eval, same prompt':>21} {'lm-eval, own prompt':>20} {'majority':>9}"
    ]
    for name, result in checked.items():
        lines += [
            f"{TASKS[name].title + ' ' + metric:<18} {100 * value:>8.1f} "
            f"{100 * result['lm_eval']['same_prompt'][metric]:>21.1f} "
            f"{100 * result['lm_eval']['own_prompt'][metric]:>20.1f} {100 * result['majority'][metric]:>9.1f}"
            for metric, value in result["metrics"].items()
        ]
    for name, result in checked.items():
        found = result["lm_eval"]
        lines.append(
            f"{TASKS[name].title}: {found['other_answers']:,} of {found['compared']:,} examples answered differently, "
            f"log-likelihoods at most {found['largest_difference']:.1g} nats apart"
            f" (lm-eval {found['version']}, task {found['task']} {found['task_version']})"
        )
        if found["cut"]:
            lines.append(
                f"note: {TASKS[name].title}: {found['cut']:,} too long for the model or --max-length, not compared"
            )
        if found["disagreements"]:
            named = [each["id"] for each in found["disagreements"]]
            lines.append(
                f"warning: {TASKS[name].title}: {len(named):,} of {found['compared']:,} examples have log-likelihoods more "
                f"than {TOLERANCE} nats apart: {', '.join(named[:20])}{', …' if len(named) > 20 else ''}"
            )
        if found["merged"]:
            lines.append(
                f"note: {TASKS[name].title}: of {found['merged']:,} answers the first token begins in the prompt; "
                "distill counts it, lm-eval may not"
            )
    return "\n".join(lines)


def _document(name: str, row: Row) -> dict[str, Any]:
    """An official row in the columns of the hub's data, which the harness's tasks read."""
    classes = {"cb": ("entailment", "contradiction", "neutral"), "rte": ("entailment", "not_entailment")}
    columns = {
        "boolq": ("passage", "question"),
        "cb": ("premise", "hypothesis"),
        "copa": ("premise", "choice1", "choice2", "question"),
        "rte": ("premise", "hypothesis"),
        "wic": ("sentence1", "sentence2", "start1", "end1"),
        "wsc": ("text",),
    }
    label = classes[name].index(row["label"]) if name in classes else int(row["label"])
    spans = dict(row["target"]) if name == "wsc" else {}
    return {column: row[column] for column in columns[name]} | spans | {"label": label}


def _task(task: Task, documents: list[dict[str, Any]], **changes: Any) -> Any:
    """The harness's own task on these documents, changed if at all in what it asks."""
    import lm_eval.tasks
    from datasets import Dataset

    folder = Path(lm_eval.tasks.__file__).parent / "super_glue"
    manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=str(folder))
    name, data = CHECKED[task.name], Dataset.from_list(documents)
    # A task of the package with other keys can be had as the member of a group.
    changed = {
        "task": name,
        "custom_dataset": lambda **_: {"validation": data},
        "training_split": None,
        **changes,
    }
    return manager.load({"group": "distill", "task": [changed]})["tasks"][name]


def _scored(
    task: Task, harness: Any, reader: Any, batch_size: int, progress: Progress, done: int
) -> tuple[dict[str, float], list[list[float]]]:
    """The metrics as the harness counts them, and of each document its log-likelihoods of the answers.

    The same steps as `lm_eval.simple_evaluate`, which also seeds every random generator, asks git and prints bars.
    """
    documents = list(harness.validation_docs())
    contexts = [harness.fewshot_context(document, 0) for document in documents]
    order = sorted(range(len(documents)), key=lambda number: len(contexts[number]))
    replies: list[list[tuple[float, bool]]] = [[]] * len(documents)
    for start in range(0, len(order), batch_size):
        turn = order[start : start + batch_size]
        asked = [
            harness.construct_requests(
                doc=documents[n], ctx=contexts[n], metadata=(harness.config.task, n, 1)
            )
            for n in turn
        ]
        said = iter(
            reader.loglikelihood([each for requests in asked for each in requests], disable_tqdm=True)
        )
        for number, requests in zip(turn, asked, strict=True):
            replies[number] = [next(said) for _ in requests]
        progress.advance(done + start + len(turn))
    values = defaultdict(list)
    for document, each in zip(documents, replies, strict=True):
        for metric, value in harness.process_results(document, each).items():
            values[metric].append(value)
    counted = {
        metric: float(harness.aggregation()[METRICS[metric]](values[METRICS[metric]]))
        for metric in task.metrics
    }
    return counted, [[likelihood for likelihood, _ in each] for each in replies]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """None of the harness's remarks (on what it was not told), nor bars: progress is shown by `Progress`."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger, bars = logging.getLogger("lm_eval"), not are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if bars:
            enable_progress_bars()
