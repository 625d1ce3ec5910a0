"""Verbs that read finished trials."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmbench.cli_common import (
    FAILED,
    DeviceOption,
    ExecutorOption,
    ExecutorWordsOption,
    JsonOption,
    OutOption,
    PluginOption,
    QuietOption,
    fetched,
    guarded,
    use_plugins,
)

results_app = typer.Typer()
submit_app = typer.Typer(help="Offer results to others.", no_args_is_help=True)
results_app.add_typer(submit_app, name="submit")


@results_app.command()
@guarded
def leaderboard(
    folder: Annotated[Path, typer.Argument(help="A results folder or a board.")],
    out: OutOption = None,
    fmt: Annotated[
        str, typer.Option("--format", help="What to print: rich, txt, md, csv, tex, html, json or parquet.")
    ] = "rich",
    table: Annotated[list[str] | None, typer.Option(help="Only tables of this file name, a part or a pattern.")] = None,
    columns: Annotated[str, typer.Option(help="Only these columns, as in the CSV: mean,worst")] = "",
    sort: Annotated[str, typer.Option(help="Rising by a column; -mean: falling.")] = "",
    where: Annotated[str, typer.Option("--filter", help="Only such rows: mean > 70 and family == 'lora'")] = "",
    quiet: QuietOption = False,
) -> None:
    """Write tables and plots of the records in a folder, and print the tables.

    With a choice of tables, columns or rows nothing is written but what --out names, and that stays whole.
    """
    from mmbench.publish import publish
    from mmbench.report.view import View, split_names

    view = View(tuple(table or ()), split_names(columns), sort, where)
    publish(fetched(folder), out, None if quiet else fmt, view)


@results_app.command()
@guarded
def site(
    folder: Annotated[Path, typer.Argument(help="A results folder or a board.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the site; FOLDER/site.")] = None,
    samples: Annotated[bool, typer.Option(help="Pictures and sounds of the corruptions.")] = True,
    plugin: PluginOption = None,
) -> None:
    """Write a board as static pages that open without a server."""
    use_plugins(plugin)
    from mmbench.site_verb import write

    write(fetched(folder), out, samples)


@results_app.command()
@guarded
def view(
    folder: Annotated[Path, typer.Argument(help="A results folder, a board, or a site.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 0,
    samples: Annotated[bool, typer.Option(help="Pictures and sounds of the corruptions.")] = True,
    plugin: PluginOption = None,
) -> None:
    """Look at a board in a browser: serve its pages to this machine until Ctrl-C."""
    use_plugins(plugin)
    from mmbench.site_serve import view as look

    look(fetched(folder), port, samples)


@submit_app.command("check")
@guarded
def submit_check(
    folder: Annotated[Path, typer.Argument(help="A results folder, as `mmbench run` leaves it.")],
    against: Annotated[Path | None, typer.Option(help="A board that the results are to stand in.")] = None,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Verify results before a pull request: files, ids, budget, costs, and every score from its predictions."""
    use_plugins(plugin)
    from mmbench.submission import submit_check_command

    if not submit_check_command(fetched(folder), against, json):
        raise typer.Exit(FAILED)


@results_app.command()
@guarded
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Results folders or boards of one suite.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write, or to go on with.")],
    quiet: QuietOption = False,
) -> None:
    """Join the results of several machines into one folder, which `run` resumes and `leaderboard` reads."""
    from mmbench.merge import merge_command

    if not merge_command([fetched(folder) for folder in folders], out, quiet):
        raise typer.Exit(FAILED)


@results_app.command()
@guarded
def compare(
    first: Annotated[str, typer.Argument(help="A row as tables name it: method, or method+regime.")],
    second: Annotated[str, typer.Argument(help="The row to compare it with.")],
    folder: Annotated[Path, typer.Argument(help="A results folder or a board.")],
    track: Annotated[str | None, typer.Option(help="informed, avail or blind; the first that both have.")] = None,
    json: JsonOption = False,
) -> None:
    """Is one row better than another: where, by how much, and how sure."""
    from mmbench.comparing import compare_command

    compare_command((first, second), fetched(folder), track, json)


@results_app.command()
@guarded
def status(
    folder: Annotated[Path, typer.Argument(help="A results folder, as `mmbench run` leaves it.")],
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look every two seconds, until all is done.")] = False,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """How a run stands: done, failed and why, running and where, waiting, time left.

    The exit code tells it too: 0 all is done, 1 all is done and something failed, 3 something is unfinished.
    """
    use_plugins(plugin)
    from mmbench.status_verb import status_command

    raise typer.Exit(status_command(folder, watch, json))


@results_app.command()
@guarded
def retry(
    folder: Annotated[Path, typer.Argument(help="A results folder, as `mmbench run` leaves it.")],
    failed: Annotated[bool, typer.Option("--failed", help="Whatever failed: all but ok and refused.")] = False,
    statuses: Annotated[list[str] | None, typer.Option("--status", help="Only this, e.g. crashed; repeatable.")] = None,
    plugin: PluginOption = None,
    device: DeviceOption = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    executor: ExecutorOption = "local",
    executor_option: ExecutorWordsOption = None,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> None:
    """Run failed trials of a folder again, by the suite that it keeps; the old records stay beside the new ones."""
    use_plugins(plugin)
    from mmbench.retry_verb import retry_command
    from mmbench.runner import RunRequest

    words = (tuple(statuses or ()), executor, tuple(executor_option or ()))
    result = retry_command(RunRequest(fetched(folder), folder, (), device, workers, None, *words), failed, quiet, json)
    if result is not None and result.failed:
        raise typer.Exit(FAILED)


@results_app.command()
@guarded
def track(
    folder: Annotated[Path, typer.Argument(help="A results folder.")],
    to: Annotated[str, typer.Option(help="tensorboard, wandb (offline) or mlflow (SQLite); each is an extra.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the tracker's files.")],
) -> None:
    """Show finished trials in an experiment tracker: curves, scores and costs. Again: those that are new."""
    from mmbench.trackers import track_command

    if not track_command(fetched(folder), to, out):
        raise typer.Exit(FAILED)
