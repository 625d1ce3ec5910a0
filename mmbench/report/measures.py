"""What tables derive from finished rows: Pareto fronts, and the score to expect under shift from the clean one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mmbench.report.stats import expected_under_shift, logit_line

_ROUNDING = 1e-9
_FEWEST_LEVELS = 3  # through two clean scores any line fits


def on_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether no other point of (cost, score) is as cheap and as good, and better in one of the two."""
    return [not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points) for cost, score in points]


@dataclass(frozen=True)
class ShiftLine:
    """Clean and corrupted scores, in (0, 1), of the models that set what is expected (Taori et al., NeurIPS 2020)."""

    points: tuple[tuple[float, float], ...]

    @cached_property
    def fits(self) -> bool:
        return len({clean for clean, _ in self.points}) >= _FEWEST_LEVELS

    @cached_property
    def _fit(self) -> tuple[float, float]:
        return logit_line(np.array(self.points))

    @cached_property
    def span(self) -> tuple[float, float]:
        """Lowest and highest clean score."""
        clean = [point[0] for point in self.points]
        return min(clean), max(clean)

    def beyond(self, clean: float | None, corrupted: float | None) -> float | None:
        """Corrupted score above that expected from the clean one; None without a line or a score inside (0, 1)."""
        if not self.fits or clean is None or corrupted is None or not 0 < clean < 1:
            return None
        return corrupted - expected_under_shift(clean, *self._fit)

    def covers(self, clean: float) -> bool:
        """Whether a model that set the line has a clean score this low or high, up to rounding."""
        low, high = self.span
        return low - _ROUNDING <= clean <= high + _ROUNDING


NO_LINE = ShiftLine(())


def shift_line(points: Sequence[tuple[float | None, float | None]]) -> ShiftLine:
    """The line through what was measured; a score of 0 or 1 has no logit and is left out."""
    known = [(clean, shifted) for clean, shifted in points if clean is not None and shifted is not None]
    return ShiftLine(tuple(point for point in known if min(point) > 0 and max(point) < 1))
