"""What it is worth to be told the case: the same trained states on the informed, avail and blind tracks."""

from __future__ import annotations

from collections.abc import Sequence

from mmbench.cards import Track
from mmbench.records import TrialRecord
from mmbench.report.aggregate import METRIC_LABELS, Board, row_of, slug, sort_rows
from mmbench.report.case_scores import case_values, mean_score
from mmbench.report.comparable import Selection, select
from mmbench.report.model import Column, Row, Table, cell_of, mark_best
from mmbench.report.notes import how_made, provenance_of

KNOWLEDGE = "knowledge"
_READING = (
    "Mean over cases of the same trained states, told the case (informed), which modality is absent (avail), or "
    "nothing (blind). Gap: told most less told nothing, seed by seed; below 0 the knowledge hurts.",
    "Only methods that have scores on two tracks or more stand here; a gap near 0 means that the method works out the "
    "case by itself, or makes no use of it.",
)


def knowledge_tables(board: Board, dataset: str, backbone: str) -> tuple[Table, ...]:
    """One table, or none where no method was scored on two tracks."""
    selection = select(board.records, dataset, backbone)
    tracks = tuple(track for track in selection.tracks if track == selection.tracks[-1] or _is_told(selection, track))
    found = (_row(group, selection, tracks) for group in selection.rows())
    rows = tuple(row for row in found if row is not None)
    if not rows:
        return ()
    columns = (
        *(Column(track, track, "%", 1, "higher") for track in tracks),
        Column("gap", f"gap to {tracks[-1]}", "points", 1, headline=True),
        Column("gap_worst", "gap, worst case", "points", 1),
    )
    place = (selection.dataset, selection.backbone)
    return (
        Table(
            title=f"Worth of knowing the case on {', '.join(place)}: {METRIC_LABELS[selection.metric].lower()}",
            slug=slug(*place, KNOWLEDGE),
            columns=columns,
            rows=mark_best(sort_rows(rows, len(tracks)), columns),
            notes=(*_READING, *how_made(selection.records), *selection.problems),
            provenance=provenance_of(selection.records),
        ),
    )


def _row(group: tuple[TrialRecord, ...], selection: Selection, tracks: Sequence[Track]) -> Row | None:
    """One row, or None for a method that was scored on one track alone."""
    finished = [record for record in group if record.status == "ok"]
    told = [track for track in tracks if any(_own(record, track, selection.metric) for record in finished)]
    if len(told) < 2 or told[-1] != tracks[-1]:
        return None
    means = {track: [_mean(record, track, selection.metric) for record in finished] for track in tracks}
    worst = {track: [_worst(record, track, selection) for record in finished] for track in (told[0], told[-1])}
    cells = (
        *(cell_of(means[track], 100) for track in tracks),
        cell_of(_differences(means[told[0]], means[told[-1]]), 100),
        cell_of(_differences(worst[told[0]], worst[told[-1]]), 100),
    )
    return row_of(group, cells, selection.seeds, cells[len(tracks) :])


def _is_told(selection: Selection, track: Track) -> bool:
    """Whether some trial was scored on this track and on the one that tells least."""
    least, metric = selection.tracks[-1], selection.metric
    return any(_own(r, track, metric) and _own(r, least, metric) for r in selection.records if r.status == "ok")


def _own(record: TrialRecord, track: Track, metric: str) -> bool:
    """Whether the trial was scored on the track itself, not on one below it."""
    found = case_values(record, track, metric)
    return found is not None and found[1] == track


def _mean(record: TrialRecord, track: Track, metric: str) -> float | None:
    return mean_score(record, track, metric) if _own(record, track, metric) else None


def _worst(record: TrialRecord, track: Track, selection: Selection) -> float | None:
    found = case_values(record, track, selection.metric) if _own(record, track, selection.metric) else None
    values = [] if found is None else [found[0][case].value for case in found[0] if case not in selection.idle]
    known = [value for value in values if value is not None]
    return min(known) if known and len(known) == len(values) else None


def _differences(most: Sequence[float | None], least: Sequence[float | None]) -> list[float | None]:
    return [None if a is None or b is None else a - b for a, b in zip(most, least, strict=True)]
