"""Accuracy against a cost, every point labelled in place."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import cos, radians, sin
from typing import TYPE_CHECKING

from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import Bbox

from mmbench.report.efficiency import REFERENCE
from mmbench.report.figures import OTHER_STYLE, REGIME_STYLES, label, new_figure, spans_far
from mmbench.report.model import Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

_ANGLES = (0, 180, 90, 270, 35, 145, 325, 215)
_RADII = (8, 12, 18, 26, 36, 48, 62, 80)
"""Points between a marker and its label, tried in this order."""
_LEADER_FROM = 14
_MOST_LABELS = 20
"""With more points than this only those that no other beats get a label; the tables hold the rest."""
_LINE_SPOTS = ((0.01, 3, "left"), (0.99, 3, "right"), (0.01, -10, "left"), (0.99, -10, "right"), (0.4, 3, "left"))
"""Share of the axis width, lift in points, alignment."""
_LABEL_SIZE = 8.5


@dataclass(frozen=True)
class Point:
    """One row in data coordinates."""

    x: float
    y: float
    spread: float
    text: str
    regime: str
    reference: bool


def accuracy_against(table: Table, key: str, cost_label: str) -> Figure | None:
    """Headline of an efficiency table over one of its costs; None if fewer than two rows have both."""
    index = next(i for i, column in enumerate(table.columns) if column.key == key)
    score = table.headline
    if score is None:
        return None
    measured = [row for row in table.rows if not row.reported]
    points = [p for row in measured if (p := _point(row, index, score)) is not None]
    if len(points) < 2:
        return None
    few = len(points) <= _MOST_LABELS
    figure = new_figure(7.6, 5.2) if few else new_figure(9.0, 6.2)
    axes = figure.subplots()
    for point in points:
        _draw(axes, point)
    frozen = [row for row in measured if not row.trained and row.cells[score].mean is not None]
    for row in frozen:
        axes.axhline(row.cells[score].mean or 0.0, color="#777777", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    if spans_far([point.x for point in points]):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.12)
    else:
        axes.set_xlim(0, max(point.x for point in points) * 1.15)
    axes.margins(y=0.12)
    axes.set_xlabel(cost_label)
    axes.set_ylabel(label(f"{table.columns[score].label} (%)", 60))
    title = label(table.title.replace("Cost", "Accuracy and cost", 1), 100)
    axes.set_title(title if few else f"{title}\nnamed: what no cheaper row beats", fontsize=10)
    _legend(axes, points)
    place_labels(figure, axes, points, [(row.cells[score].mean or 0.0, row.name) for row in frozen])
    return figure


def labelled(points: list[Point]) -> list[Point]:
    """All points if they are few; else those that no cheaper or equal one beats, and the reference."""
    if len(points) <= _MOST_LABELS:
        return points
    return [p for p in points if p.reference or not any(o.x <= p.x and o.y > p.y for o in points)]


def _point(row: Row, cost: int, score: int) -> Point | None:
    x, y = row.cells[cost].mean, row.cells[score]
    # Zero cannot stand on a logarithmic axis, and a row that costs nothing is drawn as a line.
    if not row.trained or x is None or x <= 0 or y.mean is None:
        return None
    text = label(row.name, 28) + ("" if row.complete else " (incomplete)")
    return Point(x, y.mean, y.std or 0.0, text, row.regime, row.name == REFERENCE)


def _draw(axes: Axes, point: Point) -> None:
    colour, marker = REGIME_STYLES.get(point.regime, OTHER_STYLE)
    axes.errorbar(
        point.x,
        point.y,
        yerr=point.spread,
        color=colour,
        marker=marker,
        markersize=7,
        linewidth=1.2,
        capsize=2,
        zorder=3,
    )
    if point.reference:
        axes.plot(
            point.x, point.y, marker="o", markersize=15, markerfacecolor="none", markeredgecolor="black", zorder=4
        )


def _legend(axes: Axes, points: list[Point]) -> None:
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", label=regime)
        for regime, (colour, marker) in REGIME_STYLES.items()
        if any(point.regime == regime for point in points)
    ]
    if any(point.reference for point in points):
        ring = Line2D(
            [], [], linestyle="none", marker="o", markersize=12, markerfacecolor="none", label="full fine-tune"
        )
        ring.set_markeredgecolor("black")
        handles.append(ring)
    axes.figure.legend(handles=handles, loc="outside lower center", ncols=len(handles) or 1, frameon=False)


@dataclass(frozen=True)
class _Canvas:
    """Where labels are measured and drawn; the layout is final by then."""

    axes: Axes
    renderer: RendererBase
    pixels_per_point: float

    def cost(self, box: Bbox, taken: list[Bbox]) -> float:
        """Area shared with what is there, plus what sticks out of the axes, in square pixels."""
        outside = box.width * box.height - _shared(box, self.axes.get_window_extent())
        return outside + sum(_shared(box, other) for other in taken)

    def extent(self, artist: Annotation) -> Bbox:
        """Pixels the text takes, a little generous; the artist is removed again."""
        box = artist.get_window_extent(self.renderer)
        artist.remove()
        return Bbox(box).expanded(1.03, 1.1)


def place_labels(figure: Figure, axes: Axes, points: list[Point], lines: list[tuple[float, str]]) -> None:
    """Put each label on the nearest free spot around its point, off the others, with a leader line if that is far."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # later artists must not move the axes again
    canvas = _Canvas(axes, figure.canvas.get_renderer(), figure.dpi / 72)  # type: ignore[attr-defined]
    taken = [box for point in points for box in _around(canvas, point)]
    taken += [_line_box(canvas, height) for height, _ in lines]
    for line in lines:
        spots = [(_line_label(axes, line, spot), spot) for spot in _LINE_SPOTS]
        best = min(((canvas.extent(artist), spot) for artist, spot in spots), key=lambda e: canvas.cost(e[0], taken))
        _line_label(axes, line, best[1])
        taken.append(best[0])
    for point in sorted(labelled(points), key=lambda p: (-p.x, -p.y)):
        boxes = [(canvas.extent(_point_label(axes, point, spot, False)), spot) for spot in product(_RADII, _ANGLES)]
        best_box, best_spot = min(boxes, key=lambda e: 100 * canvas.cost(e[0], taken) + e[1][0])
        _point_label(axes, point, best_spot, True)
        taken.append(best_box)


def _around(canvas: _Canvas, point: Point) -> tuple[Bbox, Bbox]:
    """The marker and the error bar of a point, in pixels."""
    x, y = canvas.axes.transData.transform((point.x, point.y))
    _, low = canvas.axes.transData.transform((point.x, point.y - point.spread))
    half = (9 if point.reference else 5) * canvas.pixels_per_point
    marker = Bbox.from_extents(x - half, y - half, x + half, y + half)
    return marker, Bbox.from_extents(x - half / 3, low, x + half / 3, 2 * y - low)


def _line_box(canvas: _Canvas, height: float) -> Bbox:
    inside = canvas.axes.get_window_extent()
    _, y = canvas.axes.transData.transform((1.0, height))
    return Bbox.from_extents(inside.x0, y - 1, inside.x1, y + 1)


def _shared(one: Bbox, other: Bbox) -> float:
    both = Bbox.intersection(one, other)
    return 0.0 if both is None else float(both.width * both.height)


def _point_label(axes: Axes, point: Point, spot: tuple[int, int], leader: bool) -> Annotation:
    """A label at `radius, angle` (points, degrees) from its point."""
    radius, angle = spot
    dx, dy = radius * cos(radians(angle)), radius * sin(radians(angle))
    line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4}
    return axes.annotate(
        point.text,
        (point.x, point.y),
        (dx, dy),
        textcoords="offset points",
        ha="left" if dx > 1 else "right" if dx < -1 else "center",
        va="center" if abs(dy) < 1 else "bottom" if dy > 0 else "top",
        fontsize=_LABEL_SIZE,
        fontweight="bold" if point.reference else "normal",
        arrowprops=line if leader and radius > _LEADER_FROM else None,
        zorder=5,
    )


def _line_label(axes: Axes, line: tuple[float, str], spot: tuple[float, float, str]) -> Annotation:
    """The name of a frozen row, just above or below its line."""
    share, lift, sideways = spot
    return axes.annotate(
        label(f"{line[1]} (frozen)", 40),
        (share, line[0]),
        (0, lift),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        ha=sideways,
        fontsize=_LABEL_SIZE,
        color="#555555",
        zorder=5,
    )
