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
    publish(folder, out, None if quiet else fmt, view)
