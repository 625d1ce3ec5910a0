"""What rows cost: parameters, state and time side by side, and what the memory of a training step is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mmbench.records import TrainingState
from mmbench.report.comparable import Selection
from mmbench.report.families import family_legend, look_of, mark_rows
from mmbench.report.figures import Drawing, label, left_out, name_rows, new_figure, row_label, shown_rows, spans_far
from mmbench.report.model import Column, Row, Table, cell_text, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIB = 2.0**20
_BARS = ("trainable_parameters", "training_state", "epoch_seconds")
_BAR_TITLES = {"trainable_parameters": "trainable parameters (M)", "training_state": "training state (MiB)"}


@dataclass(frozen=True)
class Part:
    """A share of the training state, and the field of a record that holds its bytes."""

    name: str
    field: str
    colour: str
    hatch: str


# Okabe-Ito hues from dark to light, so that the order survives grey printing.
PARTS = (
    Part("weights", "parameters_bytes", "#0072B2", ""),
    Part("gradients", "gradients_bytes", "#D55E00", "//"),
    Part("optimiser", "optimizer_bytes", "#CC79A7", "xx"),
    Part("activations", "activations_bytes", "#56B4E9", ".."),
)


def cost_bars(table: Table) -> Drawing | None:
    """Trainable parameters, training state and epoch seconds side by side; None if no row was trained."""
    found = [row for row in table.rows if not row.reported and row.trained and _has_cost(row, table)]
    rows = shown_rows(found)
    if not rows:
        return None
    figure = new_figure(10.0, 1.7 + 0.26 * len(rows))
    panels = figure.subplots(1, len(_BARS), sharey=True)
    for axes, key in zip(panels, _BARS, strict=True):
        index = next(i for i, column in enumerate(table.columns) if column.key == key)
        _panel(axes, rows, index, table.columns[index])
    name_rows(panels[0], [row_label(row) for row in rows])
    mark_rows(panels[0], rows)
    family_legend(figure, rows, 8)
    figure.suptitle(label(table.title, 90) + left_out(len(rows), len(found)), fontsize=10)
    alt = (
        f"Bars of {plain(table.title)}: trainable parameters, training state and epoch time of {len(rows)} rows, "
        "in the order of their mean score; the table holds every number."
    )
    return Drawing(figure, "bars", plain(table.title), alt)


def _write(axes: Axes, text: str, x: float, y: float) -> None:
    """The number at the end of a bar; the axes leave room for it, so that the layout need not measure it."""
    axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", fontsize=8).set_in_layout(False)


def _has_cost(row: Row, table: Table) -> bool:
    wanted = [i for i, column in enumerate(table.columns) if column.key in _BARS]
    return any(row.cells[i].mean is not None for i in wanted)


def _panel(axes: Axes, rows: Sequence[Row], index: int, column: Column) -> None:
    values = [row.cells[index].mean for row in rows]
    known = [value for value in values if value is not None]
    logarithmic = spans_far(known)
    floor = min([v for v in known if v > 0], default=1.0) / 3 if logarithmic else 0.0
    for y, (row, value) in enumerate(zip(rows, values, strict=True)):
        look = look_of(row)
        if value is not None and value > floor:
            axes.barh(y, value - floor, left=floor, color=look.colour, hatch=look.hatch, edgecolor="white", height=0.74)
        text = cell_text(row.cells[index], column).split(" ±")[0]
        _write(axes, text, max(value or floor, floor), y)
    if logarithmic:
        axes.set_xscale("log")
    # Room for the number at the end of the longest bar.
    top = max(known, default=1.0) or 1.0
    axes.set_xlim(floor, top * (top / floor) ** 0.22 if logarithmic else top * 1.22)
    scale = ", log scale" if logarithmic else ""
    axes.set_title(_BAR_TITLES.get(column.key, "training time of one epoch (s)") + scale, fontsize=9)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="x", labelsize=8)


@dataclass(frozen=True)
class Memory:
    """The training state of one bar in bytes, by part; means over seeds need no whole numbers."""

    name: str
    parts: tuple[float, ...]

    @property
    def total(self) -> float:
        return sum(self.parts)


def parts_of(state: TrainingState) -> tuple[float, ...]:
    """Bytes in the order of PARTS."""
    return tuple(float(getattr(state, part.field)) for part in PARTS)


def stacked_bars(bars: Sequence[Memory], unit: tuple[str, float], title: str) -> Figure:
    """One bar an entry from the top, stacked by what it is made of; `unit` is its name and its bytes."""
    word, size = unit
    figure = new_figure(8.6, 1.5 + 0.26 * len(bars))
    axes = figure.subplots()
    left = [0.0] * len(bars)
    for i, part in enumerate(PARTS):
        widths = [bar.parts[i] / size for bar in bars]
        look: dict[str, Any] = {"color": part.colour, "hatch": part.hatch, "edgecolor": "white", "height": 0.74}
        axes.barh(range(len(bars)), widths, left=left, label=part.name, **look)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for height, total in enumerate(left):
        _write(axes, f"{total:.3g}", total, height)
    name_rows(axes, [bar.name for bar in bars])
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, max(left) * 1.1)
    axes.set_xlabel(f"training state of one step ({word})")
    figure.suptitle(title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=len(PARTS), frameon=False, fontsize=9)
    return figure


def memory_bars(table: Table, selection: Selection) -> Drawing | None:
    """Training state of the trained rows of a cost table by its parts, largest first; None where none counted it."""
    shown = {(row.name, row.regime): row for row in table.rows if not row.reported and row.trained}
    made: list[tuple[Memory, Row]] = []
    for group in selection.rows():
        row = shown.get((group[0].trial.title, group[0].trial.regime))
        states = [r.costs.training_state for r in group if r.costs is not None and r.costs.training_state is not None]
        if row is not None and states:
            parts = tuple(fmean(column) for column in zip(*map(parts_of, states), strict=True))
            made.append((Memory(row_label(row), parts), row))
    if not made:
        return None
    ordered = shown_rows(sorted(made, key=lambda entry: (-entry[0].total, entry[0].name)))
    title = table.title.replace("Cost", "Memory of a training step", 1)
    words = label(title, 110) + left_out(len(ordered), len(made)).replace(" (", "\n(")
    figure = stacked_bars([bar for bar, _ in ordered], ("MiB", MIB), words)
    mark_rows(figure.axes[0], [row for _, row in ordered])
    largest, smallest = (ordered[i][0] for i in (0, -1))
    alt = (
        f"Stacked bars of the memory of a training step, {len(ordered)} of {len(made)} rows: weights, gradients, "
        f"optimiser state and activations; from {plain(smallest.name)} with {smallest.total / MIB:.3g} MiB to "
        f"{plain(largest.name)} with {largest.total / MIB:.3g} MiB."
    )
    return Drawing(figure, "memory", plain(title), alt)
