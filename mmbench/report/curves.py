"""Score over severity and missing rate: one panel a corruption, one line a row, bands as wide as the seeds spread."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmbench.report.aggregate import slug
from mmbench.report.conditions import Condition, Group, clean_case, corruptions_of, families_of
from mmbench.report.families import marker_style
from mmbench.report.figures import Drawing, label, new_figure, row_label, shown_rows
from mmbench.report.model import NOT_MEASURED, Cell, Row, Table, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = ("-", "--", ":")
MOST_LINES = 9
MUTED = "#d0d0d0"
OTHERS = "other rows"
PANELS_ACROSS = 4
SCALES = {"severity": "severity", "rate": "share of samples that lack a modality (%)"}


@dataclass(frozen=True)
class LineStyle:
    """How a row is drawn in every panel and figure: its family's marker as elsewhere, dashes by its place in it."""

    marker: Mapping[str, Any]
    place: int

    @property
    def dashes(self) -> str:
        return DASHES[self.place]


@dataclass(frozen=True)
class Sheet:
    """One figure: the corruptions of a family that have a scale."""

    name: str
    scale: str
    groups: tuple[Group, ...]


def sheets(conditions: Sequence[Condition]) -> tuple[Sheet, ...]:
    """A figure for each family in which a corruption has two levels or more."""
    found = []
    for family, groups in families_of(corruptions_of(conditions)).items():
        swept = tuple(group for group in groups if len({c.level for c in group.conditions}) > 1)
        if swept:
            found.append(Sheet(family, swept[0].conditions[0].scale, swept))
    return tuple(found)


def line_styles(rows: Sequence[Row]) -> dict[tuple[str, str], LineStyle]:
    """(name, regime) -> how its line is drawn: the best row of each family, then further rows as ranked.

    Rows beyond these stay grey. Places within a family go by name, so that ranks do not change how a row looks.
    """
    shown = [row for row in rows if any(cell.mean is not None for cell in row.cells)]
    turns: list[tuple[int, int, Row]] = []
    seen: Counter[str] = Counter()
    for rank, row in enumerate(shown):
        turns.append((seen[row.facts.family], rank, row))
        seen[row.facts.family] += 1
    chosen = [row for turn, _, row in sorted(turns, key=lambda t: t[:2]) if turn < len(DASHES)][:MOST_LINES]
    places: Counter[str] = Counter()
    styles = {}
    for row in sorted(chosen, key=lambda row: (row.name, row.regime)):
        styles[row.name, row.regime] = LineStyle(marker_style(row), places[row.facts.family])
        places[row.facts.family] += 1
    return styles


def curves(table: Table, conditions: Sequence[Condition], sheet: Sheet) -> Drawing | None:
    """The panels of one sheet, from a table with a column for every case; None if no row has a number."""
    rows = [row for row in table.rows if not row.reported]
    styles = line_styles(rows)
    if not styles:
        return None
    among = shown_rows(rows)
    rows = [row for row in rows if (row.name, row.regime) in styles or row in among]
    across = min(PANELS_ACROSS, len(sheet.groups))
    down = math.ceil(len(sheet.groups) / across)
    figure = new_figure(max(6.4, 2.9 * across), 1.7 + 2.35 * down)
    panels = figure.subplots(down, across, sharey=True, squeeze=False)
    clean = clean_case(conditions)
    for i, axes in enumerate(panels.flat):
        if i >= len(sheet.groups):
            axes.set_axis_off()
            continue
        _panel(axes, table, rows, (sheet.groups[i], clean), styles)
    for axes in panels[:, 0]:
        axes.set_ylabel(table.columns[0].unit, fontsize=9)
    for axes in panels.flat[max(0, len(sheet.groups) - across) : len(sheet.groups)]:
        axes.set_xlabel(SCALES[sheet.scale], fontsize=9)
    spread = any(cell.std for row in rows for cell in row.cells)
    note = "\nband: one standard deviation over seeds either side" if spread else ""
    figure.suptitle(label(f"{table.title}: {sheet.name}", 100) + note, fontsize=10)
    _legend(figure, panels.flat[0], 2 if across < 3 else 4)
    named = ", ".join(f"{plain(name)} {regime}".removesuffix(f" {NOT_MEASURED}") for name, regime in styles)
    alt = (
        f"Line plots of {plain(table.title)} over {SCALES[sheet.scale]}, one panel for each of "
        f"{', '.join(plain(group.label) for group in sheet.groups)}; in colour: {named}."
    )
    part = slug(f"{sheet.scale}-{sheet.name}".replace("_", "-"))
    return Drawing(figure, "curves", f"{plain(table.title)}: {plain(sheet.name)}", alt, part)


def _panel(
    axes: Axes,
    table: Table,
    rows: Sequence[Row],
    what: tuple[Group, str | None],
    styles: dict[tuple[str, str], LineStyle],
) -> None:
    """One corruption; the clean score stands at 0."""
    group, clean = what
    places = {column.key: i for i, column in enumerate(table.columns)}
    unit = 100.0 if group.conditions[0].scale == "rate" else 1.0
    points = [(0.0, places[clean])] if clean is not None else []
    points += [(unit * condition.level, places[condition.case]) for condition in group.conditions]
    # Grey lines first, so that none of them covers a coloured one.
    for row in sorted(rows, key=lambda row: (row.name, row.regime) in styles):
        line = [(x, row.cells[i]) for x, i in points]
        _line(axes, line, styles.get((row.name, row.regime)), row_label(row))
    if unit == 1.0:
        levels = sorted({int(x) for x, _ in points})
        axes.set_xticks(levels, ["clean" if level == 0 else str(level) for level in levels])
    axes.set_title(label(group.label, 30), fontsize=9)
    axes.tick_params(labelsize=8)


def _line(axes: Axes, points: Sequence[tuple[float, Cell]], style: LineStyle | None, text: str) -> None:
    """Means joined by a line with a gap where there is none; the band is one standard deviation either side."""
    x = [place for place, _ in points]
    nan = float("nan")
    y = [nan if cell.mean is None else cell.mean for _, cell in points]
    draw_line(axes, (x, y), style, text)
    spread = [cell.std or 0.0 for _, cell in points]
    if style is not None and any(spread):
        low, high = ([v + sign * s for v, s in zip(y, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=style.marker["color"], alpha=0.13, linewidth=0)


def draw_line(axes: Axes, points: tuple[list[float], list[float]], style: LineStyle | None, text: str) -> None:
    """One row's line; a thin grey one without a style."""
    if style is None:
        axes.plot(*points, color=MUTED, linewidth=0.8, zorder=1.5, label=OTHERS)
        return
    drawn = {**style.marker, "linestyle": style.dashes, "linewidth": 1.4, "markersize": 5, "label": text}
    axes.plot(*points, **drawn)


def _legend(figure: Figure, panel: Axes, across: int) -> None:
    """Below the figure: every row once, the grey ones last."""
    handles = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    texts = sorted(handles, key=lambda text: (text == OTHERS, text))
    figure.legend(
        [handles[text] for text in texts], texts, loc="outside lower center", ncols=across, fontsize=8, frameon=False
    )
