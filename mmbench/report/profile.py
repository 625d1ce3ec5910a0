"""Rows of a profile as a table: the terminal, Markdown, and a CSV file with one line a row."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmbench.files import make_folder, write_atomic
from mmbench.profile_rows import Counts, Measured, ProfileRow
from mmbench.report.model import STATUS_WORDS, Cell, Column, Row, Table, mark_best
from mmbench.report.text import as_markdown

MIB, GIGA, TERA = 2.0**20, 1e9, 1e12
Value = Callable[[ProfileRow], float | None]


@dataclass(frozen=True)
class Measure:
    """A column and how a row fills it; None where it was not measured."""

    column: Column
    value: Value
    spread: Value | None = None
    always: bool = True
    """False: the column is left out where no row has a value other than zero."""


def _counted(column: Column, value: Callable[[Counts], float | None], always: bool = True) -> Measure:
    return Measure(column, lambda row: None if row.counts is None else value(row.counts), None, always)


def _measured(
    column: Column, value: Callable[[Measured], float | None], spread: Callable[[Measured], float | None] | None = None
) -> Measure:
    told = None if spread is None else lambda row: None if row.measured is None else spread(row.measured)
    return Measure(column, lambda row: None if row.measured is None else value(row.measured), told, False)


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _peak(row: ProfileRow, phase: str) -> float | None:
    if row.measured is None:
        return None
    memory = getattr(row.measured, phase)
    return _scaled(memory.allocated_bytes if row.device == "cuda" else memory.rss_bytes, MIB)


def _peaks(kind: str, phase: str, what: str) -> Measure:
    return Measure(Column(phase, f"{what}: {kind}", "MiB", 1, "lower"), lambda row: _peak(row, phase), None, False)


def measures(rows: Sequence[ProfileRow]) -> tuple[Measure, ...]:
    """The columns that these rows fill, in order."""
    kind = "peak allocated" if any(row.device == "cuda" for row in rows) else "peak RSS"
    found = (*_count_measures(), *_device_measures(kind))
    return tuple(measure for measure in found if measure.always or any(measure.value(row) for row in rows))


def _count_measures() -> tuple[Measure, ...]:
    return (
        _counted(Column("trainable", "trainable", "M", 3, "lower"), lambda c: c.trainable_parameters / 1e6),
        _counted(Column("hidden", "hidden", "values", 0), lambda c: c.hidden_parameters, always=False),
        _counted(Column("stored", "stored", "MiB", 2, "lower"), lambda c: c.stored_bytes / MIB),
        _counted(Column("weights", "weights", "MiB", 1), lambda c: c.state.parameters_bytes / MIB),
        _counted(Column("gradients", "gradients", "MiB", 1, "lower"), lambda c: c.state.gradients_bytes / MIB),
        _counted(Column("optimiser", "optimiser", "MiB", 1, "lower"), lambda c: c.state.optimizer_bytes / MIB),
        _counted(
            Column("activations", "saved for backward", "MiB", 1, "lower"), lambda c: c.state.activations_bytes / MIB
        ),
        _counted(Column("state", "training state", "MiB", 1, "lower"), lambda c: c.state.total_bytes / MIB),
        _counted(Column("kept", "kept per step", "MiB", 3), lambda c: c.kept_bytes_per_step / MIB, always=False),
        _counted(Column("waits", "waits per step", "", 0), lambda c: c.waits_per_step, always=False),
        _counted(
            Column("train_flop", "training", "GFLOP/sample", better="lower"), lambda c: c.train_flops_per_sample / GIGA
        ),
        _counted(
            Column("eval_flop", "predict", "GFLOP/sample", better="lower"),
            lambda c: c.eval_flops_per_sample / GIGA,
        ),
        _counted(
            Column("largest_counted", "largest batch, counted", "", 0, "higher"), lambda c: c.largest_batch, False
        ),
    )


def _device_measures(kind: str) -> tuple[Measure, ...]:
    return (
        _measured(Column("largest", "largest batch, run", "", 0, "higher"), lambda m: m.largest_batch),
        _peaks(kind, "train_memory", "training"),
        _peaks(kind, "eval_memory", "predict"),
        _peaks(kind, "single_memory", "batch 1"),
        _measured(
            Column("step", "step", "ms", 1, "lower"),
            lambda m: m.step_seconds_median * 1e3,
            lambda m: _scaled(m.step_seconds_std, 1e-3),
        ),
        _measured(Column("epoch", "epoch", "s", 1, "lower"), lambda m: m.epoch_seconds),
        _measured(Column("rate", "training", "samples/s", 1, "higher"), lambda m: m.samples_per_second),
        _measured(Column("share", "of matmul rate", "%", 1, "higher"), lambda m: 100 * m.achieved_share),
        _measured(Column("energy", "energy", "J/step", better="lower"), lambda m: m.energy_joules_per_step),
        _measured(
            Column("latency", "latency, batch 1", "ms", 1, "lower"),
            lambda m: m.single_seconds_median * 1e3,
            lambda m: _scaled(m.single_seconds_std, 1e-3),
        ),
    )


def profile_table(rows: Sequence[ProfileRow]) -> Table:
    """One line a row; a row that failed says how, and why below the table."""
    used = measures(rows)
    columns = tuple(measure.column for measure in used)
    return Table(
        title=f"Profile: {rows[0].environment.device}",
        slug="profile",
        columns=columns,
        rows=mark_best(tuple(_row(row, used) for row in rows), columns),
        notes=_notes(rows),
        setting="setting",
    )


def _row(row: ProfileRow, used: Sequence[Measure]) -> Row:
    if row.failure is not None:
        word = STATUS_WORDS.get(row.status, row.status)
        cells = (Cell(word=word), *(Cell() for _ in used[1:]))
        return Row(row.setting.method, row.setting.words, cells, (row.failure.message,), complete=False)
    return Row(row.setting.method, row.setting.words, tuple(_cell(row, measure) for measure in used))


def _cell(row: ProfileRow, measure: Measure) -> Cell:
    value = measure.value(row)
    if value is None:
        return Cell()
    return Cell(value, None if measure.spread is None else measure.spread(row), 1)


def _notes(rows: Sequence[ProfileRow]) -> tuple[str, ...]:
    """What the figures are, in the order of the columns."""
    notes = [
        "Training state: bytes of one step with the whole batch at once, counted from the passes: weights "
        "(the frozen backbone's included), gradients, optimiser, and activations, which are what autograd saves for "
        "backward.",
    ]
    if any(row.counts is not None and row.counts.hidden_parameters for row in rows):
        notes.append("Hidden: values that train though the method does not tell of them.")
    if any(row.counts is not None and row.counts.kept_bytes_per_step for row in rows):
        notes.append("Kept per step: memory that a step leaves behind and no later one frees.")
    if any(row.counts is not None and row.counts.waits_per_step for row in rows):
        notes.append("Waits: times a step stops until the device has computed a value.")
    caps = {row.memory_cap_gib for row in rows} - {None}
    notes += [f"Largest batch: samples at once within {cap:g} GiB." for cap in sorted(cap for cap in caps if cap)]
    measured = [row.measured for row in rows if row.measured is not None]
    if not measured:
        return (*notes, "Nothing was run: seconds, peaks and energy are not measured.")
    samples = measured[0].epoch_samples
    rates = {(r.setting.precision, r.measured.matmul_flops_per_second) for r in rows if r.measured is not None}
    told = ", ".join(f"{rate / TERA:.3g} TFLOP/s in {precision}" for precision, rate in sorted(rates))
    notes.append(f"Step: median and standard deviation of {measured[0].steps} steps after the warm-up.")
    notes.append(f"Epoch: training steps of {samples:,} samples; reading and corrupting them is left out.")
    notes.append(f"Of matmul rate: FLOP of a step over its seconds, against one large product here: {told}.")
    copies = [m.copy_bytes_per_second for m in measured if m.copy_bytes_per_second is not None]
    notes += [f"A large copy within the memory here reads and writes {copies[0] / GIGA:.3g} GB/s."] if copies else []
    return tuple(notes)


def as_profile_csv(rows: Sequence[ProfileRow]) -> str:
    """One line a row, plain numbers in the column's unit, empty where there is none."""
    used = measures(rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    facts = ("method", "backbone", "batch", "precision", "options", "device", "status", "reason")
    names = [m.column.key + (f" ({m.column.unit})" if m.column.unit else "") for m in used]
    writer.writerow((*facts, *names, "step_std (ms)"))
    for row in rows:
        setting = row.setting
        chosen = {**setting.options, **({"compile": True} if setting.compile else {})}
        options = "; ".join(f"{key}={value}" for key, value in chosen.items())
        values = [_plain(measure.value(row)) for measure in used]
        spread = row.measured.step_seconds_std if row.measured is not None else None
        reason = row.failure.message if row.failure else ""
        where = (setting.method, setting.backbone, setting.batch, setting.precision, options, row.device)
        writer.writerow((*where, row.status, reason, *values, _plain(_scaled(spread, 1e-3))))
    return out.getvalue()


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"


def write_profile(rows: Sequence[ProfileRow], out: Path) -> None:
    """profile.md and profile.csv, and the plots beside them."""
    make_folder(out)
    write_atomic(out / "profile.md", as_markdown(profile_table(rows)).encode())
    write_atomic(out / "profile.csv", as_profile_csv(rows).encode())
