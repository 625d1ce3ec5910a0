"""Many finished trials at once, with known truth: for benchmarks, and for checks that need predictions beside records.

As a script: `python tests/many_records.py FOLDER [--rows 1000] [--cases 100] [--seeds 3] [--samples N]`.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from report_records import BUDGET, data, environment, record

from mmbench import metrics
from mmbench.cases import case_data, parse_cases
from mmbench.files import write_atomic
from mmbench.records import Score, TrialRecord, save_record
from mmbench.registry import corruptions

CLASSES = 10
GAP = 3.0
"""How far the logit of the answer lies above the others."""


@dataclass(frozen=True)
class Many:
    """The shape of a results folder: `rows` methods x `seeds` trials, each scored on `cases` cases."""

    rows: int = 1000
    cases: int = 100
    seeds: int = 3
    samples: int = 0
    """Test samples whose predictions are written beside each record; 0 for records alone, the fast way."""
    spread: float = 0.01
    """Standard deviation over seeds of a row's accuracy."""

    def truth(self) -> npt.NDArray[np.float64]:
        """(rows, cases) expected accuracy: rows get better, the cases after the first get harder."""
        best = np.linspace(0.55, 0.9, self.rows)
        loss = np.linspace(0.0, 0.4, self.cases)
        return best[:, None] - loss[None, :]


def case_list(count: int) -> tuple[dict[str, Any], ...]:
    """`complete` and after it registered corruptions at their severities, written out as records hold them.

    Raises ValueError if fewer are registered.
    """
    known = corruptions()
    scaled = [name for name in known.names() if known.card(name).severities == (1, 2, 3, 4, 5)]
    names = ["complete", *(f"{name}@{severity}" for name in scaled for severity in range(1, 6))]
    if count > len(names):
        raise ValueError(f"only {len(names)} cases can be made, not {count}")
    return tuple(case_data(case) for case in parse_cases(names[:count]))


def trials(shape: Many = Many(), seed: int = 0) -> Iterator[tuple[TrialRecord, pa.Table | None]]:
    """Every trial with its predictions, or None where the shape has no samples; the same for the same seed."""
    rng = np.random.default_rng(seed)
    cases = case_list(shape.cases)
    labels = rng.integers(CLASSES, size=max(shape.samples, 1)).astype(np.int32)  # (N,)
    for row, expected in enumerate(shape.truth()):
        for number in range(shape.seeds):
            reached = np.clip(expected + rng.normal(0.0, shape.spread), 0.0, 1.0)  # (K,)
            logits = logits_of(reached, labels, rng) if shape.samples else None
            made = _record(f"method-{row:04d}", number, cases, _scores(cases, number, reached, logits, labels))
            yield made, None if logits is None else table_of(cases, labels, logits)


def write_many(folder: Path, shape: Many = Many(), seed: int = 0) -> Path:
    """Write them as a results folder with predictions, or as a published board where the shape has no samples."""
    (folder / ("trials" if shape.samples else "records")).mkdir(parents=True, exist_ok=True)
    names = []
    for made, table in trials(shape, seed):
        names.append(made.trial.method)
        if table is None:
            path = folder / "records" / f"{made.trial.id}.json"
            path.write_text(made.model_dump_json(indent=1), encoding="utf-8")
            continue
        place = folder / "trials" / made.trial.id
        place.mkdir(exist_ok=True)
        pq.write_table(table, place / "predictions.parquet", compression="zstd")
        save_record(made, place)
    suite = {"name": "many", "methods": [{"name": name} for name in dict.fromkeys(names)], "regimes": ["clean"]}
    suite |= {"seeds": list(range(shape.seeds)), "cases": [*case_list(shape.cases)], "budget": _budget()}
    write_atomic(folder / "suite.yaml", yaml.safe_dump(suite, sort_keys=False).encode())
    return folder


def _budget() -> dict[str, Any]:
    return {key: value for key, value in BUDGET.items() if value is not None}


def _record(title: str, seed: int, cases: tuple[dict[str, Any], ...], scores: tuple[Score, ...]) -> TrialRecord:
    names = tuple(case["name"] for case in cases)
    facts = {"cases": names, "train_cases": names, "contents": {"cases": cases, "tracks": ("blind",)}}
    changes = {f"trial_{key}": value for key, value in facts.items()} | {"trial_suite": "many"}
    return record(title, seed, scores=scores, environment=environment(workers=1), data=data(), **changes)


def _scores(
    cases: tuple[dict[str, Any], ...],
    seed: int,
    reached: npt.NDArray[np.float64],
    logits: npt.NDArray[np.float32] | None,
    labels: npt.NDArray[np.int32],
) -> tuple[Score, ...]:
    found = []
    for place, case in enumerate(cases):
        if logits is None:
            accuracy = float(reached[place])
            values = {"accuracy": accuracy, "nll": 3.0 * (1.0 - accuracy), "ece": 0.1 * (1.0 - accuracy)}
        else:
            values = measured(logits[place], labels)
        digest = hashlib.sha256(f"{case['name']} {seed}".encode()).hexdigest()
        severity = int(case["name"].partition("@")[2] or 0)
        found += [
            Score(case=case["name"], severity=severity, track="blind", metric=m, value=v, n=_n(logits), digest=digest)
            for m, v in values.items()
        ]
    return tuple(found)


def _n(logits: npt.NDArray[np.float32] | None) -> int:
    return 300 if logits is None else logits.shape[1]


def measured(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]) -> dict[str, float]:
    """What a trial records of logits (N, C) and labels (N,)."""
    return {
        "accuracy": metrics.accuracy(logits, labels),
        "nll": metrics.nll(logits, labels),
        "ece": metrics.expected_calibration_error(logits, labels),
    }


def logits_of(
    reached: npt.NDArray[np.float64], labels: npt.NDArray[np.int32], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """(K, N, C): a sample is answered rightly with the probability that its case has."""
    shape = (len(reached), len(labels))
    wrong = (labels + rng.integers(1, CLASSES, size=shape)) % CLASSES  # (K, N)
    answer = np.where(rng.random(shape) < reached[:, None], labels, wrong)
    noise = rng.normal(0.0, 0.3, (*shape, CLASSES)).clip(-1.0, 1.0)
    return cast("npt.NDArray[np.float32]", (noise + GAP * np.eye(CLASSES)[answer]).astype(np.float32))


def table_of(
    cases: tuple[dict[str, Any], ...], labels: npt.NDArray[np.int32], logits: npt.NDArray[np.float32]
) -> pa.Table:
    """The columns that a trial writes, a row per case and sample."""
    names, samples = [case["name"] for case in cases], len(labels)
    rows = len(names) * samples
    each = np.repeat(np.arange(len(names)), samples)
    severities = np.array([int(name.partition("@")[2] or 0) for name in names], np.int8)
    flat = pa.array(logits.reshape(-1), pa.float32())
    return pa.table(
        {
            "sample": pa.array([f"sample-{i:05d}" for i in range(samples)] * len(names), pa.string()),
            "case": pa.array(np.array(names, object)[each], pa.string()),
            "severity": pa.array(severities[each], pa.int8()),
            "track": pa.array(["blind"] * rows, pa.string()),
            "stream": pa.array([""] * rows, pa.string()),
            "update": pa.array(["none"] * rows, pa.string()),
            "label": pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32), np.tile(labels, len(names))),
            "logits": pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * CLASSES, flat),
        }
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    for name in ("rows", "cases", "seeds", "samples"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Many(), name))
    given = parser.parse_args()
    write_many(given.folder, Many(given.rows, given.cases, given.seeds, given.samples))
