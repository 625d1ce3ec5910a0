"""The papers' own figures: quoted beside the measured ones, never ranked with them."""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from mmbench.report.model import Cell, Column, Row, Table

# "none" is a method without any knowledge of the case: it may stand on every track.
_TRACKS = {"situation-specific": ("informed",), "concat": ("blind",), "none": ("informed", "avail", "blind")}
_EFFICIENCY = {
    "trainable_params_millions": Column("trainable_parameters", "trainable", "M"),
    "memory_gib": Column("peak_memory", "memory", "GiB"),
    "epoch_seconds": Column("epoch_seconds", "epoch", "s"),
}
_MIB_PER_GIB = 1024.0
OTHER_PROTOCOL = "As reported by the papers: other data, other budget, other machine; never ranked with measured rows."
EPOCH_CAVEAT = (
    "Batch 128; the reported prompt-learning epoch used 30 % of each batch, full fine-tuning all of it, so the "
    "reported epoch times are not at an identical budget."
)


@dataclass(frozen=True)
class Figure:
    """One published number."""

    source: str
    dataset: str
    method: str
    strategy: str
    case: str
    metric: str
    value: float


@cache
def published() -> tuple[Figure, ...]:
    """Every figure of published.csv."""
    text = (files("mmbench.report") / "published.csv").read_text(encoding="utf-8")
    return tuple(Figure(value=float(line.pop("value")), **line) for line in csv.DictReader(text.splitlines()))


RowKey = tuple[str, str, str, str]
"""Data set, method, strategy, source."""


def _groups(costs: bool, datasets: Collection[str] | None = None) -> dict[RowKey, list[Figure]]:
    """Figures of accuracy or of cost by row; None takes every data set."""
    wanted = None if datasets is None else {name.lower() for name in datasets}
    groups: dict[RowKey, list[Figure]] = {}
    for f in published():
        if (f.case == "efficiency") == costs and (wanted is None or f.dataset.lower() in wanted):
            groups.setdefault((f.dataset, f.method, f.strategy, f.source), []).append(f)
    return groups


def reported_accuracy(datasets: Collection[str], columns: tuple[Column, ...], track: str) -> tuple[Row, ...]:
    """Reported rows of a data set for an accuracy table; empty for data no paper used."""
    rows = []
    for (_, method, strategy, source), figures in _groups(False, datasets).items():
        if track in _TRACKS[strategy]:
            cells = _accuracy_cells(figures, columns)
            rows.append(Row(method, strategy, cells, (f"reported: {source}",), reported=True))
    return tuple(rows)


def reported_efficiency(datasets: Collection[str], columns: tuple[Column, ...]) -> tuple[Row, ...]:
    """Reported rows of a data set for an efficiency table, memory in MiB."""
    rows = []
    for (_, method, strategy, source), figures in _groups(True, datasets).items():
        values = {_EFFICIENCY[f.metric].key: f.value for f in figures}
        if "peak_memory" in values:
            values["peak_memory"] *= _MIB_PER_GIB
        cells = tuple(_quoted(values.get(column.key)) for column in columns)
        rows.append(Row(method, strategy, cells, (f"reported: {source}",), reported=True))
    return tuple(rows)


def reported_tables() -> tuple[Table, ...]:
    """The small tables shown on every board: accuracy and cost as the papers print them."""
    figures = [f for f in published() if f.metric == "accuracy"]
    cases = dict.fromkeys(f.case for f in figures if f.case != "average")
    columns = (*(Column(case, case, "%", 0) for case in cases), Column("mean", "average", "%", 0, headline=True))
    accuracy = [
        Row(f"{method}, {dataset}", strategy, _accuracy_cells(group, columns), (source,), reported=True)
        for (dataset, method, strategy, source), group in _groups(False).items()
    ]
    costs = [
        Row(f"{method}, {dataset}", strategy, _cost_cells(group), (source,), reported=True)
        for (dataset, method, strategy, source), group in _groups(True).items()
    ]
    notes = (OTHER_PROTOCOL, "Averages are quoted as printed, not recomputed from the cases.")
    cost_columns = tuple(_EFFICIENCY.values())
    cost_notes = (OTHER_PROTOCOL, EPOCH_CAVEAT)
    return (
        Table("Accuracy as reported by the papers", "reported_accuracy", columns, tuple(accuracy), notes),
        Table("Cost as reported by the papers", "reported_efficiency", cost_columns, tuple(costs), cost_notes),
    )


def _accuracy_cells(figures: list[Figure], columns: tuple[Column, ...]) -> tuple[Cell, ...]:
    values = {"mean" if f.case == "average" else f.case: f.value * 100 for f in figures}
    return tuple(_quoted(values.get(column.key)) for column in columns)


def _cost_cells(figures: list[Figure]) -> tuple[Cell, ...]:
    values = {f.metric: f.value for f in figures}
    return tuple(_quoted(values.get(metric)) for metric in _EFFICIENCY)


def _quoted(value: float | None) -> Cell:
    return Cell() if value is None else Cell(value, n=1)
