"""What does a teacher cache cost and save, and does a student learn less from a part of its teacher?

    python benchmarks/teacher_cache.py --teacher shared/models/stories260K --layers 3 --text corpora/shakespeare.txt

One decoder teaches a copy of itself with fewer layers to predict plain text: from the live teacher in batches, from it
asked one example at a time, and from each kind of cache. Initial weights, examples, order, steps and schedule are the
same, and the students of a seed take turns step by step, so that a busy machine is busy for all of them. The step
time is the median of the whole step, a live teacher's share in it. "teacher, s" is how long the teacher itself was
asked: once for a cache, whatever is kept, at every step otherwise. Prints a Markdown table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from distill.cache import CachedTeacher, CacheSpec, EachAlone, header_of, write_cache
from distill.engine import Engine
from distill.engine.batches import epoch_batches
from distill.engine.reading import Reading, reading_of
from distill.environment import describe_environment
from distill.evaluation import task_score
from distill.losses import ForwardKL, GhostTokenKL, Labels, SampledTargets, Total
from distill.models import DataSet, Student, Teacher
from distill.recipe import TrainRecipe
from distill.tasks import PLAIN_TEXT, TaskData, load_text

TOP_K, DRAWS = 32, 50
DENSE, SPARSE = ForwardKL(), GhostTokenKL(kept=TOP_K)
VARIANTS = {
    "labels alone": (None, Total(terms=(Labels(),))),
    "live, in batches": (None, 0.1 * Labels() + 0.9 * DENSE),
    "live, one at a time": (None, 0.1 * Labels() + 0.9 * DENSE),
    "full": (CacheSpec(), 0.1 * Labels() + 0.9 * DENSE),
    f"top {TOP_K}": (CacheSpec("top_k", TOP_K), 0.1 * Labels() + 0.9 * SPARSE),
    f"top {TOP_K}, bfloat16": (CacheSpec("top_k", TOP_K, dtype="bfloat16"), 0.1 * Labels() + 0.9 * SPARSE),
    f"{DRAWS} draws": (CacheSpec("sampled", DRAWS), 0.1 * Labels() + 0.9 * SampledTargets(samples=DRAWS)),
}


class Stopwatch:
    """A teacher and the seconds it was asked for."""

    def __init__(self, teacher: Any):
        self.teacher, self.seconds = teacher, 0.0

    def __call__(self, batch: Any) -> Any:
        """What the teacher says."""
        started = time.perf_counter()
        said = self.teacher(batch)
        self.seconds += time.perf_counter() - started
        return said


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", required=True, help="a decoder: a folder, package:NAME or hub id")
    parser.add_argument("--layers", type=int, required=True, help="of the student")
    parser.add_argument("--text", type=Path, required=True, help="a text file")
    parser.add_argument("--passages", type=int, default=120, help="to learn from")
    parser.add_argument("--validation", type=int, default=40)
    parser.add_argument("--max-length", type=int, default=96)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--tune", type=int, default=0, help="steps of the teacher on the text first")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path("runs/teacher-cache"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.out) as caches:
        found = measure(arguments, Path(caches))
    (arguments.out / "teacher_cache.json").write_text(json.dumps(found, indent=1) + "\n")
    print(as_table(found))


def measure(arguments: argparse.Namespace, caches: Path) -> dict[str, Any]:
    """Every variant's figures."""
    data = load_text(
        arguments.text,
        characters=3 * arguments.max_length,
        train_examples=arguments.passages,
        validation_examples=arguments.validation,
    )
    reading = reading_of("decoder", PLAIN_TEXT, max_length=arguments.max_length, batch_size=8)
    source = tuned(arguments, reading, data, caches / "tuned") if arguments.tune else arguments.teacher
    teacher = Teacher.load(source, kind="causal_lm", labels=())
    features = reading.examples(data.train, teacher)
    wanted = {name: VARIANTS[name] for name in arguments.variants}
    read, sizes = open_teachers(teacher, features, wanted, caches, arguments.max_length)
    seconds: dict[str, list[float]] = defaultdict(list)
    scores: dict[str, list[dict[str, float]]] = defaultdict(list)
    for seed in range(arguments.seeds):
        engines = {
            name: Engine(
                Student.from_teacher(source, layers=arguments.layers, kind="causal_lm", labels=(), seed=0),
                loss,
                features,
                TrainRecipe(
                    max_steps=arguments.steps,
                    learning_rate=arguments.learning_rate,
                    per_device_train_batch_size=arguments.batch,
                ),
                teacher=read.get(name),
                seed=seed,
            )
            for name, (_, loss) in wanted.items()
        }
        for step in range(arguments.steps):
            per_epoch = -(-len(features) // arguments.batch)
            epoch, place = divmod(step, per_epoch)
            batch = epoch_batches(features.lengths, arguments.batch, seed=seed, epoch=epoch, by_length=True)[
                place
            ]
            # Another one begins each time: what runs first finds other things in the processor's caches.
            names = list(engines)
            for name in names[step % len(names) :] + names[: step % len(names)]:
                started = time.perf_counter()
                engines[name].step(batch)
                seconds[name].append(time.perf_counter() - started)
        for name, engine in engines.items():
            engine.student.model.train(mode=False)
            scores[name].append(figures(reading, data, engine.student))
            print(f"seed {seed}, {name}: perplexity {scores[name][-1]['perplexity']:.2f}", flush=True)
    rows = [
        {
            "variant": name,
            **sizes.get(name, {"bytes": 0, "bytes_per_row": 0.0}),
            "teacher_seconds": sizes[name]["seconds"]
            if name in sizes
            else (read[name].seconds / arguments.seeds if name in read else 0.0),
            "step_seconds": statistics.median(seconds[name]),
            "perplexity": [each["perplexity"] for each in scores[name]],
            "score": [each["score"] for each in scores[name]],
        }
        for name in wanted
    ]
    return {
        "arguments": {name: str(value) for name, value in vars(arguments).items()},
        "environment": describe_environment(),
        "training": {"passages": len(features), "tokens": features.rows_of(range(len(features)))},
        "teacher": figures(reading, data, teacher),
        "rows": rows,
    }


def tuned(arguments: argparse.Namespace, reading: Reading, data: TaskData, folder: Path) -> str:
    """The teacher after some steps on the text itself."""
    model = Student.load(arguments.teacher, kind="causal_lm", labels=(), seed=0)
    train = TrainRecipe(max_steps=arguments.tune, learning_rate=1e-3, per_device_train_batch_size=16)
    Engine(model, Labels(), reading.examples(data.train, model), train).run().save(folder)
    return str(folder)


def open_teachers(
    teacher: Teacher, features: DataSet, wanted: dict[str, Any], caches: Path, max_length: int
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """A teacher for each variant, and what its cache weighs and took to be written."""
    header = header_of(teacher.model, teacher.tokenizer, labels=(), max_length=max_length)
    read: dict[str, Any] = {}
    sizes: dict[str, dict[str, float]] = {}
    asked = Stopwatch(teacher)
    source: Any = asked
    for number, (name, (spec, loss)) in enumerate(wanted.items()):
        if spec is None:
            if loss.needs_teacher:
                read[name] = Stopwatch(EachAlone(teacher) if "one" in name else teacher)
            continue
        folder = caches / str(number)
        before = asked.seconds
        summary = write_cache(folder, header, features, source, spec)
        if source is asked:
            seconds = asked.seconds - before
        sizes[name] = {
            "bytes": summary.bytes,
            "bytes_per_row": summary.bytes_per_row,
            "seconds": seconds,
        }
        read[name] = CachedTeacher.open(folder, header)
        if spec.kept == "full":
            source = read[name]  # bitwise the teacher: it need not be asked for every cache
        print(f"{name}: {summary.bytes / 1e6:.1f} MB", flush=True)
    return read, sizes


def figures(reading: Reading, data: TaskData, reader: Student | Teacher) -> dict[str, float]:
    """What a model makes of the validation passages."""
    answers = reading.answer(data.validation, reader).answers
    nats, tokens = (sum(answer.logits[place] for answer in answers) for place in (0, 1))
    return {"perplexity": math.exp(-nats / tokens), "score": task_score("text", answers)}


def as_table(found: dict[str, Any]) -> str:
    """Markdown, one row a variant."""
    lines = [
        "| teacher | bytes a token | MB | teacher, s | step, ms | perplexity | P(byte) |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found["rows"]:
        perplexity, score = statistics.mean(row["perplexity"]), statistics.mean(row["score"])
        kept = f"{row['bytes_per_row']:,.0f} | {row['bytes'] / 1e6:,.1f}" if row["bytes"] else "– | –"
        asked = f"{row['teacher_seconds']:.1f}" if row["teacher_seconds"] else "–"
        lines.append(
            f"| {row['variant']} | {kept} | {asked} | {1e3 * row['step_seconds']:.1f} | {perplexity:.2f} | {score:.2f} |"
        )
    whole = found["teacher"]
    lines.append(f"| the teacher itself | | | | | {whole['perplexity']:.2f} | {whole['score']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
