"""Cost tables to tables of trade-offs: who is on the Pareto front of which cost, hypervolume, PPT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from mmbench.report.efficiency import REFERENCE
from mmbench.report.measures import on_front
from mmbench.report.model import NOT_MEASURED, Cell, Column, Row, Table, mark_best
from mmbench.report.stats import hypervolume, ppt

TRADE_OFF = "trade-off"
FROZEN = "source"
"""The frozen backbone, whose score any trained row should exceed."""
_MILLION = 1e6
_COSTS = {"training_state": "memory", "epoch_seconds": "time", "stored": "stored"}
_FRONT_NOTE = (
    "Front: the costs (memory: training state; time: epoch; stored: bytes to keep) at which no row is as cheap and as "
    "good, and better in one of the two; by means over seeds, so that neighbours within their spread may swap. Rows "
    "with missing seeds and rows that do not train do not compete."
)
_PPT_NOTE = (
    "PPT: mean score in percent x exp(-log10(P / 10^7 + 1)) of V-PETL Bench (NeurIPS 2024), P trainable parameters. "
    "Kept to compare with it: it knows neither memory nor time, and below 100,000 parameters it is all but the score."
)


@dataclass(frozen=True)
class _Point:
    row: Row
    cost: float
    score: float


def trade_off_tables(costs: Sequence[Table]) -> tuple[Table, ...]:
    """One for each table of costs in which two trained rows have a score and a cost."""
    return tuple(made for table in costs if (made := _trade_off(table)) is not None)


def _trade_off(table: Table) -> Table | None:
    places = {column.key: i for i, column in enumerate(table.columns)}
    score = table.headline
    if score is None or any(key not in places for key in (*_COSTS, "trainable_parameters")):
        return None
    rows = [row for row in table.rows if not row.reported]
    fronts = {key: _front(rows, places[key], score) for key in _COSTS}
    if not any(fronts.values()):
        return None
    columns = (
        table.columns[score],
        *(replace(table.columns[places[key]], better=None) for key in _COSTS),
        Column("front", "front"),
        Column("ppt", "PPT", "", 1, "higher"),
    )
    made = tuple(
        _row(row, [score, *(places[key] for key in _COSTS)], places["trainable_parameters"], fronts) for row in rows
    )
    return replace(
        table,
        title=table.title.replace("Cost", "Trade-off", 1),
        slug=table.slug.replace("efficiency", TRADE_OFF),
        columns=columns,
        rows=mark_best(made, columns),
        notes=(_FRONT_NOTE, *_volumes(rows, places, score), _PPT_NOTE, *_kept(table)),
    )


def _row(row: Row, shown: Sequence[int], parameters: int, fronts: dict[str, list[_Point]]) -> Row:
    words = " ".join(_COSTS[key] for key, points in fronts.items() if any(point.row is row for point in points))
    score, trainable = row.cells[shown[0]], row.cells[parameters].mean
    known = score.mean is not None and trainable is not None
    value = ppt(score.mean or 0.0, round((trainable or 0.0) * _MILLION)) if known else None
    front = Cell(word=words or (NOT_MEASURED if score.mean is not None else score.word))
    ending = (front, Cell(value, n=score.n) if known else Cell(word=score.word))
    return replace(row, cells=(*(row.cells[i] for i in shown), *ending))


def _points(rows: Sequence[Row], cost: int, score: int) -> list[_Point]:
    """What competes: complete rows that trained."""
    return [
        _Point(row, c, s)
        for row in rows
        if row.complete and row.trained
        if (c := row.cells[cost].mean) is not None and (s := row.cells[score].mean) is not None
    ]


def _front(rows: Sequence[Row], cost: int, score: int) -> list[_Point]:
    points = _points(rows, cost, score)
    best = on_front([(point.cost, point.score) for point in points])
    return [point for point, on in zip(points, best, strict=True) if on] if len(points) > 1 else []


def _volumes(rows: Sequence[Row], places: dict[str, int], score: int) -> tuple[str, ...]:
    """Hypervolumes as a share of the box between frozen and perfect, nothing and full fine-tuning.

    The box holds whatever methods join, so that a volume of one board compares with that of the next.
    """
    floor = next((row.cells[score].mean for row in rows if row.name == FROZEN and not row.trained), None)
    if floor is None or floor >= 100:
        return (f"No hypervolume: {FROZEN} has no finished trial here.",)
    shares = []
    for key, word in _COSTS.items():
        points = _points(rows, places[key], score)
        full = median([p.cost for p in points if p.row.name == REFERENCE] or [0.0])
        if full > 0:
            area = hypervolume([p.cost for p in points], [p.score for p in points], (full, floor))
            shares.append(f"{word} {100 * area / (full * (100 - floor)):.1f} %")
    if not shares:
        return (f"No hypervolume: {REFERENCE} has no finished trial here.",)
    return (
        f"Hypervolume of all rows: {', '.join(shares)} of the box from the score of {FROZEN} ({floor:.1f} %) to 100 % "
        f"and from no cost to that of {REFERENCE}, the median of its regimes (Zitzler and Thiele, IEEE TEC 1999).",
    )


def _kept(table: Table) -> tuple[str, ...]:
    """What the cost table says of how it was measured."""
    start = next((i for i, note in enumerate(table.notes) if note.startswith("Suite ")), 0)
    return table.notes[start:]
