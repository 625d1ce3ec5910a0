"""The command line. Every verb is a thin shell around a Python call; heavy imports stay inside the verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmbench.cli_common import (
    FAILED,
    INTERRUPTED,
    DeviceOption,
    ExecutorOption,
    ExecutorWordsOption,
    JsonOption,
    OutOption,
    PluginOption,
    QuietOption,
    SetOption,
    guarded,
    say_error,
    use_plugins,
)
from mmbench.cli_parts import backbone_app, data_app, new_app
from mmbench.cli_results import results_app

app = typer.Typer(
    name="mmbench",
    help="How robust is an adaptation method when audio or vision is missing or corrupted, and what does it cost?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(results_app)
app.add_typer(data_app, name="data")
app.add_typer(backbone_app, name="backbone")
app.add_typer(new_app, name="new")


@app.callback()
def root() -> None:
    """Kept so that a single verb is never taken for the whole program."""


@app.command()
@guarded
def quickstart(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path("runs/quickstart"),
    device: DeviceOption = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> None:
    """Compare a few methods on the embedded data; ends with a leaderboard (minutes on a laptop)."""
    from mmbench.publish import publish
    from mmbench.runner import RunRequest, run_command

    result = run_command(RunRequest(Path("quickstart"), out, device=device, workers=workers), quiet, json)
    publish(out, None, None if quiet or json else "rich")
    if result.failed:
        raise typer.Exit(FAILED)


@app.command()
@guarded
def run(
    suite: Annotated[Path, typer.Argument(help="A suite file, or the name of a shipped one.")],
    out: OutOption = None,
    overrides: SetOption = None,
    plugin: PluginOption = None,
    device: DeviceOption = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Start at most so many trials.")] = None,
    retry: Annotated[list[str] | None, typer.Option(help="Run records of this status again, e.g. crashed.")] = None,
    executor: ExecutorOption = "local",
    executor_option: ExecutorWordsOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the grid and its cost, run nothing.")] = False,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> None:
    """Run a suite; the same command again resumes it."""
    use_plugins(plugin)
    from mmbench.runner import RunRequest, dry_run_suite, run_command

    request = RunRequest(
        suite,
        out,
        tuple(overrides or ()),
        device,
        workers,
        limit,
        tuple(retry or ()),
        executor,
        tuple(executor_option or ()),
    )
    if dry_run:
        dry_run_suite(request, json)
        return
    if run_command(request, quiet, json).failed:
        raise typer.Exit(FAILED)


@app.command()
@guarded
def trial(folder: Annotated[Path, typer.Argument(help="A trial's folder.")], device: DeviceOption = None) -> None:
    """Run one trial of a sweep (what `run` starts as a fresh process)."""
    from mmbench.bench import pick_device
    from mmbench.endings import is_outside
    from mmbench.executors.base import BUSY, OUTSIDE
    from mmbench.resume import Interrupted
    from mmbench.run import run_trial

    try:
        status = run_trial(folder, pick_device(device))
    except Interrupted:
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if not is_outside(error):
            raise
        say_error(error)
        raise typer.Exit(OUTSIDE) from None
    if status is None:
        raise typer.Exit(BUSY)
    typer.echo(status)


@app.command("ls")
@guarded
def list_entries(
    what: Annotated[str, typer.Argument(help="methods, corruptions, cases, datasets, backbones, suites or runs.")],
    backbone: Annotated[str | None, typer.Option(help="Count the methods' parameters at this preset.")] = None,
    cards: Annotated[Path | None, typer.Option(help="Write the cards of all methods into this Markdown file.")] = None,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """List what there is."""
    use_plugins(plugin)
    if cards is not None:
        from mmbench.cards_page import write_cards

        write_cards(what, cards)
        return
    from mmbench.listing import print_list

    print_list(what, json, backbone)


@app.command()
@guarded
def cite(
    names: Annotated[list[str], typer.Argument(help="Names, or combinations like lora-qv+mixup+read.")],
    plugin: PluginOption = None,
) -> None:
    """Print the BibTeX of methods, training strategies and online adapters."""
    use_plugins(plugin)
    from mmbench.citing import citations

    typer.echo("\n\n".join(citations(names)))


@app.command()
@guarded
def show(
    name: Annotated[str, typer.Argument(help="Whatever `ls` lists, or all corruptions of a family: 'imagenet_c/*'.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write samples to look at and hear here.")] = None,
    dataset: Annotated[str, typer.Option(help="Whose samples to corrupt: a name, suite or folder.")] = "synthetic-av",
    severities: Annotated[str | None, typer.Option(help="Which to write: 1-5, 3 or 1,3,5; all.")] = None,
    overview: Annotated[bool, typer.Option("--overview", help="Write a family as one picture.")] = False,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Describe a method, strategy, online adapter, corruption, case, data set, backbone or suite.

    With --out, write samples of a data set, or contact sheets and sounds of a corruption.
    """
    use_plugins(plugin)
    from mmbench.listing import print_entry

    print_entry(name, json)
    if out is not None:
        from mmbench.samples import write_entry_samples

        for line in write_entry_samples(name, out, dataset, severities, overview):
            typer.echo(line, err=json)


@app.command()
@guarded
def validate(suite: Path, overrides: SetOption = None, plugin: PluginOption = None) -> None:
    """Check a suite file: keys, names, options, cases."""
    use_plugins(plugin)
    from mmbench.runner import read_suite
    from mmbench.trials import rows

    checked = read_suite(suite, tuple(overrides or ()))
    typer.echo(f"{checked.name}: valid, {len(rows(checked))} trials")


@app.command()
@guarded
def profile(
    methods: Annotated[list[str], typer.Argument(metavar="METHOD...", help="Methods, e.g. lora-qv; or all.")],
    backbone: Annotated[str, typer.Option(help="A preset; here and below: or several, a,b.")] = "cavmae-tiny",
    batch: Annotated[str, typer.Option(help="Samples of a step.")] = "8",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    option: Annotated[list[str] | None, typer.Option(help="Of the methods that have it: rank=4,8")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the blocks, as budget.compile does.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps after the warm-up.")] = 5,
    epoch_samples: Annotated[int, typer.Option(min=1, help="Samples of an epoch.")] = 10_000,
    memory_cap_gib: Annotated[float | None, typer.Option(min=0, help="Find the largest batch within it.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Write traces of a few steps into this folder.")] = None,
    out: OutOption = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N; meta counts without running.")] = None,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Costs of methods at every combination of the settings, without training them."""
    use_plugins(plugin)
    from mmbench.profile_grid import Grid, Output, run_grid, settings
    from mmbench.profile_rows import Plan

    rows = settings(Grid(methods, backbone, batch, precision, option or (), compile))
    try:
        done = run_grid(rows, Plan(steps, epoch_samples, memory_cap_gib, trace), device, Output(out, json))
    except KeyboardInterrupt:
        typer.echo("interrupted; the rows above are finished" + (f" and kept in {out}" if out else ""), err=True)
        raise typer.Exit(INTERRUPTED) from None
    if all(row.status != "ok" for row in done):
        raise typer.Exit(FAILED)


@app.command()
@guarded
def doctor(json: JsonOption = False) -> None:
    """Report the environment and what is wrong with it."""
    from mmbench.doctor import print_report

    if not print_report(json):
        raise typer.Exit(FAILED)


@app.command()
@guarded
def check(
    name: Annotated[str, typer.Argument(help="A method, training strategy, adapter or corruption.")],
    plugin: PluginOption = None,
) -> None:
    """Run the conformance suite on a method, strategy, adapter or corruption, as the tests do on built-in ones."""
    use_plugins(plugin)
    from mmbench.conformance_verb import check_entry

    findings = check_entry(name)
    for finding in findings:
        typer.echo(
            f"{'ok  ' if finding.ok else 'FAIL'} {finding.check}{': ' if finding.message else ''}{finding.message}"
        )
    if not all(finding.ok for finding in findings):
        raise typer.Exit(FAILED)


def main() -> None:
    app()
