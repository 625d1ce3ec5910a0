"""A small results folder that nothing is wrong with: costs and environment of published trials, predictions drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from many_records import logits_of, measured, table_of

from mmbench.config import Suite
from mmbench.files import write_atomic
from mmbench.layout import PREDICTIONS
from mmbench.records import RECORD, Score, TrialRecord, find_records, load_record, save_record
from mmbench.run import facts
from mmbench.suite_file import load_suite
from mmbench.trials import Digests, make_trial, rows

BOARD = Path(__file__).resolve().parents[1] / "leaderboards" / "corruptions-tiny"
CASES = ("complete", "noise-to-audio", "noise-to-vision", "missing-audio")


def small_suite(seeds: tuple[int, ...] = (0, 1)) -> Suite:
    """Two methods of the published suite on one data set and four cases."""
    suite = load_suite(BOARD / "suite.yaml")
    methods = tuple(method for method in suite.methods if method.name in ("source", "lora-qv"))
    changes = {"datasets": suite.datasets[:1], "methods": methods, "cases": CASES, "regimes": ("clean",)}
    return suite.model_copy(update={**changes, "seeds": seeds})


def published() -> dict[tuple[str, int], TrialRecord]:
    """Records of the board on the embedded data, trained on clean samples or not at all, by method and seed."""
    found = [load_record(path) for path in find_records(BOARD)]
    kept = [r for r in found if r.trial.dataset == "synthetic-av" and r.trial.regime in ("clean", "none")]
    return {(record.trial.method, record.trial.seed): record for record in kept}


def write_results(folder: Path, suite: Suite | None = None, places: dict[str, Path] | None = None) -> Path:
    """Every trial of the suite with predictions, as a sweep leaves them."""
    suite = suite or small_suite()
    known = published()
    write_suite(folder, suite)
    for row in rows(suite):
        real = known[row.method.name, row.seed]
        assert real.data is not None and real.backbone is not None
        digests = Digests(real.data.digest, real.backbone.digest)
        trial = make_trial(row, suite, digests, places or {"store": Path(), "backbone": Path()})
        table, scores = _predictions(real, row.seed)
        place = folder / "trials" / trial.id
        place.mkdir(parents=True)
        pq.write_table(table, place / PREDICTIONS, compression="zstd")
        (place / "spec.json").write_text(trial.model_dump_json(indent=1))
        save_record(real.model_copy(update={"trial": facts(trial), "scores": scores}), place)
    return folder


def write_suite(folder: Path, suite: Suite) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = yaml.safe_dump(suite.model_dump(mode="json"), sort_keys=False)
    write_atomic(folder / "suite.yaml", content.encode())


def _predictions(real: TrialRecord, seed: int) -> tuple[pa.Table, tuple[Score, ...]]:
    assert real.data is not None
    labels = np.random.default_rng(7).integers(10, size=real.data.test).astype(np.int32)
    rng = np.random.default_rng((seed, len(real.trial.method)))
    logits = logits_of(np.array([0.9, 0.7, 0.6, 0.5]), labels, rng)  # (K, N, C)
    cases = tuple({"name": name} for name in CASES)
    digests = {score.case: score.digest for score in real.scores}
    scores = [
        Score(case=name, track="blind", metric=metric, value=value, n=len(labels), digest=digests[name])
        for name, each in zip(CASES, logits, strict=True)
        for metric, value in measured(each, labels).items()
    ]
    return table_of(cases, labels, logits), tuple(scores)


def trial_folder(folder: Path, name: str = "lora-qv", seed: int = 0) -> Path:
    (found,) = folder.glob(f"trials/{name}-*-s{seed}-*")
    return found


def edit(place: Path, change: Callable[[TrialRecord], TrialRecord]) -> TrialRecord:
    """Change a record and write its marker anew, as somebody would who knows how folders are made."""
    changed = change(load_record(place / RECORD))
    save_record(changed, place)
    return changed


def edit_predictions(place: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change what lies beside a record."""
    table = change(pq.read_table(place / PREDICTIONS))
    (place / PREDICTIONS).unlink()
    pq.write_table(table, place / PREDICTIONS)
