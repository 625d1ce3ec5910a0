"""Records to tables of robustness: what is kept of the clean accuracy, and the error against the frozen source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from statistics import fmean

from mmbench.cards import Track
from mmbench.records import TrialRecord
from mmbench.report.aggregate import (
    METRIC_LABELS,
    Board,
    failed_row,
    row_of,
    slug,
    sort_rows,
)
from mmbench.report.blocks import Values, over_corruptions
from mmbench.report.case_scores import case_values, floats
from mmbench.report.comparable import Same, Selection, select
from mmbench.report.conditions import Condition, Group, clean_case, conditions_of, corruptions_of, families_of
from mmbench.report.measures import NO_LINE, ShiftLine, shift_line
from mmbench.report.model import NO_CASE, ONLY_AVAILABILITY, Cell, Column, Row, Table, cell_of, mark_best
from mmbench.report.notes import how_made, provenance_of

ROBUSTNESS = "robustness"
"""Last part of the tables' file names, and of the curves' beside them."""
_MOST_LISTED = 12  # corruptions of a family that a note names one by one
REFERENCE = "source"
"""The method whose errors mCE divides by: the frozen backbone as it was pre-trained, not trained any further."""


@dataclass(frozen=True)
class Protocol:
    """What every row of one table is measured against."""

    clean: str | None
    groups: tuple[Group, ...]
    families: dict[str, tuple[Group, ...]]
    source: Values | None
    """Scores of the frozen source, means over its trials; None without such a row."""
    line: ShiftLine = NO_LINE
    """Clean and corrupted scores of the source and of what was trained on clean samples alone."""

    @property
    def swept(self) -> tuple[Group, ...]:
        """Missing modalities at two rates or more: what a curve over the rate has an area for."""
        rated = [g for g in self.groups if all(c.scale == "rate" for c in g.conditions)]
        return tuple(g for g in rated if len({c.level for c in g.conditions}) > 1)

    def columns(self) -> tuple[Column, ...]:
        kept = tuple(Column(f"kept/{f}", f"kept, {f}", "% of clean", 1, "higher") for f in self.families)
        areas = tuple(Column(f"area/{g.label}", f"area, {g.label}", "%", 1, "higher") for g in self.swept)
        return (
            Column("clean", "clean", "%", 1, "higher"),
            Column("corrupted", "corrupted", "%", 1, "higher", headline=True),
            Column("worst", "worst case", "%", 1, "higher"),
            *kept,
            Column("mce", "mCE", "%", 1, "lower"),
            Column("relative_mce", "relative mCE", "%", 1, "lower"),
            *((Column("effective", "effective", "points", 1, "higher"),) if self.line.fits else ()),
            *areas,
        )

    def figures(self, values: Values) -> tuple[float | None, ...]:
        """One number a column, as a share; None where a case it needs has no value."""
        clean = None if self.clean is None else values.get(self.clean)
        every = [values.get(case) for group in self.groups for case in group.cases]
        known = [value for value in every if value is not None]
        kept = [_ratio(over_corruptions(values, groups), clean) for groups in self.families.values()]
        areas = [area_over_rate(values, group, clean) for group in self.swept]
        worst = min(known) if len(known) == len(every) else None
        corrupted, relative = over_corruptions(values, self.groups), self.relative_mce(values)
        effective = (self.line.beyond(clean, corrupted),) if self.line.fits else ()
        return (clean, corrupted, worst, *kept, self.mce(values), relative, *effective, *areas)

    def mce(self, values: Values) -> float | None:
        """Mean over corruptions of summed error over the source's summed error (Hendrycks & Dietterich, ICLR 2019)."""
        return self._over_source(values, None)

    def relative_mce(self, values: Values) -> float | None:
        """The same of what each loses against its own clean score; None if the source loses nothing somewhere."""
        return None if self.clean is None else self._over_source(values, self.clean)

    def _over_source(self, values: Values, clean: str | None) -> float | None:
        if self.source is None:
            return None
        ratios = [_ratio(_lost(values, group, clean), _lost(self.source, group, clean)) for group in self.groups]
        known = [ratio for ratio in ratios if ratio is not None]
        return fmean(known) if len(known) == len(ratios) else None


def _lost(values: Values, group: Group, clean: str | None) -> float | None:
    """Error over the severities of a corruption, the clean error subtracted if a clean case is named."""
    mean = over_corruptions(values, (group,))
    best = 1.0 if clean is None else values.get(clean)
    return None if mean is None or best is None else best - mean


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None or base <= 0 else value / base


def area_over_rate(values: Values, group: Group, clean: float | None) -> float | None:
    """Area under the score over the missing rate by trapezia, divided by the range: a mean score in 0..1.

    The clean score stands at rate 0; without one the range begins at the lowest rate.
    """
    points: list[tuple[float, float | None]] = [] if clean is None else [(0.0, clean)]
    points += [(condition.level, values.get(condition.case)) for condition in group.conditions]
    known = [(rate, value) for rate, value in points if value is not None]
    if len(known) < len(points) or len(known) < 2:
        return None
    return sum((b - a) * (u + v) / 2 for (a, u), (b, v) in pairwise(known)) / (known[-1][0] - known[0][0])


def robustness_tables(board: Board, dataset: str, backbone: str) -> tuple[Table, ...]:
    """One a track: clean, corrupted and worst score, the share kept, mCE, areas; none without a corrupted case."""
    selection = select(board.records, dataset, backbone)
    return tuple(
        _track_table(selection, track)
        for track in (selection.tracks if selection.records else ())
        if any(not c.clean and c.case not in selection.idle for c in conditions_of(selection))
    )


def _track_table(selection: Selection, track: Track) -> Table:
    protocol = protocol_of(selection, track)
    columns = protocol.columns()
    rows = tuple(row for group in selection.rows() if (row := _row(group, selection, track, protocol)) is not None)
    place = (selection.dataset, selection.backbone)
    return Table(
        title=f"Robustness on {place[0]}, {place[1]}, {track} track: {METRIC_LABELS[selection.metric].lower()}",
        slug=slug(*place, track, ROBUSTNESS),
        columns=columns,
        rows=mark_best(sort_rows(rows, 1), columns),
        notes=(
            *_reading(protocol),
            *_outside_line(rows, protocol.line),
            *_left_out(selection),
            *how_made(selection.records),
            *selection.problems,
        ),
        provenance=provenance_of(selection.records),
    )


def protocol_of(selection: Selection, track: Track) -> Protocol:
    """The cases that apply to the data by corruption and family, and the scores of the source row."""
    return _protocol_of(Same(selection), track)


@lru_cache(maxsize=8)
def _protocol_of(same: Same[Selection], track: Track) -> Protocol:
    selection = same.thing
    conditions = [condition for condition in conditions_of(selection) if condition.case not in selection.idle]
    groups = corruptions_of(conditions)
    source = _source(selection, track, conditions)
    found = Protocol(clean_case(conditions), groups, families_of(groups), source)
    return replace(found, line=_line(selection, track, found))


def _line(selection: Selection, track: Track, protocol: Protocol) -> ShiftLine:
    """What no training against corruptions reaches; the training trajectory of full fine-tuning is not recorded."""
    plain = [
        values
        for record in selection.records
        if not record.trial.strategies
        and ((record.trial.method, record.trial.regime) == (REFERENCE, "none") or record.trial.regime == "clean")
        and (values := values_of(record, track, selection.metric)) is not None
    ]
    return shift_line([(found[0], found[1]) for found in map(protocol.figures, plain)])


def _source(selection: Selection, track: Track, conditions: Sequence[Condition]) -> Values | None:
    found = [
        values
        for record in selection.records
        if (record.trial.method, record.trial.regime) == (REFERENCE, "none")
        and (values := values_of(record, track, selection.metric)) is not None
    ]
    cases = [condition.case for condition in conditions]
    return {case: cell_of(values.get(case) for values in found).mean for case in cases} if found else None


def values_of(record: TrialRecord, track: Track, metric: str) -> Values | None:
    """Scores by case of a finished trial on a track, or on the one below it that it has."""
    found = case_values(record, track, metric) if record.status == "ok" else None
    return None if found is None else floats(found[0])


def _row(group: tuple[TrialRecord, ...], selection: Selection, track: Track, protocol: Protocol) -> Row | None:
    """One row, or None if the method finished but has no score this track may show."""
    finished = [record for record in group if record.status == "ok"]
    columns = protocol.columns()
    if not finished:
        return failed_row(group, len(columns))
    scored = [found for record in finished if (found := case_values(record, track, selection.metric)) is not None]
    if not scored:
        return None
    by_seed = [protocol.figures(floats(values)) for values, _ in scored]
    cells: tuple[Cell, ...] = tuple(cell_of(column, 100) for column in zip(*by_seed, strict=True))
    row = row_of(group, cells, selection.seeds, cells[1:2])
    used = {offered for _, offered in scored} - {track}
    daggers = ((NO_CASE,) if "blind" in used else ()) + ((ONLY_AVAILABILITY,) if "avail" in used else ())
    return replace(row, notes=daggers + row.notes)


def _outside_line(rows: Sequence[Row], line: ShiftLine) -> tuple[str, ...]:
    """Rows whose effective robustness rests on a part of the line that no model set."""
    if not line.fits:
        return ()
    rated = [(row, row.cells[0].mean) for row in rows]
    outside = [f"{row.name} {row.regime}" for row, clean in rated if clean is not None and not line.covers(clean / 100)]
    more = f" and {len(outside) - _MOST_LISTED} more" if len(outside) > _MOST_LISTED else ""
    low, high = line.span
    listed = f"{', '.join(outside[:_MOST_LISTED])}{more}"
    words = f"The line is drawn from clean scores of {100 * low:.1f} to {100 * high:.1f} %; beyond them lie: {listed}."
    return (words,) if outside else ()


def _reading(protocol: Protocol) -> tuple[str, ...]:
    """How to read the columns."""
    notes = [
        "Corrupted: mean over the severities or rates of each corruption, then over corruptions; missing modalities "
        "count as corruptions. Worst case: the lowest of their single cases.",
        "Kept: the corrupted score of a family as a share of the clean one (relative robustness).",
    ]
    if protocol.source is None:
        notes.append(f"No mCE: {REFERENCE} has no finished trial here.")
    else:
        notes.append(
            f"mCE: error over that of {REFERENCE}, mean over all corruptions of this table, 100 = as the source. "
            "Relative mCE: the same of what each loses against its own clean score; a dash where the source loses "
            "nothing under some corruption or there is no clean case."
        )
    if protocol.line.fits:
        notes.append(
            f"Effective: corrupted score above the one expected from the clean score, by a line between logits through "
            f"{len(protocol.line.points)} trials of {REFERENCE} and of what saw clean samples alone (Taori et al., "
            "NeurIPS 2020)."
        )
    if protocol.swept:
        notes.append("Area: under the score over the missing rate, as a mean score; the clean score stands at rate 0.")
    families = "; ".join(f"{name}: {_listed(found)}" for name, found in protocol.families.items())
    return (*notes, f"Corruptions by family: {families}.")


def _listed(groups: Sequence[Group]) -> str:
    return ", ".join(g.label for g in groups) if len(groups) <= _MOST_LISTED else f"{len(groups)} corruptions"


def _left_out(selection: Selection) -> tuple[str, ...]:
    idle = [case for case in selection.cases if case in selection.idle]
    return (f"Not applicable to this data and left out: {', '.join(idle)}.",) if idle else ()
