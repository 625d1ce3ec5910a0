"""Accuracy against a cost, every point labelled in place."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import cos, radians, sin
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import Bbox

from mmbench.report.efficiency import REFERENCE
from mmbench.report.families import family_legend, marker_style
from mmbench.report.figures import Drawing, label, new_figure, spans_far
from mmbench.report.model import Row, Table, plain

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


@dataclass(frozen=True)
class Point:
    """One row in data coordinates."""

    x: float
    y: float
    spread: float
    text: str
    reference: bool


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
    note = "line: no cheaper row scores higher" + (_spread_words(points)) + ("" if few else "; only its rows are named")
    axes.set_title(f"{label(title, 100)}\n{note}", fontsize=10)
    family_legend(figure, [row for row, _ in pairs], 7)
    place_labels(figure, axes, points, lines)
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


def _draw_all(axes: Axes, pairs: list[tuple[Row, Point]], lines: list[tuple[float, str]]) -> None:
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
