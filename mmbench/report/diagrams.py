"""Critical-difference diagrams: which mean ranks over data sets and cases differ by more than chance explains.

Few rows are drawn as in Demsar (Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006, section
3.2.2); many rows as intervals half a critical difference either side, which say the same: those that overlap are not
told apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mmbench.cards import Track
from mmbench.report.families import family_legend, look_of, mark_rows, marker_style
from mmbench.report.figures import Drawing, left_out, name_rows, new_figure, row_label, shown_rows
from mmbench.report.model import NOT_MEASURED, Facts, Row, plain
from mmbench.report.ranking import Ranking

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_CLASSIC = 14


def rank_diagram(ranking: Ranking, track: Track, families: Mapping[str, str]) -> Drawing:
    """Mean ranks with what the test does not tell apart; `families` holds the family of each title."""
    rows = [
        Row(name, regime, (), trained=regime != NOT_MEASURED, facts=Facts(family=families.get(name, "")))
        for name, regime in ranking.names
    ]
    classic = len(rows) <= _MOST_CLASSIC
    figure = _classic(ranking, rows) if classic else _intervals(ranking, rows)
    title = f"Mean ranks over {ranking.blocks} blocks (data set x case), {track} track"
    joined = "joined" if classic else "intervals that overlap"
    cut = "" if classic else left_out(len(shown_rows(rows)), len(rows))
    note = f"{joined}: not told apart at 5 % (Nemenyi, critical difference {ranking.critical_difference:.2f})"
    figure.suptitle(f"{title}{cut}\n{note}", fontsize=10)
    told = "; ".join(f"{row_label(row)} {rank:.2f}" for row, rank in zip(rows[:5], ranking.mean_ranks[:5], strict=True))
    alike = next((len(group) for group in ranking.groups if group[0] == 0), 1)
    alt = (
        f"Critical-difference diagram of {len(rows)} rows over {ranking.blocks} blocks; "
        f"best mean ranks: {plain(told)}. {alike} rows from the top are not told apart; "
        f"critical difference {ranking.critical_difference:.2f}."
    )
    return Drawing(figure, "ranks", title, alt, "critical-difference")


def _classic(ranking: Ranking, rows: list[Row]) -> Figure:
    """Ranks across, names left and right of them, a bar for each run that is not told apart."""
    count = len(rows)
    half = math.ceil(count / 2)
    first_name = 0.5 + 0.28 * len(ranking.groups)  # inches below the axis
    figure = new_figure(9.0, 2.1 + first_name + 0.34 * half)
    axes = figure.subplots()
    axes.set_axis_off()
    low, high = 1.0, float(count)
    margin = 0.42 * (high - low)  # for names
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(first_name + 0.34 * half, -1.0)
    axes.plot([low, high], [0, 0], color="black", linewidth=1.2)
    for tick in range(1, count + 1):
        axes.plot([tick, tick], [0, -0.09], color="black", linewidth=1)
        axes.text(tick, -0.14, str(tick), ha="center", va="bottom", fontsize=8.5)
    _ruler(axes, low, ranking.critical_difference)
    for i, group in enumerate(ranking.groups):
        ends = ranking.mean_ranks[group[0]] - 0.03, ranking.mean_ranks[group[-1]] + 0.03
        axes.plot(ends, [0.3 + 0.28 * i] * 2, color="#333333", linewidth=4, solid_capstyle="butt")
    for i, (row, rank) in enumerate(zip(rows, ranking.mean_ranks, strict=True)):
        left = i < half
        y = first_name + 0.34 * (i if left else count - 1 - i)
        edge = low - 0.04 * margin if left else high + 0.04 * margin
        axes.plot([rank, rank, edge], [0, y, y], color=look_of(row).colour, linewidth=1)
        axes.plot([rank], [0], **{**marker_style(row), "markersize": 6, "zorder": 4})
        text = f"{row_label(row)}  {rank:.2f}" if left else f"{rank:.2f}  {row_label(row)}"
        axes.text(edge, y, f" {text} ", ha="right" if left else "left", va="center", fontsize=9)
    family_legend(figure, rows, 7)
    return figure


def _ruler(axes: Axes, start: float, length: float) -> None:
    """The critical difference to scale, above the axis."""
    y = -0.6
    axes.plot([start, start + length], [y, y], color="black", linewidth=1.5)
    for x in (start, start + length):
        axes.plot([x, x], [y - 0.08, y + 0.08], color="black", linewidth=1.5)
    axes.text(start + length / 2, y - 0.1, f"critical difference {length:.2f}", ha="center", va="bottom", fontsize=8.5)


def _intervals(ranking: Ranking, rows: list[Row]) -> Figure:
    """One row below the other, each with half a critical difference either side; the best row's reach is shaded."""
    pairs = shown_rows(list(zip(rows, ranking.mean_ranks, strict=True)))
    reach = ranking.critical_difference / 2
    figure = new_figure(8.6, 1.9 + 0.26 * len(pairs))
    axes = figure.subplots()
    best = ranking.mean_ranks[0]
    axes.axvspan(best - reach, best + reach, color="#eeeeee", zorder=0)
    for y, (row, rank) in enumerate(pairs):
        axes.plot([rank - reach, rank + reach], [y, y], color=look_of(row).colour, linewidth=1.2)
        axes.plot([rank], [y], **{**marker_style(row), "markersize": 6, "zorder": 4})
    name_rows(axes, [row_label(row) for row, _ in pairs])
    mark_rows(axes, [row for row, _ in pairs])
    axes.grid(axis="y", visible=False)
    axes.set_xlim(left=min(0.0, best - 0.5))
    axes.set_xlabel("mean rank, 1 is best; shaded: the interval of the best row")
    axes.tick_params(axis="x", labelsize=8)
    family_legend(figure, [row for row, _ in pairs], 7)
    return figure
