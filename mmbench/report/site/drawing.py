"""Losses by epoch as a small drawing within a page: a few numbers need no file of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmbench.report.trial_files import Curve

WIDTH, HEIGHT = 560, 180
"""Of the area between the axes, in units of the drawing."""


@dataclass(frozen=True)
class Line:
    """A polyline in the drawing's units."""

    name: str
    points: str


@dataclass(frozen=True)
class Drawing:
    lines: tuple[Line, ...]
    lowest: float
    highest: float
    samples: int
    words: str
    """The same in a sentence."""


def draw(curves: Sequence[Curve]) -> Drawing | None:
    """Losses over samples seen; None unless a curve has two epochs."""
    drawn = [curve for curve in curves if len(curve.points) > 1]
    if not drawn:
        return None
    losses = [point.loss for curve in drawn for point in curve.points]
    low, high = min(losses), max(losses)
    last = max(point.samples for curve in drawn for point in curve.points)

    def place(samples: int, loss: float) -> str:
        share = (high - loss) / (high - low) if high > low else 0.5
        return f"{WIDTH * samples / last:.1f},{HEIGHT * share:.1f}"

    lines = tuple(Line(c.name, " ".join(place(p.samples, p.loss) for p in c.points)) for c in drawn)
    ends = "; ".join(f"{c.name} from {c.points[0].loss:.3g} to {c.points[-1].loss:.3g}" for c in drawn[:6])
    more = f"; {len(drawn) - 6} more" if len(drawn) > 6 else ""
    return Drawing(lines, low, high, last, f"Mean loss of an epoch: {ends}{more}.")
