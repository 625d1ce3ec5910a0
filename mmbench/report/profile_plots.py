"""Rows of a profile as plots: what the memory of a step is made of, time against memory, growth with the batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scipy.stats import spearmanr

from mmbench.profile_rows import ProfileRow
from mmbench.report.bars import Memory, parts_of, stacked_bars
from mmbench.report.figures import label, new_figure, save, spans_far, style
from mmbench.report.labels import Point, place_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GIB = 2.0**30
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
MOST_BARS = 60
MOST_LABELS = 20
"""With more points than this only those of the front and at the ends of the axes are named."""


def write_plots(rows: Sequence[ProfileRow], out: Path) -> tuple[Path, ...]:
    """PNG and SVG of each plot that these rows fill."""
    counted = [row for row in rows if row.counts is not None]
    drawn = {
        "memory": memory_bars,
        "time-memory": time_against_memory,
        "parameters-memory": memory_against_parameters,
        "batch": batch_lines,
    }
    written: list[Path] = []
    with style():
        for name, draw in drawn.items():
            figure = draw(counted)
            if figure is not None:
                written += save(figure, out / f"profile_{name}")
    return tuple(written)


def memory_bars(rows: Sequence[ProfileRow]) -> Figure | None:
    """Training state of each row, stacked by what it is made of; largest first. None without a row."""
    ordered = sorted(rows, key=_state, reverse=True)[:MOST_BARS]
    if not ordered:
        return None
    bars = [Memory(_name(row, rows), parts_of(row.counts.state)) for row in ordered if row.counts is not None]
    left_out = f" (the {MOST_BARS} largest of {len(rows)})" if len(rows) > MOST_BARS else ""
    return stacked_bars(bars, ("GiB", GIB), label(f"What the memory of a training step is made of{left_out}", 100))


def time_against_memory(rows: Sequence[ProfileRow]) -> Figure | None:
    """Seconds of a step over its memory with the Pareto front; where nothing ran, its FLOP stand for the seconds."""
    timed = all(row.measured is not None for row in rows)
    points = [(_state(row) / GIB, _seconds(row) if timed else _flop(row)) for row in rows]
    return _scatter(
        points,
        [_name(row, rows) for row in rows],
        "Time against memory; green: no row is better in both",
        ("training state of one step (GiB)", "median training step (s)" if timed else "training (TFLOP per step)"),
    )


def memory_against_parameters(rows: Sequence[ProfileRow]) -> Figure | None:
    """Whether few parameters mean little memory: the training state over what trains."""
    counted = [row for row in rows if row.counts is not None]
    points = [(row.counts.trainable_parameters / 1e6, _state(row) / GIB) for row in counted if row.counts is not None]
    if len(points) < 3:
        return None
    across, up = zip(*points, strict=True)
    agreement = ""
    if len(set(across)) > 1 and len(set(up)) > 1:  # of a constant there is no correlation
        agreement = f": rank correlation {spearmanr(across, up).statistic:.2f}"
    title = f"Memory against trainable parameters{agreement}; green: no row has less of both"
    axes = ("trainable parameters (M)", "training state of one step (GiB)")
    return _scatter(points, [_name(row, counted) for row in counted], title, axes)


def _scatter(
    points: Sequence[tuple[float, float]], names: Sequence[str], title: str, axis_labels: tuple[str, str]
) -> Figure | None:
    """Named points and the front of those that no other beats in both; None for fewer than two."""
    if len(points) < 2:
        return None
    figure = new_figure(8.0, 5.6)
    axes = figure.subplots()
    named: list[Point] = []
    front, extremes = pareto(points), _extremes(points, names)
    axes.plot(
        *zip(*front, strict=True), color="#009E73", drawstyle="steps-post", linewidth=1.2, zorder=1, label="front"
    )
    for (x, y), name in zip(points, names, strict=True):
        best = (x, y) in front
        colour, marker = ("#009E73", "D") if best else ("#777777", "o")
        axes.plot(x, y, marker=marker, color=colour, markersize=6, linestyle="none", zorder=3)
        if best or len(points) <= MOST_LABELS or name in extremes:
            named.append(Point(x, y, 0.0, name, best))
    for column, scale in zip(zip(*points, strict=True), (axes.set_xscale, axes.set_yscale), strict=True):
        if spans_far(list(column)):
            scale("log")
    axes.margins(0.12)
    axes.set_xlabel(axis_labels[0])
    axes.set_ylabel(axis_labels[1])
    axes.set_title(title, fontsize=10)
    place_labels(axes, named, named, [], [])
    return figure


def _extremes(points: Sequence[tuple[float, float]], names: Sequence[str]) -> set[str]:
    """Names at the ends of both axes, and those whose places on the two differ most."""
    columns = [dict(zip(names, column, strict=True)) for column in zip(*points, strict=True)]
    across, up = (sorted(column, key=column.__getitem__) for column in columns)
    ends = {*across[:1], *across[-1:], *up[:1], *up[-1:]}
    return ends | set(sorted(names, key=lambda name: abs(across.index(name) - up.index(name)))[-12:])


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other beats in one coordinate and equals in the other, left to right; small is good."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points)):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def batch_lines(rows: Sequence[ProfileRow]) -> Figure | None:
    """Memory, and throughput where it was measured, over the batch; None unless a setting has several batches."""
    lines: dict[str, list[ProfileRow]] = {}
    for row in rows:
        one_batch = row.setting.model_copy(update={"batch": 0})
        lines.setdefault(f"{row.setting.method}, {one_batch.words.replace(' b0', '')}", []).append(row)
    lines = {name: sorted(found, key=lambda r: r.setting.batch) for name, found in lines.items() if len(found) > 1}
    if not lines:
        return None
    timed = all(row.measured is not None for found in lines.values() for row in found)
    figure = new_figure(9.0 if timed else 6.0, 4.2 + 0.18 * len(lines))
    panels = figure.subplots(1, 2 if timed else 1, squeeze=False)[0]
    for number, (name, found) in enumerate(lines.items()):
        look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "linewidth": 1.4}
        batches = [row.setting.batch for row in found]
        panels[0].plot(batches, [_state(row) / GIB for row in found], label=label(name, 60), **look)
        if timed:
            panels[1].plot(batches, [row.measured.samples_per_second for row in found if row.measured], **look)
    panels[0].set_ylabel("training state (GiB)")
    if timed:
        panels[1].set_ylabel("training samples per second")
    for axes in panels:
        axes.set_xlabel("batch")
        axes.set_ylim(bottom=0)
    figure.suptitle("Growth with the batch", fontsize=10)
    figure.legend(loc="outside lower center", ncols=1 if not timed else 2, frameon=False, fontsize=8)
    return figure


def _state(row: ProfileRow) -> float:
    return 0.0 if row.counts is None else float(row.counts.state.total_bytes)


def _seconds(row: ProfileRow) -> float:
    return 0.0 if row.measured is None else row.measured.step_seconds_median


def _flop(row: ProfileRow) -> float:
    return 0.0 if row.counts is None else row.counts.train_flops_per_sample * row.setting.batch / 1e12


def _name(row: ProfileRow, rows: Sequence[ProfileRow]) -> str:
    """The method, and the parts of its setting in which the rows differ."""
    facts = [(r.setting.backbone, f"b{r.setting.batch}", r.setting.precision) for r in rows]
    differ = [len(set(column)) > 1 for column in zip(*facts, strict=True)]
    own = (row.setting.backbone, f"b{row.setting.batch}", row.setting.precision)
    parts = [text for text, told in zip(own, differ, strict=True) if told]
    parts += [f"{key} {value}" for key, value in row.setting.options.items()]
    return label(" ".join([row.setting.method, *parts]), 50)
