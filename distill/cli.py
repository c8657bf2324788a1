"""The command line: check, run, cache, evaluate, report, publish, recipes, conformance. Thin: each command calls the library function of its name."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_args

import typer

from distill.errors import (
    AlignmentError,
    DataError,
    DistillError,
    LossError,
    MismatchError,
    ModelError,
    PublishError,
    RecipeError,
)
from distill.processes import exit_alone, failure_elsewhere, speaks

if TYPE_CHECKING:
    from rich.console import Console

    from distill.progress import Progress

app = typer.Typer(
    name="distill",
    help="Compress language models into compact students by knowledge distillation, and measure what was lost.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

# What a user can mend.
USERS = (RecipeError, DataError, ModelError, AlignmentError, LossError, MismatchError, PublishError)
STOPPED = "distill: stopped; the same command continues where it was"

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

        found = dry_run(read, progress=_progress(quiet=as_json), trust_remote_code=trusted or ())
    if as_json:
        tried = {"preflight": {task: each.as_dict() for task, each in found.items()}} if preflight else {}
        _print(json.dumps(planned.as_dict() | tried, indent=1, ensure_ascii=False))
        return
    _print("\n\n".join([planned.as_text(), *(each.as_text() for each in found.values())]))


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
        _print(f"{read.name}: run folder {folder}", to_stderr=as_json)
    from distill.runs import run as run_recipe

    report = run_recipe(read, folder, progress=_progress(quiet=as_json), trust_remote_code=trusted or ())
    from distill.report.terminal import show

    _show(report.data, as_json, partial(show, report))


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
        _print(f"{read.name}: run folder {folder}", to_stderr=as_json)
    from distill.runs import write_teacher_caches

    summaries = write_teacher_caches(
        read, folder, progress=_progress(quiet=as_json), trust_remote_code=trusted or ()
    )
    if not speaks():
        return
    if as_json:
        rows = {
            name: {**asdict(each), "folder": str(each.folder), "bytes_per_row": each.bytes_per_row}
            for name, each in summaries.items()
        }
        _print(json.dumps(rows, indent=1))
        return
    _print(f"  {'teacher':<16} {'examples':>9} {'rows':>11} {'MB':>9} {'bytes/row':>10} {'asked now':>10}")
    for name, each in summaries.items():
        _print(
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
            _print(f"{folder.path}", to_stderr=True)
            measure_again(folder.path, progress=_progress(quiet=as_json))
    from distill.report import so_far, terminal, write_front, write_report

    if len(run_folders) > 1 or out is not None:
        front = write_front(run_folders, out or Path("front"), baselines=baselines)
        _show(front.data, as_json, partial(terminal.show_front, front))
    elif (unfinished := so_far(run_folders[0])) is not None:
        _show(unfinished, as_json, partial(terminal.show_so_far, unfinished))
    else:
        written = write_report(run_folders[0])
        _show(written.data, as_json, partial(terminal.show, written))


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
        _print(json.dumps(asdict(done), indent=1))
        return
    for name, size in done.files.items():
        _print(f"  {size:>13,}  {name}")
    _print(f"  {sum(done.files.values()):>13,}  bytes in {len(done.files)} files")
    if done.upload is None:
        _print(f"dry run: nothing was sent to {done.repository}{f'; look at {out}' if out else ''}")
    elif done.upload.changed:
        _print(f"published: {done.upload.url} at {done.upload.commit}")
    else:
        _print(f"nothing to do: {done.upload.url} holds all of it already, at {done.upload.commit}")


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
                progress=_progress(quiet=as_json),
                trust_remote_code=trusted or (),
            )
        _show_submission(found, as_json)
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
            progress=_progress(quiet=as_json),
            trust_remote_code=trusted or (),
        )
        _show_scores(results, json.dumps({"tasks": results}, indent=1) if as_json else None)
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
                progress=_progress(quiet=as_json),
                revision=commit,
                trust_remote_code=commit is not None,
            )
            for task in tasks
        }
    result = results[tasks[0]] if len(tasks) == 1 else {"tasks": results}
    _show_scores(results, json.dumps(result, indent=1) if as_json else None)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe instead of the list.")] = None,
) -> None:
    """List the recipes that come with distill, or print one: distill recipes quickstart > mine.yaml."""
    from distill.recipe import recipe_text, shipped_recipes

    if name is not None:
        _print(recipe_text(name).rstrip("\n"))
        return
    found = shipped_recipes()
    width = max(len(each) for each in found)
    for each, about in found.items():
        _print(f"{each:<{width}}  {about}")


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
    _print(json.dumps(result.as_dict(), indent=1, ensure_ascii=False) if as_json else result.as_text())
    if not result.obeyed:
        raise typer.Exit(1)


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 our failure, 2 the user's input, 130 and 143 for signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = _main()
    except SystemExit as stopped:  # by a signal
        code = stopped.code if isinstance(stopped.code, int) else 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code:
        exit_alone(code)
    sys.exit(0)


def _main() -> int:
    global _asked_by
    _asked_by = None
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored by who started us
        signal.signal(signal.SIGINT, _stop)
    try:
        code = app(standalone_mode=False)
    except DistillError as error:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a launcher stops all processes when one has failed
        if speaks(error):
            for line in error.problems if isinstance(error, RecipeError) else [error]:
                _print(f"distill: {line}", to_stderr=True)
        return 2 if isinstance(error, USERS) else 1
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        # The reader of our output has gone (| head): nothing more to say, and Python must not say it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        # Wrong usage: the class of these is typer's own or click's, by typer's version.
        if hasattr(error, "exit_code") and hasattr(error, "show"):
            error.show()
            return int(error.exit_code)
        if os.environ.get("DISTILL_TRACEBACK"):
            raise
        if speaks(error):
            _print(f"distill: {_failure(error)}", to_stderr=True)
        return 1
    if code == 130 and speaks():  # typer turns an interrupt into this code
        _print(STOPPED, to_stderr=True)
    return code if isinstance(code, int) else 0


def _failure(error: Exception) -> str:
    """One line for what no part of distill expected."""
    from distill.disk import shortage
    from distill.memory import ran_out_of_memory, what_was_wanted

    if ran_out_of_memory(error):
        return (
            f"out of memory ({what_was_wanted(error)}); lower train.per_device_train_batch_size, "
            "train.per_device_eval_batch_size or data.max_length, or take smaller models"
        )
    short = shortage(error)
    if short is not None:
        return short
    first = str(error).strip().splitlines()
    return f"internal error, {type(error).__name__}: {first[0] if first else ''} (DISTILL_TRACEBACK=1 shows where)"


# The signal that asked this process to stop.
_asked_by: int | None = None


def _stop(number: int, frame: object) -> None:
    global _asked_by
    failure = failure_elsewhere()
    if _asked_by is None and number != signal.SIGINT and speaks():
        _print(f"distill: {failure}" if failure else STOPPED, to_stderr=True)
    _asked_by = number
    _leave(number)


def _leave(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


class _Stopping:
    """A progress that also ends the work once a signal has asked for it.

    The handler raises, but Python ignores what is raised while it destroys an object, and so may a library's hook:
    the next step then notices that the signal has come.
    """

    def __init__(self, progress: Progress):
        self._progress = progress

    def begin(self, what: str, total: int, done: int = 0) -> None:
        self._check()
        self._progress.begin(what, total, done)

    def advance(self, done: int, detail: str = "") -> None:
        self._check()
        self._progress.advance(done, detail)

    def end(self, outcome: str = "") -> None:
        self._check()
        self._progress.end(outcome)

    def say(self, line: str) -> None:
        self._check()
        self._progress.say(line)

    def _check(self) -> None:
        if _asked_by is not None:
            _leave(_asked_by)


def _read(recipe: str, overrides: list[str] | None) -> Any:
    from distill.recipe import read_recipe

    return read_recipe(recipe, overrides or ())


def _progress(*, quiet: bool) -> Progress:
    from distill.progress import Bars, Lines, Silent

    if quiet:
        return _Stopping(Silent())
    if not sys.stderr.isatty():
        return _Stopping(Lines())
    from rich.console import Console

    return _Stopping(Bars(Console(stderr=True)))


def _show(data: Any, as_json: bool, show: Callable[[Console], None]) -> None:
    """One JSON object, or what a person reads."""
    if not speaks():
        return
    if as_json:
        _print(json.dumps(data, indent=1, ensure_ascii=False))
        return
    from rich.console import Console

    show(Console(width=None if sys.stdout.isatty() else 120))


def _show_scores(results: dict[str, dict[str, Any]], as_json: str | None) -> None:
    """Scores by task, beside those of lm-evaluation-harness where it was asked."""
    from distill.independent_check import comparison
    from distill.tasks import TASKS

    if as_json is not None:
        _print(as_json)
        return
    if any("lm_eval" in result for result in results.values()):
        _print(comparison(results))
    for task, result in results.items():
        if "lm_eval" not in result:
            for name, value in result["metrics"].items():
                beside = f"   (majority {100 * result['majority'][name]:.1f})" if "majority" in result else ""
                _print(f"{TASKS[task].title} {name}: {100 * value:.1f}{beside}")
            for name, value in result.get("language", {}).items():
                _print(f"{TASKS[task].title} {name}: {value:.3f}")
        for note in result.get("notes", []):
            _print(f"note: {note}")


def _show_submission(found: dict[str, Any], as_json: bool) -> None:
    from distill.tasks import TASKS

    if as_json:
        _print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for name, count in found["units"].items():
        cut = found.get("truncated", {}).get(name, 0)
        nameless = found["unnamed"].get(name, 0)
        _print(
            f"{TASKS[name].title + '.jsonl':<13} {count:>6,} {TASKS[name].unit[count != 1]}"
            + (f", {cut:,} inputs cut" if cut else "")
            + (f", {nameless:,} answers named no class" if nameless else "")
        )
    for line in found["missing"]:
        _print(f"missing: {line}")
    whole = (
        "not a whole submission" if found["missing"] else "a whole submission, in the leaderboard's layout"
    )
    _print(f"{found['submission']}: {whole}")


def _print(text: str, *, to_stderr: bool = False) -> None:
    try:
        print(text, file=sys.stderr if to_stderr else sys.stdout, flush=True)
    except OSError as error:
        if to_stderr:  # nobody can be told, and the exit code says it
            return
        if isinstance(error, BrokenPipeError):
            raise
        raise DistillError(f"standard output: cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    main()
