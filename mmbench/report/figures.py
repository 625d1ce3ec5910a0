"""What all plots share: one style, stable files, colours that survive colour blindness and grey printing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmbench.report.model import Row, plain

DPI = 150
SPAN_FOR_LOG = 30.0
"""An axis whose largest value exceeds the smallest by more than this is logarithmic."""

# Okabe-Ito hues; the marker says the same again without colour.
REGIME_STYLES = {
    "clean": ("#0072B2", "o"),
    "mixed": ("#D55E00", "s"),
    "casewise": ("#009E73", "D"),
    "missing-rate": ("#CC79A7", "^"),
}
OTHER_STYLE = ("#555555", "X")


@contextmanager
def style() -> Iterator[None]:
    """The look of every plot, set for this block only; known noise of the plotting libraries is silenced in it."""
    fixed: dict[Any, Any] = {"svg.hashsalt": "mmbench", "svg.fonttype": "none", "font.size": 10.0}
    with warnings.catch_warnings(), sns.axes_style("whitegrid"), mpl.rc_context(fixed):
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        warnings.filterwarnings("ignore", category=mpl.MatplotlibDeprecationWarning)
        warnings.filterwarnings("ignore", category=PendingDeprecationWarning, module="seaborn")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="seaborn")
        warnings.filterwarnings("ignore", category=FutureWarning, module="seaborn")
        yield


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """A figure of its own, so that nothing depends on the state of pyplot."""
    figure = Figure(figsize=(width_inches, height_inches), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """PNG and SVG of the same name; the same records give the same bytes."""
    png, svg = (stem.with_name(f"{stem.name}{suffix}") for suffix in (".png", ".svg"))
    figure.savefig(png, dpi=DPI, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None})
    return png, svg


def label(text: str, longest: int = 34) -> str:
    """A label as matplotlib shows it literally; `$` would start a formula."""
    line = plain(text)
    short = line if len(line) <= longest else line[: longest - 1] + "…"
    return short.replace("$", r"\$")


def row_label(row: Row) -> str:
    """Method and regime in one line; a mean over some of the seeds only says so."""
    partial = not row.complete and any(cell.mean is not None for cell in row.cells)
    return label(row.name) + (f", {row.regime}" if row.trained else "") + (" (incomplete)" if partial else "")


def spans_far(values: list[float]) -> bool:
    """Whether a linear axis would squash the small values."""
    positive = [value for value in values if value > 0]
    return bool(positive) and max(positive) > SPAN_FOR_LOG * min(positive)


def relative_luminance(red: float, green: float, blue: float) -> float:
    """WCAG 2 luminance of an sRGB colour in 0..1; above 0.18, black text has the better contrast."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
