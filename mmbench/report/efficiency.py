"""Records to tables of cost; one table a device and thread count, since costs compare only within one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from mmbench.records import Costs, TrialRecord
from mmbench.report.aggregate import METRIC_LABELS, Board, failed_row, row_of, slug, sort_rows
from mmbench.report.case_scores import mean_score
from mmbench.report.comparable import Selection, select
from mmbench.report.model import Cell, Column, Row, Table, cell_of, mark_best
from mmbench.report.notes import device_words, how_made, provenance_of
from mmbench.report.published import EPOCH_CAVEAT, OTHER_PROTOCOL, reported_efficiency

REFERENCE = "full-finetune"
"""The method whose memory and epoch time the ratios divide by, as in the paper's claims."""
FROZEN = (
    "test sets read from frozen ones: its evaluation seconds hold no corrupting and do not compare with other rows'"
)
MIB = 2.0**20


@dataclass(frozen=True)
class Measure:
    """A column and how a finished trial fills it; None where it was not measured."""

    column: Column
    value: Callable[[TrialRecord, Costs], float | None]
    spread: bool = True
    ratio: bool = False
    """Divide by the reference row's mean of the same measure."""


def peak_memory_bytes(record: TrialRecord) -> int | None:
    """Peak of training: allocated on CUDA, resident size of the process on a CPU."""
    if record.costs is None:
        return None
    memory = record.costs.train_memory
    return memory.allocated_bytes if record.environment.device_kind == "cuda" else memory.rss_bytes


def state_bytes(record: TrialRecord) -> int | None:
    """Parameters, gradients, optimiser state and saved activations of one step."""
    if record.costs is None or record.costs.training_state is None:
        return None
    return record.costs.training_state.total_bytes


def samples_per_second(record: TrialRecord) -> float | None:
    """Training samples over training-step seconds of one epoch."""
    if record.costs is None or not record.costs.epoch_seconds or record.data is None:
        return None
    return record.data.train / record.costs.epoch_seconds


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def measures(device_kind: str) -> tuple[Measure, ...]:
    """The cost columns in order; the label of peak memory says which peak it is."""
    peak = "peak allocated" if device_kind == "cuda" else "peak RSS"
    return (
        Measure(
            Column("trainable_parameters", "trainable", "M", better="lower"),
            lambda r, c: c.trainable_parameters / 1e6,
            False,
        ),
        Measure(
            Column("trainable_share", "share of total", "%", better="lower"),
            lambda r, c: 100 * c.trainable_parameters / c.total_parameters if c.total_parameters else None,
            False,
        ),
        Measure(Column("head_parameters", "head part", "M"), lambda r, c: c.head_parameters / 1e6, False),
        Measure(Column("stored", "stored", "MiB", better="lower"), lambda r, c: c.stored_bytes / MIB, False),
        Measure(
            Column("training_state", "training state", "MiB", better="lower"),
            lambda r, c: _scaled(state_bytes(r), MIB),
            False,
        ),
        Measure(Column("state_ratio", "state vs full", "x", 2, "lower"), lambda r, c: state_bytes(r), ratio=True),
        Measure(Column("peak_memory", peak, "MiB", better="lower"), lambda r, c: _scaled(peak_memory_bytes(r), MIB)),
        Measure(Column("peak_ratio", "peak vs full", "x", 2, "lower"), lambda r, c: peak_memory_bytes(r), ratio=True),
        Measure(Column("epoch_seconds", "epoch", "s", better="lower"), lambda r, c: c.epoch_seconds),
        Measure(Column("epoch_ratio", "epoch vs full", "x", 2, "lower"), lambda r, c: c.epoch_seconds, ratio=True),
        Measure(
            Column("samples_per_second", "speed", "samples/s", better="higher"), lambda r, c: samples_per_second(r)
        ),
        Measure(
            Column("train_gflop", "training", "GFLOP/sample", better="lower"),
            lambda r, c: _scaled(c.train_flops_per_sample, 1e9),
            False,
        ),
    )


def efficiency_tables(board: Board, dataset: str, backbone: str) -> tuple[Table, ...]:
    """Costs by kind and number of devices, threads and trials at a time, most trials first; usually one table."""
    selection = select(board.records, dataset, backbone)
    devices: dict[str, list[TrialRecord]] = {}
    for record in selection.records:
        devices.setdefault(device_words(record), []).append(record)
    parts = sorted(devices.values(), key=lambda records: (-len(records), device_words(records[0])))
    return tuple(_device_table(selection, replace(selection, records=tuple(part)), len(parts) > 1) for part in parts)


def _device_table(whole: Selection, part: Selection, several: bool) -> Table:
    device = part.records[0].environment
    ms = measures(device.device_kind)
    track = whole.tracks[0]
    label = f"mean {'mAP' if whole.metric == 'map' else METRIC_LABELS[whole.metric].lower()}, {track}"
    columns = (*(m.column for m in ms), Column("mean", label, "%", 1, "higher", headline=True))
    references = _References(part)
    rows = tuple(_row(group, references, whole, ms) for group in part.rows())
    names = {whole.dataset, *(r.data.name for r in part.records if r.data is not None)}
    reported = reported_efficiency(names, columns)
    quoted = (OTHER_PROTOCOL, EPOCH_CAVEAT) if reported else ()
    many = (f"{device.devices}d",) if device.devices > 1 else ()
    place = (device.device, *many, f"{device.threads}t", f"{device.workers or 1}w") if several else ()
    return Table(
        title=f"Cost on {whole.dataset}, {whole.backbone}: {device_words(part.records[0])}",
        slug=slug(whole.dataset, whole.backbone, "efficiency", *place),
        columns=columns,
        rows=mark_best(sort_rows(rows, len(ms)) + reported, columns),
        notes=(*_reading(part, track), *how_made(part.records), *quoted, *whole.problems),
        provenance=provenance_of(part.records),
    )


def _reading(part: Selection, track: str) -> tuple[str, ...]:
    """How to read the columns."""
    has_reference = any(r.trial.method == REFERENCE and r.status == "ok" for r in part.records)
    ratio = (
        f"Ratios are to {REFERENCE} of the same regime, or of the clean regime where there is none."
        if has_reference
        else f"No ratios: {REFERENCE} has no finished trial on this device."
    )
    return (
        "Trainable counts elements that received a gradient, head included; a dash means not measured.",
        "Training state counts parameters, gradients, optimiser state and saved activations of one step, "
        "whatever the device.",
        "Epoch is training-step time alone; evaluation, tuning and set-up are not in it.",
        f"Mean score is on the {track} track; methods that use no case bring their blind scores.",
        ratio,
    )


class _References:
    """What the rows of one device are compared with, looked up once for all of them."""

    def __init__(self, part: Selection) -> None:
        regimes = {record.trial.regime for record in part.records}
        self.trials = {regime: _reference(part, regime) for regime in regimes}
        self.all_frozen = all(_reads_frozen(record) for record in part.records if record.status == "ok")
        self.most_at_once = max(map(_at_once, part.records), default=0)


def _row(group: tuple[TrialRecord, ...], references: _References, whole: Selection, ms: tuple[Measure, ...]) -> Row:
    finished = [record for record in group if record.status == "ok"]
    if not finished:
        return failed_row(group, len(ms) + 1)
    cells = tuple(_cell(m, finished, references.trials[group[0].trial.regime]) for m in ms)
    accuracy = cell_of((mean_score(record, whole.tracks[0], whole.metric) for record in finished), 100)
    row = row_of(group, (*cells, accuracy), whole.seeds, (accuracy,), " on this device")
    return replace(row, notes=(*_not_comparable(finished, references), *row.notes))


def _not_comparable(finished: list[TrialRecord], references: _References) -> tuple[str, ...]:
    """What keeps a row's costs from being set beside those of the others."""
    notes = (FROZEN,) if any(map(_reads_frozen, finished)) and not references.all_frozen else ()
    fewest = min(filter(None, map(_at_once, finished)), default=references.most_at_once)
    if fewest == references.most_at_once:
        return notes
    rest = "its training state and peak memory are those of a smaller step"
    return (*notes, f"{fewest} samples at once where others take {references.most_at_once}: {rest}")


def _at_once(record: TrialRecord) -> int:
    """Samples in memory at once; 0 where nothing trained."""
    return (record.costs.micro_batch or 0) if record.costs is not None else 0


def _reads_frozen(record: TrialRecord) -> bool:
    return record.data is not None and record.data.frozen


def _cell(measure: Measure, finished: list[TrialRecord], reference: list[TrialRecord]) -> Cell:
    cell = cell_of((measure.value(r, r.costs) for r in finished if r.costs is not None), spread=measure.spread)
    if not measure.ratio:
        return cell
    base = cell_of(measure.value(r, r.costs) for r in reference if r.costs is not None)
    if cell.mean is None or not base.mean:
        return Cell()
    return Cell(cell.mean / base.mean, None, cell.n)


def _reference(part: Selection, regime: str) -> list[TrialRecord]:
    """Finished trials of full fine-tuning under this regime, or under the clean one."""
    full = [r for r in part.records if r.trial.method == REFERENCE and r.status == "ok"]
    same = [r for r in full if r.trial.regime == regime] or [r for r in full if r.trial.regime == "clean"]
    # A labelled variant of full fine-tuning must not blur the reference.
    titles = sorted({r.trial.title for r in same}, key=lambda title: (title != REFERENCE, title))
    return [r for r in same if titles and r.trial.title == titles[0]]
