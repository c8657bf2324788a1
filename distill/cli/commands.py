"""The commands: check, run, cache, evaluate, report, publish, recipes, conformance. Thin: each calls the library function of its name."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from distill.cli.screen import present, progress_of, say, say_json, show_scores, show_submission
from distill.errors import DataError
from distill.processes import speaks

app = typer.Typer(
    name="distill",
    help="Compress language models into compact students by knowledge distillation, and measure what was lost.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

# What a user can mend.

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one recipe key, such as train.learning_rate=1e-4."
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="FOLDER", help="The run's folder. Default: the recipe's, or runs/NAME."),
]
TrustOption = Annotated[
    list[str] | None,
    typer.Option(
        "--trust-remote-code",
        metavar="OWNER/NAME@COMMIT",
        help="Run the Python code of this hub repository, as it is in this commit. Read it first.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.command()
def check(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    preflight: Annotated[
        bool,
        typer.Option(
            "--preflight",
            help="Also try one real batch of each task: tokens, memory, time, gradients, scores. Trains nothing.",
        ),
    ] = False,
    trusted: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read a recipe, name every mistake in it, and print what it would do."""
    from distill.plan import plan

    read = _read(recipe, overrides)
    planned = plan(read)
    found = {}
    if preflight:
        from distill.runs.dry_run import dry_run

        found = dry_run(read, progress=progress_of(quiet=as_json), trust_remote_code=trusted or ())
    if as_json:
        tried = {"preflight": {task: each.as_dict() for task, each in found.items()}} if preflight else {}
        say_json(planned.as_dict() | tried)
        return
    say("\n\n".join([planned.as_text(), *(each.as_text() for each in found.values())]))


@app.command()
def run(
    recipe: RecipeArgument,
    out: OutOption = None,
    overrides: SetOption = None,
    trusted: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Distil: teacher, student and the same student without a teacher, compared in one report.

    Started again in the same folder, it continues an unfinished run.
    """
    read = _read(recipe, overrides)
    folder = out or Path(read.folder)
    if speaks():
        say(f"{read.name}: run folder {folder}", to_stderr=as_json)
    from distill.runs import run as run_recipe

    report = run_recipe(read, folder, progress=progress_of(quiet=as_json), trust_remote_code=trusted or ())
    from distill.report.terminal import show

    present(report.data, as_json, partial(show, report))


@app.command()
def cache(
    recipe: RecipeArgument,
    out: OutOption = None,
    overrides: SetOption = None,
    trusted: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the recipe's language-model teachers once and keep what they say on disk, for `distill run` to learn from.

    Needs teacher.cache. Started again, it continues; what is there already is not asked again.
    """
    from dataclasses import asdict

    read = _read(recipe, overrides)
    folder = out or Path(read.folder)
    if speaks():
        say(f"{read.name}: run folder {folder}", to_stderr=as_json)
    from distill.runs import write_teacher_caches

    summaries = write_teacher_caches(
        read, folder, progress=progress_of(quiet=as_json), trust_remote_code=trusted or ()
    )
    if not speaks():
        return
    if as_json:
        rows = {
            name: {**asdict(each), "folder": str(each.folder), "bytes_per_row": each.bytes_per_row}
            for name, each in summaries.items()
        }
        say_json(rows)
        return
    say(f"  {'teacher':<16} {'examples':>9} {'rows':>11} {'MB':>9} {'bytes/row':>10} {'asked now':>10}")
    for name, each in summaries.items():
        say(
            f"  {name:<16} {each.examples:>9,} {each.rows:>11,} {each.bytes / 1e6:>9,.1f} "
            f"{each.bytes_per_row:>10,.0f} {each.computed:>10,}   {each.folder}"
        )


@app.command()
def report(
    run_folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="The folder of a run, or of several.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", help="Where the Pareto front goes. Default of several runs: front."
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="First measure size, speed and memory of each run's models anew, here."
        ),
    ] = False,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Show each student without its teacher on the front, too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Recompute a run's report from its stored predictions and write it again; of an unfinished run, say what is there.

    With several runs, or with --out: merge them into one Pareto front of score against size, speed and memory.
    """
    if measure:
        from distill.report.front import finished_runs
        from distill.runs import measure_again

        for folder in finished_runs(run_folders)[0]:
            say(f"{folder.path}", to_stderr=True)
            measure_again(folder.path, progress=progress_of(quiet=as_json))
    from distill.report import so_far, terminal, write_front, write_report

    if len(run_folders) > 1 or out is not None:
        front = write_front(run_folders, out or Path("front"), baselines=baselines)
        present(front.data, as_json, partial(terminal.show_front, front))
    elif (unfinished := so_far(run_folders[0])) is not None:
        present(unfinished, as_json, partial(terminal.show_so_far, unfinished))
    else:
        written = write_report(run_folders[0])
        present(written.data, as_json, partial(terminal.show, written))


@app.command()
def publish(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    to: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="The repository; made if it is not there.")
    ] = None,
    license_: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="The student's licence, such as apache-2.0.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Whose student; needed where the run has several tasks.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it. Default: private.")] = False,
    license_of: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=ID",
            help="Licence of a model that the student comes from, where its files do not say.",
        ),
    ] = None,
    despite_license: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID", help="Insist though such a licence of a teacher does not allow the student's."
        ),
    ] = None,
    language: Annotated[
        str | None, typer.Option(metavar="CODE", help="Of the texts, such as en. Default: the task's.")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Hub id of the model the student started from, if the run had it from elsewhere.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Make and check all of it, list it, and send nothing.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Keep what is published in this new folder."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a finished run's student on the Hugging Face hub: weights, tokenizer, model card, report and recipe.

    One student a repository, private unless --public. Again, it changes nothing. The token is `hf auth login`'s.
    """
    from dataclasses import asdict

    from distill.publish import publish_run
    from distill.publish.licenses import stated_licenses

    done = publish_run(
        run_folder,
        to,
        license=license_,
        task=task,
        private=not public,
        license_of=stated_licenses(license_of or ()),
        despite_license=despite_license or (),
        language=language,
        base_model=base_model,
        dry_run=dry_run,
        out=out,
    )
    if as_json:
        say_json(asdict(done))
        return
    for name, size in done.files.items():
        say(f"  {size:>13,}  {name}")
    say(f"  {sum(done.files.values()):>13,}  bytes in {len(done.files)} files")
    if done.upload is None:
        say(f"dry run: nothing was sent to {done.repository}{f'; look at {out}' if out else ''}")
    elif done.upload.changed:
        say(f"published: {done.upload.url} at {done.upload.commit}")
    else:
        say(f"nothing to do: {done.upload.url} holds all of it already, at {done.upload.commit}")


@app.command()
def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A fine-tuned model folder, package:NAME or hub id, or a run's folder for its students; for --submission also a name with {task}.",
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            help="boolq, cb, copa, multirc, record, rte, wic, wsc, axb, axg, terra or text; of a model several times. "
            "Default: a run's.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="demo, hub, a folder of official jsonl files, or of texts. Default: the run's, or demo.",
        ),
    ] = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="Only so many from the start of the dev split. Default: all.")
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="lm-eval",
            help="Also ask lm-evaluation-harness about the same examples (a decoder, boolq, cb, copa, rte, wic and "
            "wsc), and compare.",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Where to write the answers; without MODEL: stored answers to score again."),
    ] = None,
    submission: Annotated[
        Path | None,
        typer.Option(
            metavar="ZIP",
            help="Answer the official test sets, for the SuperGLUE leaderboard; without MODEL: check this zip.",
        ),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="A submission without the tasks whose model or test file is missing."),
    ] = False,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=8,
            max=8192,
            help="Longest input in tokens. Default: the run's, or 128; --with lm-eval: what a model reads.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Examples a forward pass. Default: the run's, or 64.")
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            help="encoder (has a classifier), decoder (chooses the likeliest answer) or encoder_decoder (writes it). "
            "Default: the run's, or encoder."
        ),
    ] = None,
    trusted: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a fine-tuned model or a run's students on dev splits, score stored predictions again, or answer the leaderboard's tests."""
    from distill.evaluate import evaluate_model, evaluate_run, score_predictions
    from distill.recipe import Architecture
    from distill.run_folder import RunFolder
    from distill.tasks import TASKS

    if architecture not in (None, *get_args(Architecture)):
        raise DataError(f"--architecture {architecture}: must be one of {', '.join(get_args(Architecture))}")
    if check not in (None, "lm-eval"):
        raise DataError(f"--with {check}: must be lm-eval")
    if submission is not None:
        if tasks or predictions is not None:
            raise DataError("evaluate: --submission is about all tasks; leave out --task and --predictions")
        if examples is not None or check is not None:
            raise DataError(
                "evaluate: --submission is about test sets, whose labels nobody has; leave out --examples and --with"
            )
        from distill.submission import check as check_zip
        from distill.submission import submit

        if model is None:
            found = check_zip(submission, data=data or "demo", partial=partial)
        else:
            found = submit(
                model,
                submission,
                data=data or "demo",
                partial=partial,
                architecture=architecture,  # type: ignore[arg-type]
                max_length=max_length,
                batch_size=batch_size,
                progress=progress_of(quiet=as_json),
                trust_remote_code=trusted or (),
            )
        if as_json:
            say_json(found)
        else:
            show_submission(found)
        return
    if partial:
        raise DataError("evaluate: --partial is for --submission")
    for task in tasks or ():
        if task not in TASKS:
            raise DataError(f"--task {task}: no such task; the tasks are {', '.join(TASKS)}")
    if model is not None and RunFolder(model).recipe.is_file():
        own = {"--data": data, "--architecture": architecture, "--predictions": predictions}
        for option in [option for option, value in own.items() if value is not None]:
            raise DataError(f"evaluate: {model} is a run, whose recipe says how; leave out {option}")
        results = evaluate_run(
            model,
            tasks=tasks or (),
            max_length=max_length,
            batch_size=batch_size,
            validation_examples=examples,
            check=check,  # type: ignore[arg-type]
            progress=progress_of(quiet=as_json),
            trust_remote_code=trusted or (),
        )
        if as_json:
            say_json({"tasks": results})
        else:
            show_scores(results)
        return
    if not tasks:
        raise DataError("evaluate: give --task, or --submission ZIP")
    if model is None and predictions is None:
        raise DataError("evaluate: give a MODEL, or --predictions FILE with stored answers")
    if predictions is not None and len(tasks) > 1:
        raise DataError(f"evaluate: --predictions is about one task, found {', '.join(tasks)}")
    if model is None:
        if examples is not None or check is not None:
            raise DataError("evaluate: --examples and --with need a MODEL")
        results = {tasks[0]: score_predictions(tasks[0], predictions)}  # type: ignore[arg-type]
    else:
        from distill.independent_check import refuse_unchecked
        from distill.models.source import trusted_repositories

        for task in tasks if check is not None else ():  # all of them before any work is done
            refuse_unchecked(task, architecture or "encoder")  # type: ignore[arg-type]
        commit = trusted_repositories(trusted or ()).get(model)
        results = {
            task: evaluate_model(
                model,
                task,
                data=data or "demo",
                predictions=predictions,
                max_length=max_length,
                batch_size=batch_size or 64,
                architecture=architecture or "encoder",  # type: ignore[arg-type]
                validation_examples=examples,
                check=check,  # type: ignore[arg-type]
                progress=progress_of(quiet=as_json),
                revision=commit,
                trust_remote_code=commit is not None,
            )
            for task in tasks
        }
    if as_json:
        say_json(results[tasks[0]] if len(tasks) == 1 else {"tasks": results})
    else:
        show_scores(results)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe instead of the list.")] = None,
) -> None:
    """List the recipes that come with distill, or print one: distill recipes quickstart > mine.yaml."""
    from distill.recipe import recipe_text, shipped_recipes

    if name is not None:
        say(recipe_text(name).rstrip("\n"))
        return
    found = shipped_recipes()
    width = max(len(each) for each in found)
    for each, about in found.items():
        say(f"{each:<{width}}  {about}")


@app.command()
def conformance(
    loss: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:CALLABLE",
            help="The loss, such as textbrewer.losses:kd_ce_loss: student and teacher logits in, one number out.",
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Put the laws that our losses obey to any distillation loss; exit 1 if it breaks one.

    Imports the named module and nothing else, and calls the loss on logits of shape (N, V), or (1, N, V) where it
    takes no others.
    """
    from distill.losses.conformance import conformance as run_laws  # type: ignore[import-not-found]

    result = run_laws(loss)
    if as_json:
        say_json(result.as_dict())
    else:
        say(result.as_text())
    if not result.obeyed:
        raise typer.Exit(1)


def _read(recipe: str, overrides: list[str] | None) -> Any:
    from distill.recipe import read_recipe

    return read_recipe(recipe, overrides or ())
