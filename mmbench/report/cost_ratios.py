"""What one row costs as a multiple of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from mmbench.records import Costs, TrialRecord
from mmbench.report.notes import device_words

EVALUATION = "evaluation seconds per sample"
# Label, whether it is a time, and the cost in a record; None where it was not measured.
_COSTS: tuple[tuple[str, bool, Callable[[Costs], float | None]], ...] = (
    ("trainable parameters", False, lambda c: c.trainable_parameters),
    ("stored bytes", False, lambda c: c.stored_bytes),
    ("training state bytes", False, lambda c: None if c.training_state is None else c.training_state.total_bytes),
    ("epoch seconds", True, lambda c: c.epoch_seconds),
    (EVALUATION, True, lambda c: c.eval_seconds_per_sample),
)


@dataclass(frozen=True)
class CostRatio:
    """What the first row costs as a multiple of the second."""

    what: str
    first: float
    second: float
    ratio: float | None


def cost_ratios(first: Sequence[TrialRecord], second: Sequence[TrialRecord]) -> tuple[CostRatio, ...]:
    """Of what both measured; times only where all trials ran on one machine with one number of threads.

    Evaluations compare only if all of them, or none, read frozen test sets: corrupting takes most of the others' time.
    """
    same = len({device_words(record) for record in (*first, *second)}) == 1
    frozen = {record.data.frozen for record in (*first, *second) if record.data is not None}
    found = []
    for what, timed, read in _COSTS:
        means = [[v for r in g if r.costs is not None and (v := read(r.costs)) is not None] for g in (first, second)]
        if what == EVALUATION and len(frozen) > 1:
            continue
        if all(means) and (same or not timed):
            a, b = fmean(means[0]), fmean(means[1])
            found.append(CostRatio(what, a, b, a / b if b else None))
    return tuple(found)
