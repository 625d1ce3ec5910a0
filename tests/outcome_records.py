"""Results folders whose records and predictions agree, for tests of what is computed from single samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from report_records import record, scores

from mmbench.records import TrialRecord, save_record

CASES = ("complete", "noise-to-audio")
IDS = tuple(f"clip/{i:03d}" for i in range(40))
LABELS = [i % 10 for i in range(40)]


def predictions(right: Sequence[Sequence[bool]], ids: Sequence[str] = IDS) -> pa.Table:
    """One class a sample, logit 2 for the predicted one and 0 elsewhere; a wrong prediction is the next class."""
    rows: dict[str, list[Any]] = {name: [] for name in ("sample", "case", "severity", "track", "stream", "update")}
    labels, logits = [], []
    for case, answers in zip(CASES, right, strict=True):
        for sample, label, answer in zip(ids, LABELS, answers, strict=True):
            for name, value in zip(rows, (sample, case, 0, "blind", "", "none"), strict=True):
                rows[name].append(value)
            labels.append([label])
            logits.append([2.0 if c == (label if answer else (label + 1) % 10) else 0.0 for c in range(10)])
    columns: dict[str, Any] = {
        name: pa.array(values, pa.string()) for name, values in rows.items() if name != "severity"
    }
    columns["severity"] = pa.array(rows["severity"], pa.int8())
    columns["label"] = pa.array(labels, pa.list_(pa.int32()))
    columns["logits"] = pa.array(logits, pa.list_(pa.float32()))
    return pa.table(columns)


def answers(share: float, seed: int) -> list[list[bool]]:
    rng = np.random.default_rng(seed)
    return [list(rng.random(len(IDS)) < share) for _ in CASES]


def trial_of(title: str, right: Sequence[Sequence[bool]], seed: int = 0, **changes: Any) -> TrialRecord:
    values = {case: float(np.mean(found)) for case, found in zip(CASES, right, strict=True)}
    return record(title, seed, scores=scores(values), trial_cases=CASES, trial_train_cases=CASES, **changes)


def put(folder: Path, entry: TrialRecord, table: pa.Table) -> Path:
    place = folder / "trials" / entry.trial.id
    place.mkdir(parents=True)
    pq.write_table(table, place / "predictions.parquet", compression="zstd")
    save_record(entry, place)
    return place


def results(folder: Path, seeds: int = 3) -> list[TrialRecord]:
    made = []
    for title, share in (("good", 0.95), ("fair", 0.9), ("poor", 0.3)):
        for seed in range(seeds):
            right = answers(share, seed * 10 + len(title) + int(100 * share))
            made.append(trial_of(title, right, seed))
            put(folder, made[-1], predictions(right))
    return made
