"""The command line. Every verb is a thin shell around a Python call; heavy imports stay inside the verbs."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from mmbench.errors import MMBenchError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="mmbench",
    help="How robust is an adaptation method when audio or vision is missing or corrupted, and what does it cost?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Read data sets into stores.", no_args_is_help=True)
backbone_app = typer.Typer(help="Build, import and inspect source models.", no_args_is_help=True)
new_app = typer.Typer(help="Write skeletons.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(backbone_app, name="backbone")
app.add_typer(new_app, name="new")

Verb = TypeVar("Verb", bound=Callable[..., Any])
PluginOption = Annotated[list[Path] | None, typer.Option("--plugin", help="A .py file with methods or corruptions.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a key: budget.epochs=2")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N; the GPU if there is one.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable lines on stdout.")]
OutOption = Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the results.")]


def guarded(verb: Verb) -> Verb:
    """Errors a user can act on become one line and exit code 2; Ctrl-C becomes 130."""

    @functools.wraps(verb)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return verb(*args, **kwargs)
        except MMBenchError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(USAGE) from None
        except KeyboardInterrupt:
            typer.echo("interrupted; the same command resumes", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # the reader (head, less) has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(OK) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise
            typer.echo(f"error: {error.strerror}: {error.filename}; free some space or choose another folder", err=True)
            raise typer.Exit(USAGE) from None

    return call  # type: ignore[return-value]


def use_plugins(paths: list[Path] | None) -> None:
    from mmbench import registry

    registry.use_plugins(tuple(paths or ()))


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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the grid and its cost, run nothing.")] = False,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> None:
    """Run a suite; the same command again resumes it."""
    use_plugins(plugin)
    from mmbench.runner import RunRequest, dry_run_suite, run_command

    request = RunRequest(suite, out, tuple(overrides or ()), device, workers, limit, tuple(retry or ()))
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
    from mmbench.executors.local import BUSY
    from mmbench.run import Interrupted, run_trial

    try:
        status = run_trial(folder, pick_device(device))
    except Interrupted:
        raise typer.Exit(INTERRUPTED) from None
    if status is None:
        raise typer.Exit(BUSY)
    typer.echo(status)


@app.command()
@guarded
def leaderboard(
    folder: Annotated[Path, typer.Argument(help="A results folder or a board.")],
    out: OutOption = None,
    fmt: Annotated[str, typer.Option("--format", help="What to print: rich, md, csv, tex or html.")] = "rich",
    quiet: QuietOption = False,
) -> None:
    """Write tables and plots of the records in a folder, and print the tables."""
    from mmbench.publish import publish

    publish(folder, out or folder / "board", None if quiet else fmt)


@app.command("ls")
@guarded
def list_entries(
    what: Annotated[str, typer.Argument(help="methods, corruptions, cases, datasets, backbones, suites or runs.")],
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """List what there is."""
    use_plugins(plugin)
    from mmbench.listing import print_list

    print_list(what, json)


@app.command()
@guarded
def show(
    name: str,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write samples of a data set here.")] = None,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Describe a method, corruption, case, data set, backbone or suite; with --out, write samples of a data set."""
    use_plugins(plugin)
    if out is not None:
        from mmbench.samples import write_dataset_samples

        write_dataset_samples(name, out)
    from mmbench.listing import print_entry

    print_entry(name, json)


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
    method: Annotated[str, typer.Argument(help="A method, e.g. lora-qv.")],
    backbone: Annotated[str, typer.Option(help="A preset.")] = "cavmae-tiny",
    batch: Annotated[int, typer.Option(min=2, help="Samples of a step.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps after the warm-up.")] = 5,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    device: DeviceOption = None,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Costs of one method at one batch size, without training it."""
    use_plugins(plugin)
    from mmbench.profiling import ProfileRequest, print_profile

    print_profile(ProfileRequest(method, backbone, batch, steps, precision), device, json)


@app.command()
@guarded
def doctor(json: JsonOption = False) -> None:
    """Report the environment and what is wrong with it."""
    from mmbench.doctor import print_report

    if not print_report(json):
        raise typer.Exit(FAILED)


@data_app.command("prepare")
@guarded
def data_prepare(
    suite: Path, overrides: SetOption = None, plugin: PluginOption = None, quiet: QuietOption = False
) -> None:
    """Read every data set of a suite into its store, ahead of a run."""
    use_plugins(plugin)
    from mmbench.runner import prepare_command

    prepare_command(suite, tuple(overrides or ()), quiet)


@data_app.command("check")
@guarded
def data_check(suite: Path, overrides: SetOption = None, plugin: PluginOption = None) -> None:
    """Verify the checksums of a suite's stores and describe the splits."""
    use_plugins(plugin)
    from mmbench.runner import check_command

    check_command(suite, tuple(overrides or ()))


@backbone_app.command("build")
@guarded
def backbone_build(
    suite: Path,
    out: OutOption = None,
    overrides: SetOption = None,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Fine-tune the source models of a suite on their clean data (into the cache, or into --out)."""
    from mmbench.backbones import build_command

    build_command(suite, out, tuple(overrides or ()), device, quiet)


@backbone_app.command("import")
@guarded
def backbone_import(
    checkpoint: Annotated[Path, typer.Argument(help="An official fine-tuned CAV-MAE checkpoint (.pth).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    classes: Annotated[int | None, typer.Option(min=2, help="Classes of its head; read from it unless given.")] = None,
    backbone: Annotated[str, typer.Option(help="A preset of the checkpoint's size.")] = "cavmae-base",
) -> None:
    """Turn an official checkpoint into a backbone folder."""
    from mmbench.backbones import import_command

    import_command(checkpoint, out, classes, backbone)


@backbone_app.command("info")
@guarded
def backbone_info(path: Annotated[Path, typer.Argument(help="A backbone folder or an official checkpoint.")]) -> None:
    """Describe a backbone folder or a checkpoint."""
    from mmbench.backbones import info_command

    info_command(path)


@new_app.command("method")
@guarded
def new_method(name: str, out: Annotated[Path, typer.Option("--out", "-o")] = Path()) -> None:
    """Write the skeleton of a method: a file that runs as it is, for --plugin or for methods/."""
    from mmbench.scaffold import write_method

    typer.echo(str(write_method(name, out)))


def main() -> None:
    app()
