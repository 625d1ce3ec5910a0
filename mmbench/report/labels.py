"""Names beside the points of a scatter, each on a free spot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import cos, radians, sin
from typing import TYPE_CHECKING

from matplotlib.transforms import Bbox

from mmbench.report.figures import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.text import Annotation

_ANGLES = (0, 180, 90, 270, 35, 145, 325, 215)
_RADII = (8, 12, 18, 26, 36, 48, 62, 80)
"""Points between a marker and its label, tried in this order."""
_LEADER_FROM = 14
_LINE_SPOTS = ((0.01, 3, "left"), (0.99, 3, "right"), (0.01, -10, "left"), (0.99, -10, "right"), (0.4, 3, "left"))
"""Share of the axis width, lift in points, alignment."""
_LABEL_SIZE = 8.5

Line = tuple[float, str]  # height, name


@dataclass(frozen=True)
class Point:
    """One row in data coordinates."""

    x: float
    y: float
    spread: float
    text: str
    reference: bool


@dataclass(frozen=True)
class _Box:
    """A rectangle in pixels; plain numbers, because thousands of them are compared."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def area(self) -> float:
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def shared(self, other: _Box) -> float:
        """Area that both cover."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        return width * height if width > 0 and height > 0 else 0.0


@dataclass(frozen=True)
class _Canvas:
    """Where labels are measured and drawn; the layout is final by then."""

    axes: Axes
    renderer: RendererBase
    pixels_per_point: float
    inside: _Box

    def cost(self, box: _Box, taken: list[_Box]) -> float:
        """Area shared with what is there, plus what sticks out of the axes, in square pixels."""
        return box.area - box.shared(self.inside) + sum(box.shared(other) for other in taken)

    def extent(self, artist: Annotation) -> _Box:
        """Pixels the text takes, a little generous; the artist is removed again."""
        box = artist.get_window_extent(self.renderer)
        artist.remove()
        return _Box(*map(float, Bbox(box).expanded(1.03, 1.1).extents))

    def pixels(self, x: float, y: float) -> tuple[float, float]:
        """Data to display coordinates."""
        across, up = self.axes.transData.transform((x, y))
        return float(across), float(up)


def place_labels(
    axes: Axes, points: Sequence[Point], named: Sequence[Point], stairs: Sequence[Point], lines: Sequence[Line]
) -> None:
    """Put each name on the nearest free spot around its point, off all else, with a leader line if that is far.

    `stairs` are joined by a staircase that no name may cover; `lines` run across the axes and carry a name too.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # later artists must not move the axes again
    inside = _Box(*map(float, axes.get_window_extent().extents))
    canvas = _Canvas(axes, figure.canvas.get_renderer(), figure.dpi / 72, inside)  # type: ignore[attr-defined]
    taken = [box for point in points for box in _around(canvas, point)]
    taken += [_line_box(canvas, height) for height, _ in lines]
    corners = [canvas.pixels(point.x, point.y) for point in stairs]
    taken += [_Box(x, y - 1, following, y + 1) for (x, y), (following, _) in pairwise(corners)]
    for line in lines:
        spots = [(_line_label(axes, line, spot), spot) for spot in _LINE_SPOTS]
        best = min(((canvas.extent(artist), spot) for artist, spot in spots), key=lambda e: canvas.cost(e[0], taken))
        _line_label(axes, line, best[1])
        taken.append(best[0])
    for point in sorted(named, key=lambda p: (-p.x, -p.y)):
        found = _spots(canvas, point)
        best_box, best_spot = min(found, key=lambda e: 100 * canvas.cost(e[0], taken) + e[1][0])
        _point_label(axes, point, best_spot, True)
        taken.append(best_box)


def _spots(canvas: _Canvas, point: Point) -> list[tuple[_Box, tuple[int, int]]]:
    """Where the label of a point would lie for every radius and angle; its text is measured once."""
    size = canvas.extent(_point_label(canvas.axes, point, (0, 0), False))
    width, height = size.x1 - size.x0, size.y1 - size.y0
    x, y = canvas.pixels(point.x, point.y)
    found = []
    for radius, angle in product(_RADII, _ANGLES):
        offset = _offset(radius, angle)
        # The anchor is the near side of the text, or its middle straight above, below or beside the point.
        across, up = (0.5 if abs(part) < 1 else 0.0 if part > 0 else 1.0 for part in offset)
        left = x + offset[0] * canvas.pixels_per_point - across * width
        bottom = y + offset[1] * canvas.pixels_per_point - up * height
        found.append((_Box(left, bottom, left + width, bottom + height), (radius, angle)))
    return found


def _offset(radius: int, angle: int) -> tuple[float, float]:
    """Points to the right and up."""
    return radius * cos(radians(angle)), radius * sin(radians(angle))


def _around(canvas: _Canvas, point: Point) -> tuple[_Box, _Box]:
    """The marker and the error bar of a point."""
    x, y = canvas.pixels(point.x, point.y)
    _, low = canvas.pixels(point.x, point.y - point.spread)
    half = (9 if point.reference else 5) * canvas.pixels_per_point
    return _Box(x - half, y - half, x + half, y + half), _Box(x - half / 3, low, x + half / 3, 2 * y - low)


def _line_box(canvas: _Canvas, height: float) -> _Box:
    _, y = canvas.pixels(1.0, height)
    return _Box(canvas.inside.x0, y - 1, canvas.inside.x1, y + 1)


def _point_label(axes: Axes, point: Point, spot: tuple[int, int], leader: bool) -> Annotation:
    """A label at `radius, angle` (points, degrees) from its point."""
    radius, angle = spot
    dx, dy = _offset(radius, angle)
    line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4}
    return axes.annotate(
        point.text,
        (point.x, point.y),
        (dx, dy),
        textcoords="offset points",
        ha="left" if dx >= 1 else "right" if dx <= -1 else "center",
        va="center" if abs(dy) < 1 else "bottom" if dy > 0 else "top",
        fontsize=_LABEL_SIZE,
        fontweight="bold" if point.reference else "normal",
        arrowprops=line if leader and radius > _LEADER_FROM else None,
        zorder=5,
    )


def _line_label(axes: Axes, line: Line, spot: tuple[float, float, str]) -> Annotation:
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
