"""What every table says below itself: suite, budget, data, machine, code, dates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmbench.records import TrialRecord
from mmbench.report.model import plain


def how_made(records: Sequence[TrialRecord]) -> tuple[str, ...]:
    """One sentence a fact; nothing that a record does not hold."""
    if not records:
        return ()
    suites = _listed(r.trial.suite for r in records)
    seeds = _listed(str(seed) for seed in sorted({r.trial.seed for r in records}))
    made = [
        f"Suite {suites}; seeds {seeds}; mean ± standard deviation over seeds.",
        f"Budget of every method: {budget_words(records[0].trial.budget)}.",
        _data_words(records),
        _backbone_words(records),
        f"Measured {_dates(records)} on {_devices(records)}{_torch(records)}; code at {_commits(records)}.",
    ]
    return tuple(note for note in (*made, *_warnings(records)) if note)


def budget_words(budget: Mapping[str, Any]) -> str:
    """The budget as a reader says it; a key the record lacks is left out."""
    amount = f"{budget['samples']} samples" if budget.get("samples") else _number(budget, "epochs", "epochs")
    parts = [
        amount,
        _number(budget, "batch_size", "batch", before=True),
        _number(budget, "tuning_trials", "tuning trial" + ("s" if budget.get("tuning_trials") != 1 else "")),
        _number(budget, "memory_cap_gib", "GiB memory cap"),
        _number(budget, "wall_clock_minutes", "minutes wall clock"),
        str(budget.get("precision") or ""),
        "activation checkpointing" if budget.get("checkpointing") else "",
        {True: "head trained", False: "head frozen"}.get(budget.get("train_head"), ""),  # type: ignore[arg-type]
    ]
    return ", ".join(part for part in parts if part) or "not recorded"


def _number(budget: Mapping[str, Any], key: str, unit: str, before: bool = False) -> str:
    value = budget.get(key)
    if value is None:
        return ""
    return f"{unit} {value:g}" if before else f"{value:g} {unit}"


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(plain(text) for text in texts))


def device_words(record: TrialRecord) -> str:
    """Device, threads and company: the only place within which costs compare."""
    environment = record.environment
    threads = f"{environment.threads} thread{'s' if environment.threads != 1 else ''}"
    beside = f", {environment.workers} trials at a time" if (environment.workers or 1) > 1 else ""
    return f"{plain(environment.device)} ({environment.device_kind}, {threads}{beside})"


def _devices(records: Sequence[TrialRecord]) -> str:
    return _listed(device_words(record) for record in records)


def _dates(records: Sequence[TrialRecord]) -> str:
    days = sorted({record.environment.date[:10] for record in records})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _commits(records: Sequence[TrialRecord]) -> str:
    def words(record: TrialRecord) -> str:
        environment = record.environment
        commit = f"commit {environment.commit[:12]}" if environment.commit else "an unknown commit"
        return commit + (" with uncommitted changes" if environment.dirty else "")

    return _listed(words(record) for record in records)


def _torch(records: Sequence[TrialRecord]) -> str:
    versions = _listed(r.environment.packages["torch"] for r in records if "torch" in r.environment.packages)
    return f", torch {versions}" if versions else ""


def _data_words(records: Sequence[TrialRecord]) -> str:
    data = next((record.data for record in records if record.data is not None), None)
    if data is None:
        return ""
    kind = "multi-label, mean average precision" if data.multi_label else f"{len(data.classes)} classes"
    sizes = f"{data.train}/{data.val}/{data.test} train/val/test"
    return f"Data: {plain(data.name)}, {kind}, {sizes}, split {plain(data.split)}."


def _backbone_words(records: Sequence[TrialRecord]) -> str:
    facts = next((record.backbone for record in records if record.backbone is not None), None)
    if facts is None:
        return ""
    size = f"{facts.parameters / 1e6:.3g} M parameters"
    return f"Backbone: {plain(facts.name)}, {size}, fusion {plain(facts.fusion)}, frozen."


def _warnings(records: Sequence[TrialRecord]) -> list[str]:
    """What a reader must know before trusting a number."""
    warnings: list[str] = []
    data = next((record.data for record in records if record.data is not None), None)
    if data is not None and data.leaks:
        reason = f": {plain(data.note)}" if data.note else ""
        warnings.append(f"Warning: this split leaks between training and test{reason}; accuracies are too high.")
    elif data is not None and data.note:
        warnings.append(f"On the data: {plain(data.note)}")
    if data is not None and data.skipped:
        shown = "; ".join(plain(text) for text in data.skipped[:3])
        more = f" and {len(data.skipped) - 3} more" if len(data.skipped) > 3 else ""
        warnings.append(f"Files left out as unreadable: {len(data.skipped)} ({shown}{more}).")
    digests: dict[tuple[str, int], set[str]] = {}
    for record in records:
        for score in record.scores:
            if score.digest is not None:
                digests.setdefault((score.case, score.severity), set()).add(score.digest)
    if any(len(found) > 1 for found in digests.values()):
        warnings.append("Each seed draws its own corrupted evaluation set, the same for every method.")
    if not all(record.environment.deterministic for record in records):
        warnings.append("Some trials ran without deterministic kernels.")
    return warnings
