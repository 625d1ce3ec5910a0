"""How training went: the loss of every epoch, from the events that trials leave beside their records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from mmbench.report.aggregate import regime_word
from mmbench.report.comparable import Selection
from mmbench.report.curves import LineStyle, draw_line
from mmbench.report.families import family_legend, marker_style
from mmbench.report.figures import Drawing, label, new_figure, row_label, spans_far
from mmbench.report.model import Table, plain
from mmbench.report.trial_files import Curve, read_curves

Points = Sequence[tuple[float, float]]  # share of the training in percent, loss


def training_curves(table: Table, selection: Selection, folders: Mapping[str, Path]) -> Drawing | None:
    """A panel a regime, a line a row: the mean loss over seeds and states; None where no trial kept two epochs.

    `folders` holds the folder of each trial id; published boards keep none.
    """
    found = _by_row(selection, folders)
    rows = [row for row in table.rows if row.trained and found.get((row.name, row.regime))]
    if not rows:
        return None
    regimes = list(dict.fromkeys(row.regime for row in rows))
    figure = new_figure(max(6.4, 3.1 * len(regimes)), 4.2)
    panels = figure.subplots(1, len(regimes), squeeze=False)[0]
    for axes, regime in zip(panels, regimes, strict=True):
        here = [row for row in rows if row.regime == regime]
        best = {row.facts.family: row for row in reversed(here)}
        for row in reversed(here):  # so that no grey line covers a coloured one
            shares, losses = zip(*found[row.name, row.regime], strict=True)
            style = LineStyle(marker_style(row), 0) if best[row.facts.family] is row else None
            draw_line(axes, (list(shares), list(losses)), style, row_label(row))
        if spans_far([loss for row in here for _, loss in found[row.name, row.regime]]):
            axes.set_yscale("log")
        axes.set_title(label(regime, 30), fontsize=9)
        axes.set_xlabel("share of the training (%)", fontsize=9)
        axes.tick_params(labelsize=8)
    panels[0].set_ylabel("training loss", fontsize=9)
    title = f"Training loss on {plain(selection.dataset)}, {plain(selection.backbone)}"
    note = "mean over seeds and states; coloured: the best row of its family; methods may add terms of their own"
    figure.suptitle(f"{label(title, 100)}\n{note}", fontsize=10)
    family_legend(figure, [replace(row, regime="") for row in rows], 7)
    alt = (
        f"Line plots of the training loss of {len(rows)} rows, a panel for each regime: {', '.join(regimes)}; "
        "the best row of each method family is coloured."
    )
    return Drawing(figure, "training", title, alt)


def _by_row(selection: Selection, folders: Mapping[str, Path]) -> dict[tuple[str, str], Points]:
    """(name, regime) -> its mean curve."""
    found: dict[tuple[str, str], list[Curve]] = {}
    for record in selection.records:
        if record.status == "ok" and record.trial.id in folders:
            key = (record.trial.title, regime_word(record))
            found.setdefault(key, []).extend(read_curves(folders[record.trial.id]))
    means = {key: mean_curve(curves) for key, curves in found.items()}
    return {key: points for key, points in means.items() if len(points) > 1}


def mean_curve(curves: Iterable[Curve]) -> Points:
    """Mean loss at each share of the training that all curves have."""
    losses: dict[float, list[float]] = {}
    count = 0
    for curve in curves:
        count += 1
        for point in curve.points:
            losses.setdefault(round(100 * point.samples / curve.points[-1].samples, 1), []).append(point.loss)
    return [(share, fmean(found)) for share, found in sorted(losses.items()) if len(found) == count]
