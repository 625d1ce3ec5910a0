"""Which classes a few rows take for which, and whether their confidence can be believed; from per-sample outcomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import seaborn as sns
from matplotlib.colors import to_rgba

from mmbench.cards import Track
from mmbench.metrics import CALIBRATION_BINS
from mmbench.records import TrialRecord
from mmbench.report.aggregate import regime_word
from mmbench.report.case_scores import scored_on
from mmbench.report.comparable import Selection
from mmbench.report.conditions import clean_case, conditions_of
from mmbench.report.families import look_of
from mmbench.report.figures import Drawing, label, new_figure, row_label
from mmbench.report.model import Row, Table, plain
from mmbench.report.outcomes import Outcomes, Sampled
from mmbench.report.robustness import REFERENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NUMBERS = 12
"""Classes up to which a confusion matrix has a number in every cell."""
_MOST_NAMES = 40
_RARE = 0.01
_BACKING = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """The outcomes of a row's trials under one case, one entry a seed; all on the same track."""

    row: Row
    case: str
    classes: tuple[str, ...]
    seeds: tuple[Sampled, ...]

    @property
    def accuracy(self) -> float:
        return fmean(float(np.mean(found.correct)) for found in self.seeds)


@dataclass(frozen=True)
class Bins:
    """Predictions by confidence, in bins of equal width; NaN where a bin is empty."""

    share: Array  # (B,) of the samples
    accuracy: Array  # (B,)


def chosen_rows(table: Table) -> tuple[Row, ...]:
    """The best and the worst trained row by the headline, and the frozen source (or the best frozen row)."""
    index = table.headline
    found = [(r, r.cells[index].mean) for r in table.rows if index is not None and not r.reported]
    means = {row: mean for row, mean in found if mean is not None}
    trained = [row for row in means if row.trained]
    worst = sorted([row for row in trained if row.complete] or trained, key=means.__getitem__)
    frozen = sorted((row for row in means if not row.trained), key=lambda row: row.facts.registered != REFERENCE)
    return tuple(dict.fromkeys((*trained[:1], *worst[:1], *frozen[:1])))


def outcome_plots(
    table: Table, rows: Sequence[Row], selection: Selection, track: Track, outcomes: Outcomes
) -> tuple[Drawing, ...]:
    """Confusion matrices and reliability diagrams of some rows, undamaged and under the case that hurts them most.

    Empty where no outcomes are kept, or where a sample has several labels.
    """
    cases = _cases(table, rows, selection)
    lines = [[_panel(row, case, selection, (track, outcomes)) for row in rows] for case in cases]
    found = [[panel for panel in line if panel is not None] for line in lines]
    panels = [line for line in found if line]
    if not panels:
        return ()
    place = f"{selection.dataset}, {selection.backbone}, {track} track"
    return confusion(panels, place), reliability(panels, place)


def _cases(table: Table, rows: Sequence[Row], selection: Selection) -> tuple[str, ...]:
    """The undamaged case, and the one with the lowest mean over the rows."""
    clean = clean_case(conditions_of(selection))
    means: dict[str, float] = {}
    for i, column in enumerate(table.columns):
        values = [row.cells[i].mean for row in rows]
        known = [value for value in values if value is not None]
        if column.key in selection.cases and known and len(known) == len(values):
            means[column.key] = fmean(known)
    worst = min(means, key=means.__getitem__, default=None)
    return tuple(dict.fromkeys(case for case in (clean, worst) if case is not None))


def _panel(row: Row, case: str, selection: Selection, where: tuple[Track, Outcomes]) -> Panel | None:
    track, outcomes = where
    seeds: list[Sampled] = []
    classes: tuple[str, ...] = ()
    for record in selection.records:
        if (record.trial.title, regime_word(record)) == (row.name, row.regime) and record.data is not None:
            found = _sampled(record, case, selection, (track, outcomes))
            seeds += [found] if found is not None else []
            classes = record.data.classes
    return Panel(row, case, classes, tuple(seeds)) if seeds else None


def _sampled(record: TrialRecord, case: str, selection: Selection, where: tuple[Track, Outcomes]) -> Sampled | None:
    """On the track, or on the one below it that this trial is scored on; the strongest severity of a case."""
    track, outcomes = where
    scored = scored_on(record, selection, track) if record.status == "ok" else None
    if scored is None:
        return None
    severities = [s.severity for s in record.scores if (s.case, s.track) == (case, scored.track)]
    return outcomes.of(record, case, max(severities), scored.track) if severities else None


def confusion_shares(panel: Panel) -> Array:
    """(C, C): of the samples of each class, the share answered with each class; rows without samples are NaN."""
    size = len(panel.classes)
    counts = np.zeros((size, size))
    for found in panel.seeds:
        np.add.at(counts, (found.labels, found.predicted), 1)
    with np.errstate(invalid="ignore"):
        shares: Array = counts / counts.sum(axis=1, keepdims=True)
    return shares


def reliability_bins(found: Sequence[Sampled]) -> Bins:
    """Accuracy by confidence in the bins of the expected calibration error (Guo et al., ICML 2017, section 3)."""
    index = np.concatenate([_bin_of(entry) for entry in found])  # (N,)
    correct = np.concatenate([entry.correct for entry in found])  # (N,)
    counts = np.bincount(index, minlength=CALIBRATION_BINS)
    right = np.bincount(index, weights=correct, minlength=CALIBRATION_BINS)
    with np.errstate(invalid="ignore"):
        return Bins(counts / len(index), right / counts)


def _bin_of(found: Sampled) -> npt.NDArray[np.int64]:
    """(S,) the bin of each confidence; in steps of 1/255, whose floats may fall just short of an edge."""
    bins = np.floor(found.confidence * CALIBRATION_BINS + 1e-9).astype(np.int64)
    return np.minimum(bins, CALIBRATION_BINS - 1)


def calibration_error(found: Sampled) -> float:
    """Expected calibration error of one trial, from confidences in steps of 1/255."""
    gaps = np.bincount(_bin_of(found), weights=found.correct - found.confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(found.confidence))


def confusion(panels: Sequence[Sequence[Panel]], place: str) -> Drawing:
    """A matrix a row and case, in percent of each class, over all seeds."""
    size = len(panels[0][0].classes)
    side = 3.0 if size <= _MOST_NUMBERS else 3.6
    figure = _grid(panels, (side, side + 0.1), _confusion_panel)
    words = f"Confusion on {plain(place)}"
    note = "rows: the class; columns: the answer; percent of the class, all seeds together"
    figure.suptitle(f"{label(words, 100)}\n{note}", fontsize=10)
    alt = f"Confusion matrices of {_listed(panels)}. Most confused: {_most_confused(panels)}."
    return Drawing(figure, "confusion", words, alt)


def _listed(panels: Sequence[Sequence[Panel]]) -> str:
    entries = (panel for line in panels for panel in line)
    return ", ".join(f"{_name(panel)} under {plain(panel.case)} ({panel.accuracy:.1%} right)" for panel in entries)


def _name(panel: Panel) -> str:
    return f"{plain(panel.row.name)} {panel.row.regime}" if panel.row.trained else plain(panel.row.name)


def _most_confused(panels: Sequence[Sequence[Panel]]) -> str:
    """The largest share off the diagonal of the last case's first row, in words."""
    panel = panels[-1][0]
    shares = np.nan_to_num(confusion_shares(panel))
    np.fill_diagonal(shares, -1.0)
    label_index, answer = np.unravel_index(int(shares.argmax()), shares.shape)
    share = shares[label_index, answer]
    names = plain(panel.classes[int(label_index)]), plain(panel.classes[int(answer)])
    return f"{names[0]} taken for {names[1]} in {share:.0%} ({_name(panel)}, {plain(panel.case)})"


def _grid(
    panels: Sequence[Sequence[Panel]], inches: tuple[float, float], draw: Callable[[Axes, Panel, bool, bool], None]
) -> Figure:
    """A panel for every row (across) and case (down); `draw` is told whether it stands first, and lowest."""
    across = max(len(line) for line in panels)
    figure = new_figure(1.3 + inches[0] * across, 1.4 + inches[1] * len(panels))
    axes = figure.subplots(len(panels), across, squeeze=False)
    for down, line in enumerate(panels):
        for i in range(across):
            if i < len(line):
                draw(axes[down, i], line[i], i == 0, down == len(panels) - 1)
                name = f"{row_label(line[i].row)}\n{label(line[i].case, 26)}: {line[i].accuracy:.1%}"
                axes[down, i].set_title(name, fontsize=9)
            else:
                axes[down, i].set_axis_off()
    return figure


def _confusion_panel(axes: Axes, panel: Panel, first: bool, lowest: bool) -> None:
    shares = 100 * confusion_shares(panel)
    size = len(panel.classes)
    names = [label(name, 14) for name in panel.classes] if size <= _MOST_NAMES else []
    written = np.array([[f"{v:.0f}" if v >= 0.5 else "" for v in line] for line in shares])
    sns.heatmap(
        shares,
        ax=axes,
        cmap="Blues",
        vmin=0,
        vmax=100,
        square=True,
        cbar=False,
        annot=written if size <= _MOST_NUMBERS else False,
        fmt="",
        annot_kws={"fontsize": 7},
        xticklabels=names if lowest and names else False,
        yticklabels=names if first and names else False,
        linewidths=0.4 if size <= _MOST_NAMES else 0,
        linecolor="#dddddd",
    )
    for text in axes.texts:
        text.set_in_layout(False)
    points = 8 if size <= _MOST_NUMBERS else 5.5
    axes.tick_params(axis="x", rotation=90, labelsize=points, length=0)
    axes.tick_params(axis="y", rotation=0, labelsize=points, length=0)


def reliability(panels: Sequence[Sequence[Panel]], place: str) -> Drawing:
    """Accuracy over confidence in 15 bins a row and case; below the diagonal a row is too sure of itself."""
    figure = _grid(panels, (2.8, 2.6), _reliability_panel)
    words = f"Reliability on {plain(place)}"
    note = (
        f"bars: accuracy in {CALIBRATION_BINS} bins of confidence (pale: of less than 1 % of the samples); "
        "narrow bars: share of the samples; ECE: mean over seeds"
    )
    figure.suptitle(f"{label(words, 100)}\n{note}", fontsize=10)
    errors = (
        f"{_name(panel)} under {plain(panel.case)} {fmean(map(calibration_error, panel.seeds)):.1%}"
        for line in panels
        for panel in line
    )
    alt = f"Reliability diagrams; expected calibration error of {', '.join(errors)}."
    return Drawing(figure, "reliability", words, alt)


def _reliability_panel(axes: Axes, panel: Panel, first: bool, lowest: bool) -> None:
    bins = reliability_bins(panel.seeds)
    look = look_of(panel.row)
    width = 1 / CALIBRATION_BINS
    middle = (np.arange(CALIBRATION_BINS) + 0.5) * width
    colours = [to_rgba(look.colour, 0.25 if share < _RARE else 0.85) for share in bins.share]
    axes.bar(middle, np.nan_to_num(bins.accuracy), width=width, color=colours, edgecolor="white")
    axes.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle=(0, (4, 3)))
    axes.bar(middle, bins.share, width=0.5 * width, color="#d9d9d9", edgecolor="#555555", linewidth=0.5, zorder=3)
    error = fmean(map(calibration_error, panel.seeds))
    axes.text(0.04, 0.93, f"ECE {error:.1%}", fontsize=9, va="top", transform=axes.transAxes, bbox=_BACKING)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.tick_params(labelsize=8)
    if first:
        axes.set_ylabel("accuracy", fontsize=9)
    if lowest:
        axes.set_xlabel("confidence", fontsize=9)
