"""What all verbs of the command line share: options, exit codes, and how errors are told."""

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
from mmbench.files import no_room

OK, FAILED, USAGE, UNFINISHED, INTERRUPTED = 0, 1, 2, 3, 130

Verb = TypeVar("Verb", bound=Callable[..., Any])
PluginOption = Annotated[list[Path] | None, typer.Option("--plugin", help="A .py file with methods or corruptions.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a key: budget.epochs=2")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N; the GPU if there is one.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable lines on stdout.")]
ExecutorOption = Annotated[str, typer.Option("--executor", help="Where trials run: local, slurm or ray.")]
ExecutorWordsOption = Annotated[
    list[str] | None, typer.Option("--executor-option", help="KEY=VALUE, e.g. partition=gpu.")
]
OutOption = Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the results.")]


def guarded(verb: Verb) -> Verb:
    """Errors a user can act on become one line and exit code 2; Ctrl-C becomes 130."""

    @functools.wraps(verb)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return verb(*args, **kwargs)
        except MMBenchError as error:
            say_error(error)
            raise typer.Exit(USAGE) from None
        except KeyboardInterrupt:
            typer.echo("interrupted; the same command resumes", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # the reader (head, less) has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(OK) from None
        except OSError as error:
            if not no_room(error) and error.errno != errno.EACCES:
                raise
            say_error(error)
            raise typer.Exit(USAGE) from None

    return call  # type: ignore[return-value]


def say_error(error: Exception) -> None:
    """Tell an error in one line on stderr, as far as that takes it: it may be a file on the disk that is full."""
    text = str(error)
    if isinstance(error, OSError):
        text = f"{error.strerror}: {error.filename}; free some space or choose another folder"
    try:
        typer.echo(f"error: {text}", err=True)
    except OSError:  # what is left in the buffer would fail again at the end, and change the exit code
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def fetched(folder: Path) -> Path:
    """A results folder; of a URL the local mirror, brought up to date."""
    from mmbench.mirror import mirror_of

    return mirror_of(folder)


def use_plugins(paths: list[Path] | None) -> None:
    from mmbench import registry

    registry.use_plugins(tuple(paths or ()))
    registry.check_plugins()
