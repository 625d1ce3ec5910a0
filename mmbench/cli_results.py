"""Verbs that read finished trials."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmbench.cli_common import OutOption, QuietOption, guarded

results_app = typer.Typer()


@results_app.command()
@guarded
def leaderboard(
    folder: Annotated[Path, typer.Argument(help="A results folder or a board.")],
    out: OutOption = None,
    fmt: Annotated[str, typer.Option("--format", help="What to print: rich, md, csv, tex or html.")] = "rich",
    quiet: QuietOption = False,
) -> None:
    """Write tables and plots of the records in a folder, and print the tables."""
    from mmbench.publish import publish

    publish(folder, out, None if quiet else fmt)
