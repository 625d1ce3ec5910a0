"""What `site` does: a results folder or a board as a static site."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from mmbench.cases import Case
from mmbench.errors import ConfigError
from mmbench.files import RecordError, make_folder
from mmbench.registry import plugins, use_plugins
from mmbench.report.aggregate import Board, load_board
from mmbench.report.board import PLOTS
from mmbench.report.conditions import Group
from mmbench.report.figures import Plot
from mmbench.report.plots import write_plots
from mmbench.report.site.content import Content, arrange
from mmbench.report.site.model import Extras, Sample
from mmbench.report.site.write import Built, write_site
from mmbench.site_facts import cases_of, corruption_cards, part_cards
from mmbench.site_serve import FRONT, is_site

MANY = 600
"""Trials from which on a second process, which reads them again, is sooner done than the first alone."""


def write(folder: Path, out: Path | None, samples: bool) -> None:
    """Write the site of `folder` into `out`, or into its own folder `site`, and say so."""
    target = out or folder / "site"
    built = build_site(folder, target, samples)
    for problem in built.problems:
        print(f"note: {problem}", file=sys.stderr)
    print(f"{built.pages} pages; open {target / FRONT}")


def build_site(folder: Path, out: Path, samples: bool = True) -> Built:
    """Write the site of a results folder or a board into `out`, which must be new, empty or an older site.

    Nothing is replaced before the new site is whole. Raises RecordError if there is no record or nothing can be
    written, ConfigError if `out` holds something else.
    """
    if out.exists() and not is_site(out) and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is neither empty nor a site; choose another folder with --out")
    board = load_board(folder)
    make_folder(out)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.resolve().parent) as aside:
            new = Path(aside)
            with _drawn(board, new / PLOTS) as drawn:
                content = arrange(board, drawn)
                built = write_site(content, new, _extras(content, new, samples))
            _install(new, out)
    except OSError as error:
        raise RecordError(f"cannot write site {out}: {error.strerror}; choose another folder with --out") from None
    return built


def _extras(content: Content, new: Path, samples: bool) -> Extras:
    cases = cases_of(content.board)
    return Extras(
        parts=part_cards(content),
        corruptions={subject.label: corruption_cards(subject, cases) for subject in content.subjects},
        samples=_samples(content.subjects, cases, new) if samples else {},
    )


@contextmanager
def _drawn(board: Board, plots: Path) -> Iterator[Callable[[], tuple[Plot, ...]]]:
    """Gives the plots; those of many records are drawn in a process of their own while pages are written."""
    if len(board.records) < MANY:
        yield partial(write_plots, board, plots)
        return
    with ProcessPoolExecutor(1, get_context("spawn"), use_plugins, (plugins(),)) as pool:
        yield pool.submit(_draw, board.folder, plots).result


def _draw(folder: Path, plots: Path) -> tuple[Plot, ...]:
    return write_plots(load_board(folder), plots)


def _samples(subjects: Sequence[Group], cases: Mapping[str, Case], out: Path) -> Mapping[str, Sample]:
    from mmbench.site_samples import write_samples  # torch, which no other part of a site needs

    return write_samples(subjects, cases, out)


def _install(new: Path, out: Path) -> None:
    """Put the new site in the place of the old one; files of others beside it stay."""
    for entry in sorted(new.iterdir()):
        target = out / entry.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        entry.rename(target)
