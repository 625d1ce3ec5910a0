"""What all plots share: one style, stable files, colours that survive colour blindness and grey printing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmbench.report.model import Row, plain

T = TypeVar("T")
DPI = 150
SPAN_FOR_LOG = 30.0
"""An axis whose largest value exceeds the smallest by more than this is logarithmic."""
MOST_ROWS = 40
"""A taller picture is read by nobody; the tables have every row."""
LAST_ROWS = 6
"""How many of them are the last ones where rows are left out."""


@dataclass(frozen=True)
class Drawing:
    """A figure and what must be said of it; `part` tells several of a kind apart in file names."""

    figure: Figure
    kind: str
    title: str
    alt: str
    """What the picture shows, in words for those who do not see it."""
    part: str = ""


@dataclass(frozen=True)
class Plot:
    """A written plot: the PNG at `path` and an SVG of the same name beside it."""

    path: Path
    kind: str
    """cases, curves, seeds, ranks, accuracy-memory, accuracy-time, bars, memory, training, confusion, reliability."""
    title: str
    alt: str
    group: str
    """Slug of the table whose numbers it shows; the file name begins with it."""

    @property
    def slug(self) -> str:
        return self.path.stem

    @property
    def svg(self) -> Path:
        return self.path.with_suffix(".svg")


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
    figure.set_layout_engine("none")  # it is laid out now
    figure.savefig(svg, metadata={"Date": None})
    return png, svg


def save_drawing(drawing: Drawing | None, out: Path, group: str) -> tuple[Plot, ...]:
    """Write `group_part` (or `group_kind`) into a folder; nothing for None."""
    if drawing is None:
        return ()
    png, _ = save(drawing.figure, out / f"{group}_{drawing.part or drawing.kind}")
    return (Plot(png, drawing.kind, drawing.title, drawing.alt, group),)


def label(text: str, longest: int = 34) -> str:
    """A label as matplotlib shows it literally; `$` would start a formula."""
    line = plain(text)
    short = line if len(line) <= longest else line[: longest - 1] + "…"
    return short.replace("$", r"\$")


def row_label(row: Row) -> str:
    """Method and regime in one line; a mean over some of the seeds only says so."""
    partial = not row.complete and any(cell.mean is not None for cell in row.cells)
    return label(row.name) + (f", {row.regime}" if row.trained else "") + (" (incomplete)" if partial else "")


def shown_rows(rows: Sequence[T]) -> list[T]:
    """All of them if they fit a picture; else the first ones, and the last few so that the bottom is seen too."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    return [*rows[: MOST_ROWS - LAST_ROWS], *rows[-LAST_ROWS:]]


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names at 0, 1, ... of the vertical axis, the first on top."""
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)


def left_out(shown: int, of: int) -> str:
    """What a title adds where `shown_rows` left some out."""
    return "" if shown == of else f" (the first {shown - LAST_ROWS} and the last {LAST_ROWS} of {of} rows)"


def spans_far(values: list[float]) -> bool:
    """Whether a linear axis would squash the small values."""
    positive = [value for value in values if value > 0]
    return bool(positive) and max(positive) > SPAN_FOR_LOG * min(positive)


def relative_luminance(red: float, green: float, blue: float) -> float:
    """WCAG 2 luminance of an sRGB colour in 0..1; above 0.18, black text has the better contrast."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
