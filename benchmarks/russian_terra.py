"""Are the Russian students of `students.py russian` of more use on a task, TERRa, than ones that had no teacher?

    python benchmarks/russian_terra.py --data FOLDER --models FOLDER --out runs/students

The second stage of arXiv:2205.02340: four students of one shape, with one tokenizer, are fine-tuned on TERRa's labels
alone. They differ in what they were before: taught on novels with MATCH or with REDUCE, trained on the same hidden words
without a teacher (`labels`), or cut from the teacher and no more (`cut`). New head, data, order, steps and schedule are
the same in every row of a seed, and the last weights are scored. The teacher is fine-tuned too, for one epoch, in which it
learns nothing yet: no student learns from it here.

Where `students.py russian` has run with the same --out, its students are taken; else they are trained first. An
interrupted benchmark continues in the same folder. Prints a table and writes `russian-terra.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import students

import distill
from distill.evaluation import judge
from distill.losses import Labels
from distill.progress import Lines
from distill.run_folder import RunFolder, fit_name
from distill.tasks import Answer, read_predictions

STARTS = {
    "cut": "cut from the teacher",
    "labels": "hidden words",
    "match": "hidden words and MATCH",
    "reduce": "hidden words and REDUCE",
}


def first_stage(size: int, arguments: argparse.Namespace) -> dict[str, distill.Recipe]:
    """The recipes that make the students of one width: those of `students.py russian`, and the two without a teacher."""
    taught = {recipe.name: recipe for _, recipe in students.russian(arguments)}
    match = taught[f"russian-{size}-match"]
    # Learns the very hidden words that `russian`'s students learn, which its teacher's tokens decide too.
    labels = replace(match, name=f"russian-{size}-labels", loss=Labels(), baseline=False, preflight=False)  # type: ignore[arg-type]
    # One step in its warm-up, whose rate is 0: the weights stay what the teacher left.
    untrained = replace(match.train, max_steps=1, warmup_steps=1)
    return {
        "cut": replace(labels, name=f"russian-{size}-cut", train=untrained),
        "labels": labels,
        "match": match,
        "reduce": taught[f"russian-{size}-reduce"],
    }


def second_stage(name: str, start: Path, arguments: argparse.Namespace) -> distill.Recipe:
    """TERRa's labels for a student that starts from a model folder."""
    train = distill.TrainRecipe(
        num_train_epochs=arguments.epochs, learning_rate=arguments.rate, precision="bf16", save_steps=100
    )
    return distill.Recipe(
        name=name,
        architecture="encoder",
        data=distill.DataRecipe(
            source="folder",
            path=str(arguments.data / "russian_superglue"),
            tasks=("terra",),
            max_length=128,
            train_examples=arguments.train_examples,
        ),
        teacher=distill.TeacherRecipe(
            model=str(arguments.models / "multilingual-e5-small"),
            train=replace(
                train, num_train_epochs=1, learning_rate=1e-4, freeze_embeddings=True, save_steps=20
            ),
        ),
        student=distill.StudentRecipe(model=str(start)),
        loss=Labels(),  # type: ignore[arg-type]
        train=train,
        seeds=tuple(range(arguments.seeds)),
        baseline=False,
        preflight=False,
        cache=str(arguments.out / "cache"),
    )


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of corpora/ and russian_superglue/")
    parser.add_argument("--models", type=Path, required=True, help="folder of the larger models")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 192], choices=[256, 192])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3, help="of a student; its teacher has one")
    parser.add_argument("--rate", type=float, default=2e-4, help="of a student")
    parser.add_argument("--train-examples", type=int, help="default: all of TERRa's")
    parser.add_argument("--out", type=Path, default=Path("runs/students"))
    arguments = parser.parse_args()
    rows: list[dict] = []
    for size in arguments.sizes:
        answers: dict[str, list[list[Answer]]] = {}
        for start, recipe in first_stage(size, arguments).items():
            before = RunFolder(arguments.out / recipe.name)
            distill.run(recipe, before.path, progress=Lines(every=120))
            recipe = second_stage(
                f"terra-{size}-{start}-{arguments.epochs:g}", before.model("student", "text"), arguments
            )
            folder = RunFolder(arguments.out / recipe.name)
            report = distill.run(recipe, folder.path, progress=Lines(every=120)).data
            answers[start] = answers_of(folder, recipe.seeds)
            rows.append(row_of(size, start, report, answers))
            print(as_table(rows), flush=True)
            (arguments.out / "russian-terra.json").write_text(json.dumps(rows, indent=1) + "\n")


def answers_of(folder: RunFolder, seeds: Sequence[int]) -> list[list[Answer]]:
    """What the fine-tuned students of a run answered, by seed."""
    names = [fit_name("student", "terra", seed) for seed in seeds]
    return [read_predictions(folder.predictions(name, "terra")) for name in names]


def row_of(size: int, start: str, report: dict, answers: dict[str, list[list[Answer]]]) -> dict:
    """What the table shows, and what it takes to make it again. `answers` are of this start and of those before it."""
    student, teacher, training = report["student"], report["teacher"], report["training"]
    return {
        "size": size,
        "start": start,
        "parameters": student["parameters"],
        "compression": report["compression"],
        "score": {"student": student["score"], "teacher": teacher["score"]},
        "majority": report["majority"]["score"],
        "verdicts": {
            other: judge({"terra": answers[start]}, {"terra": answers[other]})
            for other in answers
            if other != start
        },
        "tasks": {"student": student["tasks"], "teacher": teacher["tasks"]},
        "steps": training["steps"],
        "seconds": training["seconds"],
        "seeds": training["seeds"],
        "warnings": report["warnings"],
        "environment": report["environment"],
        "recipe_sha256": report["recipe_sha256"],
    }


def as_table(rows: list[dict]) -> str:
    """Markdown: accuracies with their intervals, and what each start is worth beside the two without a teacher."""
    lines = [
        "| student | before TERRa | smaller | majority | teacher | accuracy (95 % interval) | by seed | over `cut` | over `labels` |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        score, teacher = row["score"]["student"], row["score"]["teacher"]
        low, high = score["ci95"]
        gains = [_gain(row["verdicts"].get(other)) for other in ("cut", "labels")]
        lines.append(
            f"| `hidden: {row['size']}` | {STARTS[row['start']]} | {row['compression']['parameters']:.1f}× "
            f"| {row['majority']:.1f} | {teacher['mean']:.1f} | {score['mean']:.1f} ({low:.1f} to {high:.1f}) "
            f"| {', '.join(f'{each:.1f}' for each in score['per_seed'])} | {' | '.join(gains)} |"
        )
    return "\n".join(lines)


def _gain(verdict: dict | None) -> str:
    if verdict is None:
        return ""
    low, high = verdict["ci95"]
    return f"{verdict['gain']:+.1f} ({low:+.1f} to {high:+.1f})"


if __name__ == "__main__":
    main()
