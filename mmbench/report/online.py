"""Online adaptation: its own tables, because its predictions depend on the stream."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from mmbench.cards import NOT_APPLICABLE, Track
from mmbench.records import TrialFacts, TrialRecord
from mmbench.report.aggregate import METRIC_LABELS, Board, failed_row, row_of, slug, sort_rows
from mmbench.report.blocks import Block, By, blocks_of, reading
from mmbench.report.comparable import FALLBACKS, Selection, select
from mmbench.report.model import Cell, Column, Row, Table, cell_of, mark_best
from mmbench.report.notes import how_made, provenance_of
from mmbench.report.second import second_metric, second_notes, with_second

READING = (
    "Before: each batch is scored before the update on it (the headline). After: scored again after the update.",
    "Unadapted: the same trained state without the adapter, on the same samples.",
    "Worse: share of the streams (case, seed, setting, batch) in which the adapter scores below the unadapted model, "
    "by however little. Largest drop: how far below it the worst of them lies; a large one is a collapse.",
    "Rates and thresholds are the published ones; nothing was tuned on test data.",
    "Used: share of the samples that passed the adapter's filter and entered an update, over all streams.",
    "Reset: the model starts anew for each case; continual: cases follow each other; mixed: one stream of all cases.",
)
MET = "The adapters met the samples of the scenes all the same; scores without scenes count the others."


@dataclass(frozen=True)
class Streams:
    """The scores of one online trial, by stream and case."""

    record: TrialRecord
    metric: str

    def value(self, case: str, stream: str, update: str) -> float | None:
        return next(
            (
                score.value
                for score in self.record.scores
                if (score.case, score.stream, score.update, score.metric) == (case, stream, update, self.metric)
            ),
            None,
        )

    def values(self, stream: str, update: str, second: bool = False) -> dict[str, float | None]:
        """By case; where a case has a second score, that if it is wanted."""
        values = {case: self.value(case, stream, update) for case in self.record.trial.cases}
        if second:
            wanted = (stream, update, second_metric(self.metric))
            values |= {s.case: s.value for s in self.record.scores if (s.stream, s.update, s.metric) == wanted}
        return values

    def cases(self) -> tuple[str, ...]:
        """The trial's cases without those that do not apply to the data."""
        idle = {score.case for score in self.record.scores if (score.reason or "").startswith(NOT_APPLICABLE)}
        return tuple(case for case in self.record.trial.cases if case not in idle)

    def mean(self, stream: str, update: str) -> float | None:
        """Mean over the cases; None unless each has a value."""
        values = [self.value(case, stream, update) for case in self.cases()]
        known = [value for value in values if value is not None]
        return fmean(known) if known and len(known) == len(values) else None

    def worst(self, stream: str, update: str = "before") -> float | None:
        values = [self.value(case, stream, update) for case in self.cases()]
        known = [value for value in values if value is not None]
        return min(known) if known and len(known) == len(values) else None

    def largest_drop(self, streams: Sequence[str]) -> float | None:
        """Of all (case, stream) pairs, how far the adapter lies below the unadapted model at most; 0 if nowhere."""
        drops = [plain - adapted for adapted, plain in self._pairs(streams)]
        return max(0.0, *drops) if drops else None

    def _pairs(self, streams: Sequence[str]) -> list[tuple[float, float]]:
        """Scores with the adapter and without, of every case and stream that has both."""
        found = [
            (self.value(case, stream, "before"), self.value(case, "", "none"))
            for case in self.record.trial.cases
            for stream in streams
        ]
        return [(adapted, plain) for adapted, plain in found if adapted is not None and plain is not None]

    def worse_share(self, streams: Sequence[str]) -> float | None:
        """Share of (case, stream) pairs that end below the unadapted model."""
        pairs = self._pairs(streams)
        return sum(adapted < plain for adapted, plain in pairs) / len(pairs) if pairs else None


def streams_of(selection: Selection) -> tuple[str, ...]:
    """Every stream of the records, in the order they were run."""
    return tuple(dict.fromkeys(s.stream for r in selection.records for s in r.scores if s.stream))


def online_tables(board: Board, dataset: str, backbone: str, by: By = "case") -> tuple[Table, ...]:
    """All streams in one table, and the cases of the first stream in another, for each track that has trials.

    `by` says what a column of the second stands for where there are many cases.
    """
    selection = select(board.records, dataset, backbone, online=True)
    found: list[Table] = []
    for track in reversed(tuple(FALLBACKS)):
        part = replace(selection, records=tuple(r for r in selection.records if track_of(r) in (track, None)))
        if streams := streams_of(part):
            found += [_settings_table(part, streams, track), _cases_table(part, streams[0], track, by)]
    return tuple(found)


def track_of(record: TrialRecord) -> str | None:
    """The track an online trial ran on: the one that tells its method least; None where it has no score."""
    return next((score.track for score in record.scores), None)


def _settings_table(selection: Selection, streams: tuple[str, ...], track: Track) -> Table:
    first = streams[0]
    columns = (
        Column("unadapted", "unadapted", "%", 1),
        Column("before", f"{first} before", "%", 1, "higher", headline=True),
        Column("after", f"{first} after", "%", 1),
        Column("worst", f"{first} worst case", "%", 1, "higher"),
        *(Column(stream, stream, "%", 1, "higher") for stream in streams[1:]),
        Column("worse", "worse", "% of streams", 0, "lower"),
        Column("drop", "largest drop", "points", 1, "lower"),
        Column("used", "used", "% of samples", 0),
        Column("updated", "updated", "M"),
        Column("passes", "forward + backward", "per sample"),
        Column("milliseconds", "update", "ms/sample"),
    )

    def row(group: tuple[TrialRecord, ...]) -> Row:
        finished = [Streams(r, selection.metric) for r in group if r.status == "ok"]
        if not finished:
            return failed_row(group, len(columns))
        cells = (
            cell_of((s.mean("", "none") for s in finished), 100),
            cell_of((s.mean(first, "before") for s in finished), 100),
            cell_of((s.mean(first, "after") for s in finished), 100),
            cell_of((s.worst(first) for s in finished), 100),
            *(cell_of((s.mean(stream, "before") for s in finished), 100) for stream in streams[1:]),
            cell_of((s.worse_share(streams) for s in finished), 100, spread=False),
            cell_of((s.largest_drop(streams) for s in finished), 100),
            *_cost_cells([s.record for s in finished]),
        )
        return row_of(group, cells, selection.seeds, cells[1:2])

    return _table(selection, ("settings", track), columns, tuple(row(group) for group in selection.rows()), 1)


def _cost_cells(records: Sequence[TrialRecord]) -> tuple[Cell, ...]:
    facts = [record.online for record in records if record.online is not None]
    return (
        cell_of((None if f.used_share is None else 100 * f.used_share for f in facts), spread=False),
        cell_of((f.updated_parameters / 1e6 for f in facts), spread=False),
        cell_of((f.forwards_per_sample + f.backwards_per_sample for f in facts), spread=False),
        cell_of(None if f.update_seconds_per_sample is None else 1000 * f.update_seconds_per_sample for f in facts),
    )


def _cases_table(selection: Selection, stream: str, track: Track, by: By) -> Table:
    found = [Streams(record, selection.metric) for record in selection.records if record.status == "ok"]
    pairs = [(s.values(stream, "before"), s.values(stream, "before", second=True)) for s in found]
    blocks = with_second(blocks_of(selection, by), pairs)
    columns = (
        *(Column(block.key, block.key, "%", 1, "higher") for block in blocks),
        Column("mean", "mean", "%", 1, "higher", headline=True),
        Column("worst", "worst case", "%", 1, "higher"),
    )

    def row(group: tuple[TrialRecord, ...]) -> Row:
        finished = [Streams(r, selection.metric) for r in group if r.status == "ok"]
        if not finished:
            return failed_row(group, len(columns))
        cells = _stream_cells(finished, blocks, stream, "before")
        return row_of(group, cells, selection.seeds, cells[-2:])

    rows = tuple(row(group) for group in selection.rows()) + _unadapted(selection, blocks)
    table = _table(selection, (stream, track), columns, rows, len(blocks))
    notes = (*second_notes(selection), MET) if any(block.second for block in blocks) else ()
    return replace(table, notes=reading(selection, by) + notes + table.notes)


def _stream_cells(found: Sequence[Streams], blocks: Sequence[Block], stream: str, update: str) -> tuple[Cell, ...]:
    """Every column of a table of cases, the mean and the worst case."""
    return (
        *(cell_of((block.mean(s.values(stream, update, block.second)) for s in found), 100) for block in blocks),
        cell_of((s.mean(stream, update) for s in found), 100),
        cell_of((s.worst(stream, update) for s in found), 100),
    )


def _unadapted(selection: Selection, blocks: Sequence[Block]) -> tuple[Row, ...]:
    """The trained states without an adapter, one row each, from the records of the adapters over them."""
    bases: dict[str, dict[int, TrialRecord]] = {}
    for record in selection.records:
        if record.status == "ok" and record.online is not None:
            trial = _base_facts(record.trial)
            content = json.dumps([trial.title, trial.regime, trial.options, trial.deviations], sort_keys=True)
            bases.setdefault(content, {}).setdefault(trial.seed, record.model_copy(update={"trial": trial}))
    groups = [tuple(by_seed.values()) for by_seed in bases.values()]
    titles = Counter((group[0].trial.title, group[0].trial.regime) for group in groups)
    return tuple(
        _unadapted_row(group, selection, blocks, titles[group[0].trial.title, group[0].trial.regime] > 1)
        for group in groups
    )


def _unadapted_row(group: tuple[TrialRecord, ...], selection: Selection, blocks: Sequence[Block], several: bool) -> Row:
    """One row; its options stand in its name where several trained states share that."""
    cells = _stream_cells([Streams(record, selection.metric) for record in group], blocks, "", "none")
    row = row_of(group, cells, selection.seeds, cells[-2:])
    options = f", {', '.join(group[0].trial.deviations)}" if several and group[0].trial.deviations else ""
    return replace(row, name=f"{row.name}{options} (unadapted)", facts=replace(row.facts, online=""))


def _base_facts(trial: TrialFacts) -> TrialFacts:
    """The facts of the trained state below an online adapter, as far as the adapter's own tell them."""
    own = f"{trial.online}: "
    rest = tuple(text for text in trial.deviations if not text.startswith(own))
    return trial.model_copy(update={"title": "+".join((trial.method, *trial.strategies)), "deviations": rest})


def _table(
    selection: Selection, name: tuple[str, Track], columns: tuple[Column, ...], rows: tuple[Row, ...], by: int
) -> Table:
    metric = METRIC_LABELS[selection.metric]
    what, track = name
    words = "all settings" if what == "settings" else f"stream {what}, before the update"
    place = f"{selection.dataset}, {selection.backbone}"
    return Table(
        title=f"Online adaptation on {place}: {metric.lower()}, {words}, {track} track",
        slug=slug(selection.dataset, selection.backbone, "online", what.replace("/", "-"), track),
        columns=columns,
        rows=mark_best(sort_rows(rows, by), columns),
        notes=(*READING, *how_made(selection.records), *selection.problems),
        provenance=provenance_of(selection.records),
    )
