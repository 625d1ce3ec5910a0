"""How far the seeds of a row lie apart: a dot for every trial, a line at their mean."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from mmbench.cards import Track
from mmbench.report.aggregate import regime_word
from mmbench.report.case_scores import over_cases, scored_on
from mmbench.report.comparable import Selection
from mmbench.report.families import family_legend, look_of, mark_rows, marker_style
from mmbench.report.figures import Drawing, label, left_out, name_rows, new_figure, row_label, shown_rows
from mmbench.report.model import Row, Table, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = ("mean over cases", "worst case")


def seed_spread(table: Table, selection: Selection, track: Track) -> Drawing | None:
    """Mean and worst case of every trial of an accuracy table; None unless a row has two seeds."""
    found = _trials(selection, track)
    named = [row for row in table.rows if not row.reported and found.get((row.name, row.regime))]
    rows = shown_rows(named)
    values = [found[row.name, row.regime] for row in rows]
    if not any(len(seeds) > 1 for seeds in values):
        return None
    figure = new_figure(9.4, 1.9 + 0.26 * len(rows))
    panels = figure.subplots(1, 2, sharey=True)
    for i, axes in enumerate(panels):
        _panel(axes, rows, [[seed[i] for seed in seeds] for seeds in values])
        axes.set_title(f"{_PANELS[i]} (%)", fontsize=9)
    bounded = _intervals(panels[0], table, rows)
    name_rows(panels[0], [row_label(row) for row in rows])
    mark_rows(panels[0], rows)
    family_legend(figure, rows, 7)
    title = f"Seeds apart: {table.title}"
    note = f"{label(title, 90)}{left_out(len(rows), len(named))}\ndots: one seed each; lines: their mean"
    note += "; pale: 95 % interval of the mean, as in the table" if bounded else ""
    figure.suptitle(note, fontsize=10)
    widest = max(zip(rows, values, strict=True), key=lambda entry: _span(entry[1]))
    alt = (
        f"Strip plot of {plain(table.title)}: mean and worst case of every seed, {len(rows)} of {len(named)} rows. "
        f"The seeds of {plain(widest[0].name)}, {widest[0].regime} lie furthest apart: "
        f"{_span(widest[1]):.1f} points of the mean."
    )
    return Drawing(figure, "seeds", plain(title), alt)


def _span(seeds: list[tuple[float, float]]) -> float:
    means = [mean for mean, _ in seeds]
    return max(means) - min(means)


def _trials(selection: Selection, track: Track) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(name, regime) -> mean and worst case in percent of every finished seed that has both."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for record in selection.records:
        scored = scored_on(record, selection, track) if record.status == "ok" else None
        if scored is None:
            continue
        values = tuple(scored.values.values())
        mean, worst = over_cases(values), over_cases(values, worst=True)
        if mean is not None and worst is not None:
            found.setdefault((record.trial.title, regime_word(record)), []).append((100 * mean, 100 * worst))
    return found


def _intervals(axes: Axes, table: Table, rows: list[Row]) -> bool:
    """A pale bar over the interval of each mean, where the table has intervals; whether it has."""
    places = {column.key: i for i, column in enumerate(table.columns)}
    if "ci_low" not in places:
        return False
    for y, row in enumerate(rows):
        low, high = (row.cells[places[key]].mean for key in ("ci_low", "ci_high"))
        if low is not None and high is not None:
            axes.barh(y, high - low, left=low, height=0.72, color=look_of(row).colour, alpha=0.18, linewidth=0)
    return True


def _panel(axes: Axes, rows: list[Row], values: list[list[float]]) -> None:
    for y, (row, seeds) in enumerate(zip(rows, values, strict=True)):
        axes.plot([fmean(seeds)] * 2, [y - 0.36, y + 0.36], color="#333333", linewidth=1.2, zorder=2)
        axes.plot([min(seeds), max(seeds)], [y, y], color=look_of(row).colour, linewidth=0.8, alpha=0.6, zorder=2)
        axes.plot(seeds, [y] * len(seeds), **{**marker_style(row), "markersize": 5.5, "alpha": 0.85, "zorder": 3})
    axes.grid(axis="y", linewidth=0.4)
    axes.tick_params(axis="x", labelsize=8)
