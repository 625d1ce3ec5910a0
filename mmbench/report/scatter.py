"""Accuracy against a cost, every point labelled in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from mmbench.report.efficiency import REFERENCE
from mmbench.report.families import family_legend, marker_style
from mmbench.report.figures import Drawing, label, new_figure, spans_far
from mmbench.report.labels import Line, Point, place_labels
from mmbench.report.model import Row, Table, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_LABELS = 20
"""With more points than this only those that no other beats get a label; the tables hold the rest."""


@dataclass(frozen=True)
class Cost:
    """A column of a cost table as an axis, and the kind of plot it makes."""

    key: str
    label: str
    kind: str


COSTS = (
    Cost("training_state", "training state (MiB)", "accuracy-memory"),
    Cost("epoch_seconds", "training time of one epoch (s)", "accuracy-time"),
    Cost("stored", "stored (MiB)", "accuracy-stored"),
)


def accuracy_against(table: Table, cost: Cost) -> Drawing | None:
    """Headline of an efficiency table over one of its costs; None if fewer than two rows have both."""
    index = next(i for i, column in enumerate(table.columns) if column.key == cost.key)
    score = table.headline
    if score is None:
        return None
    measured = [row for row in table.rows if not row.reported]
    pairs = [(row, point) for row in measured if (point := _point(row, index, score)) is not None]
    points = [point for _, point in pairs]
    if len(points) < 2:
        return None
    few = len(points) <= _MOST_LABELS
    figure = new_figure(7.6, 5.4) if few else new_figure(9.0, 6.4)
    axes = figure.subplots()
    frozen = [row for row in measured if not row.trained and row.cells[score].mean is not None]
    lines = [(row.cells[score].mean or 0.0, row.name) for row in frozen]
    _draw_all(axes, pairs, lines)
    _scale(axes, points)
    axes.set_xlabel(cost.label)
    axes.set_ylabel(label(f"{table.columns[score].label} (%)", 60))
    title = table.title.replace("Cost", "Accuracy and cost", 1)
    note = f"line: no cheaper row scores higher{'' if few else ' (only these are named)'}{_spread_words(points)}"
    axes.set_title(f"{label(title, 100)}\n{note}", fontsize=10)
    family_legend(figure, [row for row, _ in pairs], 7)
    place_labels(axes, points, labelled(points), front(points), lines)
    best = ", ".join(f"{p.text} ({p.x:.3g}, {p.y:.1f} %)" for p in front(points)).replace(r"\$", "$")
    alt = f"Scatter of {len(points)} rows, score over {cost.label}. No cheaper row scores higher than: {best}."
    return Drawing(figure, cost.kind, f"{plain(title)}: {cost.label}", alt)


def _spread_words(points: list[Point]) -> str:
    return "; bars: one standard deviation over seeds" if any(point.spread for point in points) else ""


def front(points: list[Point]) -> list[Point]:
    """Points with no cheaper or equally dear one that scores higher, the cheapest first; of equals the first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not found or point.y > found[-1].y:
            found.append(point)
    return found


def labelled(points: list[Point]) -> list[Point]:
    """All points if they are few; else the front, and the reference."""
    if len(points) <= _MOST_LABELS:
        return points
    best = front(points)
    return [point for point in points if point.reference or point in best]


def _point(row: Row, cost: int, score: int) -> Point | None:
    x, y = row.cells[cost].mean, row.cells[score]
    # Zero cannot stand on a logarithmic axis, and a row that costs nothing is drawn as a line.
    if not row.trained or x is None or x <= 0 or y.mean is None:
        return None
    text = label(row.name, 28) + ("" if row.complete else " (incomplete)")
    return Point(x, y.mean, y.std or 0.0, text, row.name == REFERENCE)


def _draw_all(axes: Axes, pairs: list[tuple[Row, Point]], lines: list[Line]) -> None:
    """Markers with their spread, those of the front larger; the front itself; a line a frozen row."""
    best = front([point for _, point in pairs])
    for row, point in pairs:
        leads = point in best
        style = {**marker_style(row), "markersize": 8.5 if leads else 6, "zorder": 4 if leads else 3}
        axes.errorbar(point.x, point.y, yerr=point.spread or None, elinewidth=0.7, capsize=1.5, **style)
        if point.reference:
            ring: dict[str, Any] = {"markersize": 15, "markerfacecolor": "none", "markeredgecolor": "black"}
            axes.plot(point.x, point.y, marker="o", linestyle="none", zorder=4, **ring)
    axes.plot(
        [point.x for point in best],
        [point.y for point in best],
        color="#333333",
        linewidth=1,
        drawstyle="steps-post",
        zorder=2,
    )
    for height, _ in lines:
        axes.axhline(height, color="#777777", linewidth=1, linestyle=(0, (4, 3)), zorder=1)


def _scale(axes: Axes, points: list[Point]) -> None:
    if spans_far([point.x for point in points]):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.12)
    else:
        axes.set_xlim(0, max(point.x for point in points) * 1.15)
    axes.margins(y=0.12)
