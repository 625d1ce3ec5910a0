"""Plausible records for the tests of the report; every number is an argument or a simple function of the arguments."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmbench.cards import Track
from mmbench.records import (
    BackboneFacts,
    Costs,
    DataFacts,
    Environment,
    Failure,
    PeakMemory,
    PhaseSeconds,
    Score,
    TrainingState,
    TrialFacts,
    TrialRecord,
)
from mmbench.report.aggregate import Board, accuracy_table
from mmbench.report.efficiency import efficiency_tables
from mmbench.report.model import Cell, Row, Table

CASES = ("complete", "noise-to-audio", "noise-to-vision", "noise-to-both")
BUDGET: dict[str, Any] = {
    "epochs": 5.0,
    "samples": None,
    "batch_size": 64,
    "tuning_trials": 3,
    "precision": "fp32",
    "train_head": True,
}
MIB = 2**20


def scores(
    values: Mapping[str, float | None], track: str = "blind", metric: str = "accuracy", salt: str = ""
) -> tuple[Score, ...]:
    return tuple(
        Score(
            case=case,
            track=track,  # type: ignore[arg-type]
            metric=metric,
            value=value,
            n=300,
            reason=None if value is not None else "no positive sample",
            digest=hashlib.sha256(f"{case}{salt}".encode()).hexdigest(),
        )
        for case, value in values.items()
    )


def costs(trainable: int = 1_000_000, state_mib: int = 100, peak_mib: int = 500, epoch: float | None = 2.0) -> Costs:
    memory = PeakMemory(allocated_bytes=peak_mib * MIB, reserved_bytes=2 * peak_mib * MIB, rss_bytes=peak_mib * MIB)
    state = TrainingState(
        parameters_bytes=state_mib * MIB // 2,
        gradients_bytes=0,
        optimizer_bytes=0,
        activations_bytes=state_mib * MIB // 2,
        batch=64,
    )
    return Costs(
        trainable_parameters=trainable,
        head_parameters=10_000,
        total_parameters=10_000_000,
        stored_bytes=4 * trainable,
        seconds=PhaseSeconds(setup=1, data=1, train=10, tune=5, evaluate=3, log=0.1, wall=20.2),
        epoch_seconds=epoch,
        step_seconds_median=0.1,
        step_seconds_std=0.01,
        steps=55,
        samples_seen=3500,
        micro_batch=64,
        train_memory=memory,
        eval_memory=memory,
        training_state=state,
        train_flops_per_sample=3e9,
        eval_flops_per_sample=1e9,
        eval_seconds_per_sample=0.001,
        energy_joules=None,
    )


def environment(**changes: Any) -> Environment:
    facts: dict[str, Any] = {
        "date": "2026-03-01T10:00:00+00:00",
        "python": "3.12.1",
        "platform": "Linux",
        "device": "Example CPU",
        "device_kind": "cpu",
        "threads": 2,
        "packages": {"torch": "2.11.0"},
        "commit": "0123456789abcdef",
        "dirty": False,
    }
    return Environment(**{**facts, **changes})


def trial(title: str, seed: int = 0, **changes: Any) -> TrialFacts:
    facts: dict[str, Any] = {
        "suite": "quickstart",
        "method": title,
        "title": title,
        "family": "peft",
        "regime": "clean",
        "dataset": "synthetic-av",
        "backbone": "cavmae-tiny",
        "seed": seed,
        "options": {},
        "budget": BUDGET,
        "cases": CASES,
        "train_cases": CASES,
        **changes,
    }
    key = json.dumps({**facts, "cases": list(facts["cases"])}, sort_keys=True, default=str)
    return TrialFacts(**{"id": hashlib.sha256(key.encode()).hexdigest()[:16], **facts})


def data(**changes: Any) -> DataFacts:
    facts: dict[str, Any] = {
        "name": "synthetic-av",
        "digest": "d" * 64,
        "classes": tuple(f"class {i}" for i in range(10)),
        "multi_label": False,
        "train": 700,
        "val": 100,
        "test": 300,
        "split": "grouped",
        "leaks": False,
    }
    return DataFacts(**{**facts, **changes})


BACKBONE = BackboneFacts(name="cavmae-tiny", digest="b" * 64, parameters=1_200_000, fusion="gated")


def record(title: str, seed: int = 0, values: Mapping[str, float | None] | None = None, **changes: Any) -> TrialRecord:
    """A finished trial; `trial_*` keywords change its facts, others replace parts of the record."""
    facts = {key.removeprefix("trial_"): changes.pop(key) for key in list(changes) if key.startswith("trial_")}
    parts: dict[str, Any] = {
        "status": "ok",
        "trial": trial(title, seed, **facts),
        "environment": environment(),
        "data": data(),
        "backbone": BACKBONE,
        "lr": 1e-3,
        "scores": scores(values or dict.fromkeys(CASES, 0.5)),
        "costs": costs(),
        **changes,
    }
    return TrialRecord(**parts)


def failed(title: str, status: str, message: str, seed: int = 0, **changes: Any) -> TrialRecord:
    failure = Failure(kind="Error", message=message, traceback="Traceback ...")
    return record(
        title, seed, status=status, failure=failure, scores=(), costs=None, data=None, backbone=None, **changes
    )


def save(folder: Path, records: Iterable[TrialRecord]) -> Path:
    """Write records the way a published board holds them."""
    (folder / "records").mkdir(parents=True, exist_ok=True)
    for entry in records:
        (folder / "records" / f"{entry.trial.id}.json").write_text(entry.model_dump_json(indent=1), encoding="utf-8")
    return folder


# (title, regime, mean of the four cases in percent, trainable parameters, training state MiB, epoch seconds)
_FIELD = (
    ("source", "none", (97, 61, 66, 42), 0, 0, None),
    ("full-finetune", "clean", (98, 64, 70, 45), 1_210_000, 410, 9.1),
    ("full-finetune", "mixed", (96, 82, 85, 70), 1_210_000, 410, 9.3),
    ("lora-qv", "mixed", (96, 79, 82, 64), 49_000, 260, 7.2),
    ("lora-qv", "casewise", (97, 83, 84, 69), 196_000, 260, 7.0),
    ("adapter-houlsby", "mixed", (96, 80, 83, 66), 105_000, 300, 7.9),
    ("adapter-pfeiffer", "mixed", (96, 79, 83, 65), 54_000, 285, 7.5),
    ("prompt-the-missing", "casewise", (97, 78, 81, 63), 13_000, 41, 1.9),
    ("prompt-zero", "casewise", (97, 70, 74, 52), 13_000, 40, 1.9),
    ("linear-probe", "mixed", (96, 72, 75, 55), 2_600, 4, 0.6),
)


def field(seeds: int = 3) -> list[TrialRecord]:
    """A full board: ten rows, three seeds, two tracks for the rows that can use the case."""
    made = []
    for title, regime, percent, trainable, state, epoch in _FIELD:
        for seed in range(seeds):
            values = {case: (p + (seed - 1) * 0.7) / 100 for case, p in zip(CASES, percent, strict=True)}
            found = scores(values)
            if regime == "casewise":
                found += scores({case: value - 0.05 for case, value in values.items()}, "blind")
                found = scores(values, "informed") + found[len(CASES) :]
            spent = costs(trainable, state, 700 + state, epoch) if regime != "none" else costs(0, 1, 650, None)
            if regime == "none":
                spent = spent.model_copy(
                    update={"training_state": None, "train_memory": PeakMemory(), "train_flops_per_sample": None}
                )
            made.append(record(title, seed, trial_regime=regime, scores=found, costs=spent))
    made += [
        failed("adam-everything", "does-not-fit", "one sample needs 9.1 GiB, the cap is 8 GiB", seed)
        for seed in range(seeds)
    ]
    return made


def board(records: Iterable[TrialRecord]) -> Board:
    return Board(Path("board"), "quickstart", tuple(records), ())


def accuracy(records: Iterable[TrialRecord], track: Track = "blind") -> Table:
    return accuracy_table(board(records), "synthetic-av", "cavmae-tiny", track)


def efficiency(records: Iterable[TrialRecord]) -> tuple[Table, ...]:
    return efficiency_tables(board(records), "synthetic-av", "cavmae-tiny")


def row(table: Table, name: str, regime: str = "clean") -> Row:
    return next(r for r in table.rows if (r.name, r.regime) == (name, regime))


def cell(table: Table, name: str, key: str, regime: str = "clean") -> Cell:
    return row(table, name, regime).cells[[c.key for c in table.columns].index(key)]


def of(*percent: float) -> dict[str, float | None]:
    return {case: value / 100 for case, value in zip(CASES, percent, strict=True)}
