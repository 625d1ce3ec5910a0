"""Records to tables of calibration: whether a probability can be believed, offline and under online adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mmbench.records import TrialRecord
from mmbench.report.aggregate import Board, failed_row, row_of, slug
from mmbench.report.blocks import over_corruptions
from mmbench.report.case_scores import case_values, floats
from mmbench.report.comparable import Selection, select
from mmbench.report.model import NO_CASE, ONLY_AVAILABILITY, Column, Row, Table, cell_of, mark_best
from mmbench.report.notes import how_made, provenance_of
from mmbench.report.online import Streams, streams_of
from mmbench.report.robustness import Protocol, protocol_of

CALIBRATION = "calibration"
ECE = Column("ece", "ECE", "%", 1, "lower", headline=True)
READING = (
    "ECE: gap between the probability of the predicted class and how often it is right, mean over samples in 15 equal "
    "bins (Guo et al., ICML 2017). NLL: mean negative log likelihood of the label, in nats.",
)
_OFFLINE = (
    Column("ece_clean", "ECE clean", "%", 1, "lower"),
    replace(ECE, key="ece_corrupted", label="ECE corrupted"),
    Column("ece_worst", "ECE worst case", "%", 1, "lower"),
    Column("nll_clean", "NLL clean", "nats", 2, "lower"),
    Column("nll_corrupted", "NLL corrupted", "nats", 2, "lower"),
)


def calibration_tables(board: Board, dataset: str, backbone: str) -> tuple[Table, ...]:
    """Of the track that tells most, and of the online adapters' first stream; none where nothing was recorded."""
    return (*_offline(select(board.records, dataset, backbone)), *_online(board, dataset, backbone))


def _offline(selection: Selection) -> tuple[Table, ...]:
    protocol = protocol_of(selection, selection.tracks[0])
    made = (_row(group, selection, protocol) for group in selection.rows())
    rows = tuple(row for row in made if row is not None)
    track = selection.tracks[0]
    title = f"Calibration on {selection.dataset}, {selection.backbone}, {track} track"
    name = slug(selection.dataset, selection.backbone, track, CALIBRATION)
    corrupted = "Corrupted: mean over the severities or rates of each corruption, then over corruptions."
    return _table(selection, (title, name), _OFFLINE, rows, (*READING, corrupted))


def _row(group: tuple[TrialRecord, ...], selection: Selection, protocol: Protocol) -> Row | None:
    """One row, or None if the method finished but has no score this track may show."""
    finished = [record for record in group if record.status == "ok"]
    if not finished:
        return failed_row(group, len(_OFFLINE))
    track = selection.tracks[0]
    ece, nll = ([case_values(r, track, metric) for r in finished] for metric in ("ece", "nll"))
    if not any(ece) and not any(nll):
        return None
    parts = [_figures(floats(found[0]) if found else {}, protocol) for found in ece]
    nats = [_figures(floats(found[0]) if found else {}, protocol) for found in nll]
    percent = [cell_of(column, 100) for column in zip(*parts, strict=True)]
    cells = (*percent, *(cell_of(column) for column in list(zip(*nats, strict=True))[:2]))
    used = {found[1] for found in (*ece, *nll) if found} - {track}
    daggers = ((NO_CASE,) if "blind" in used else ()) + ((ONLY_AVAILABILITY,) if "avail" in used else ())
    row = row_of(group, cells, selection.seeds, cells[1:2])
    return replace(row, notes=daggers + row.notes)


def _figures(values: Mapping[str, float | None], protocol: Protocol) -> tuple[float | None, float | None, float | None]:
    """Clean, mean over corruptions, and the highest of the single cases."""
    every = [values.get(case) for group in protocol.groups for case in group.cases]
    known = [value for value in every if value is not None]
    clean = None if protocol.clean is None else values.get(protocol.clean)
    worst = max(known) if known and len(known) == len(every) else None
    return clean, over_corruptions(values, protocol.groups), worst


def _online(board: Board, dataset: str, backbone: str) -> tuple[Table, ...]:
    selection = select(board.records, dataset, backbone, online=True)
    streams = streams_of(selection)
    if not streams:
        return ()
    first = streams[0]
    columns = (
        Column("ece_unadapted", "ECE unadapted", "%", 1),
        replace(ECE, label=f"ECE {first}"),
        Column("nll_unadapted", "NLL unadapted", "nats", 2),
        Column("nll", f"NLL {first}", "nats", 2, "lower"),
    )
    rows = tuple(_online_row(group, selection, first) for group in selection.rows())
    place = (selection.dataset, selection.backbone)
    title = f"Calibration under online adaptation on {', '.join(place)}, stream {first}, before the update"
    read = (*READING, "Means over cases; unadapted: the same trained state without the adapter, on the same samples.")
    return _table(selection, (title, slug(*place, "online", CALIBRATION)), columns, rows, read)


def _online_row(group: tuple[TrialRecord, ...], selection: Selection, stream: str) -> Row:
    finished = [record for record in group if record.status == "ok"]
    if not finished:
        return failed_row(group, 4)
    ece, nll = ([Streams(record, metric) for record in finished] for metric in ("ece", "nll"))
    cells = (
        cell_of((s.mean("", "none") for s in ece), 100),
        cell_of((s.mean(stream, "before") for s in ece), 100),
        cell_of(s.mean("", "none") for s in nll),
        cell_of(s.mean(stream, "before") for s in nll),
    )
    return row_of(group, cells, selection.seeds, cells[1:2])


def _table(
    selection: Selection, name: tuple[str, str], columns: tuple[Column, ...], rows: tuple[Row, ...], read: Sequence[str]
) -> tuple[Table, ...]:
    """One table without the columns that nothing fills; none if none is filled."""
    kept = [i for i in range(len(columns)) if any(row.cells[i].mean is not None for row in rows)]
    if not kept:
        return ()
    shown = tuple(columns[i] for i in kept)
    fewer = tuple(replace(row, cells=tuple(row.cells[i] for i in kept)) for row in rows)
    ranked = next((i for i, column in enumerate(shown) if column.headline), 0)
    return (
        Table(
            title=name[0],
            slug=name[1],
            columns=shown,
            rows=mark_best(_lowest_first(fewer, ranked), shown),
            notes=(*read, *how_made(selection.records), *selection.problems),
            provenance=provenance_of(selection.records),
        ),
    )


def _lowest_first(rows: tuple[Row, ...], by: int) -> tuple[Row, ...]:
    """Rows with missing seeds after complete ones, failed rows last."""

    def key(row: Row) -> tuple[bool, bool, float, str, str]:
        mean = row.cells[by].mean
        return (mean is None, not row.complete, mean or 0.0, row.name, row.regime)

    return tuple(sorted(rows, key=key))
