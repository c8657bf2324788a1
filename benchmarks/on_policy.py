"""What training on own texts costs: a step on what a student writes beside a step on the data.

    python benchmarks/on_policy.py --model FOLDER --text FILE

prints a table and writes JSON. The student keeps a part of the teacher's layers.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers

from distill.engine import Engine
from distill.engine.reading import reading_of
from distill.losses import ForwardKL, ReverseKL
from distill.models import Student, Teacher
from distill.models.loading import load_model, load_tokenizer
from distill.models.source import find_model
from distill.recipe import OnPolicy, TrainRecipe
from distill.tasks import PLAIN_TEXT, load_text


def main() -> None:
    """Take a few steps of each kind from the same student and time them."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", required=True, help="a decoder's folder")
    options.add_argument("--text", required=True, help="a text file")
    options.add_argument("--layers", type=int, default=6, help="of the student")
    options.add_argument("--steps", type=int, default=3, help="timed, after one that is not")
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--max-length", type=int, default=96)
    options.add_argument("--new-tokens", type=int, default=64)
    options.add_argument("--prompt-tokens", type=int, default=32)
    options.add_argument("--out", type=Path, help="where to write the figures as JSON")
    chosen = options.parse_args()

    source = find_model(chosen.model)
    teacher = Teacher(load_model(source, kind="causal_lm", labels=(), seed=0), load_tokenizer(source))
    text = load_text(chosen.text, characters=5 * chosen.max_length, train_examples=64)
    reading = reading_of("decoder", PLAIN_TEXT, max_length=chosen.max_length, batch_size=chosen.batch)
    figures = {}
    for name in ("data", "own texts"):
        student = Student.from_teacher(chosen.model, layers=chosen.layers, kind="causal_lm", labels=())
        own = OnPolicy(fraction=1.0, max_new_tokens=chosen.new_tokens, prompt_tokens=chosen.prompt_tokens)
        lines: list[dict[str, float]] = []
        train = TrainRecipe(
            max_steps=chosen.steps + 1,
            per_device_train_batch_size=chosen.batch,
            learning_rate=1e-4,
            logging_steps=1,
            on_policy=own if name == "own texts" else None,
        )
        engine = Engine(
            student,
            0.5 * ForwardKL() + 0.5 * ReverseKL(),
            reading.examples(text.train, student),
            train,
            teacher=teacher,
            log=lines.append,
        )
        seconds: list[float] = []
        of_the_processor: list[float] = []
        step = engine.step

        def timed(batch: list[int], step=step, seconds=seconds, of_the_processor=of_the_processor) -> None:
            started, worked = time.perf_counter(), time.process_time()
            step(batch)
            seconds.append(time.perf_counter() - started)
            of_the_processor.append(time.process_time() - worked)

        engine.step = timed  # type: ignore[method-assign]
        engine.run()
        measured = lines[1:]
        figures[name] = {
            "seconds_per_step": statistics.median(seconds[1:]),
            "processor_seconds_per_step": statistics.median(of_the_processor[1:]),
            **{
                key: sum(line[key] for line in measured) / len(measured)
                for key in measured[0]
                if key.startswith("on_policy/")
            },
        }
    print(
        f"{'':<10} {'s a step':>9} {'processor s':>12} {'tokens a text':>14} {'tokens written a second':>24}"
    )
    for name, row in figures.items():
        length, speed = row.get("on_policy/length"), row.get("on_policy/written_tokens_per_second")
        written = f"{'–':>14} {'–':>24}" if length is None else f"{length:>14.1f} {speed:>24.0f}"
        print(
            f"{name:<10} {row['seconds_per_step']:>9.2f} {row['processor_seconds_per_step']:>12.2f} {written}"
        )
    where = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "arguments": {key: str(value) for key, value in vars(chosen).items()},
    }
    if chosen.out:
        chosen.out.write_text(json.dumps({**where, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
