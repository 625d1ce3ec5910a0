"""What every table says below itself: suite, budget, data, machine, code, dates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmbench.records import TrialFacts, TrialRecord
from mmbench.report.model import Facts, Provenance, plain

SPREAD = (
    "± is the standard deviation (n - 1) over seeds: what training and the draws of each seed change, not the choice "
    "of the test samples."
)


def how_made(records: Sequence[TrialRecord]) -> tuple[str, ...]:
    """One sentence a fact; nothing that a record does not hold."""
    made = provenance_of(records)
    if made is None:
        return ()
    days = made.first_day if made.first_day == made.last_day else f"{made.first_day} to {made.last_day}"
    facts = [
        f"Suite {', '.join(made.suites)}; seeds {', '.join(map(str, made.seeds))}; mean ± standard deviation.",
        SPREAD if len(made.seeds) > 1 else "One seed: no spread can be told.",
        f"Budget of every method: {made.budget}.",
        _data_words(records),
        _backbone_words(records),
        f"Measured {days} on {', '.join(made.devices)} with {', '.join(made.versions)}; {_commit_words(made.commits)}.",
    ]
    return tuple(note for note in (*facts, *_warnings(records)) if note)


def how_each_made(places: Mapping[str, Sequence[TrialRecord]]) -> tuple[str, ...]:
    """`how_made` of the records of several places: once what holds for all, the rest with its place before it."""
    made = {place: how_made(records) for place, records in places.items()}
    shared = set.intersection(*map(set, made.values()))
    return tuple(
        dict.fromkeys(
            note if note in shared else f"{plain(place)}: {note}" for place, notes in made.items() for note in notes
        )
    )


def provenance_of(records: Sequence[TrialRecord]) -> Provenance | None:
    """Suite, seeds, budget, machine, code and days of these records; None without one."""
    if not records:
        return None
    days = sorted(plain(record.environment.date[:10]) for record in records)
    trained = [record for record in records if record.trial.regime != "none"] or records
    return Provenance(
        suites=_each(r.trial.suite for r in records),
        seeds=tuple(sorted({r.trial.seed for r in records})),
        budget="; ".join(_each(budget_words(r.trial.budget) for r in trained)),
        dataset=", ".join(_each(r.trial.dataset for r in records)),
        backbone=", ".join(_each(r.trial.backbone for r in records)),
        devices=_each(device_words(r) for r in records),
        first_day=days[0],
        last_day=days[-1],
        commits=_each(_commit(r) for r in records),
        versions=_each(words for r in records for words in _versions(r)),
    )


def facts_of(trial: TrialFacts) -> Facts:
    """What the row of a trial is."""
    return Facts(trial.method, trial.family, trial.strategies, trial.online or "")


def budget_words(budget: Mapping[str, Any]) -> str:
    """The budget as a reader says it; a key the record lacks is left out."""
    amount = f"{budget['samples']} samples" if budget.get("samples") else _number(budget, "epochs", "epochs")
    parts = [
        amount,
        _number(budget, "batch_size", "batch", before=True),
        _number(budget, "tuning_trials", "tuning trial" + ("s" if budget.get("tuning_trials") != 1 else "")),
        _number(budget, "memory_cap_gib", "GiB memory cap"),
        _number(budget, "wall_clock_minutes", "minutes wall clock"),
        _number(budget, "devices", "devices a trial"),
        str(budget.get("precision") or ""),
        "activation checkpointing" if budget.get("checkpointing") else "",
        "blocks compiled" if budget.get("compile") else "",
        {True: "head trained", False: "head frozen"}.get(budget.get("train_head"), ""),  # type: ignore[arg-type]
    ]
    return ", ".join(part for part in parts if part) or "not recorded"


def _number(budget: Mapping[str, Any], key: str, unit: str, before: bool = False) -> str:
    value = budget.get(key)
    if value is None:
        return ""
    return f"{unit} {value:g}" if before else f"{value:g} {unit}"


def _each(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(plain(text) for text in texts))


def device_words(record: TrialRecord) -> str:
    """Device, threads and company: the only place within which costs compare."""
    environment = record.environment
    threads = f"{environment.threads} thread{'s' if environment.threads != 1 else ''}"
    several = f"{environment.devices} devices a trial, each " if environment.devices > 1 else ""
    beside = f", {environment.workers} trials at a time" if (environment.workers or 1) > 1 else ""
    return f"{plain(environment.device)} ({environment.device_kind}, {several}{threads}{beside})"


def _commit(record: TrialRecord) -> str:
    environment = record.environment
    return (environment.commit or "unknown")[:12] + ("+" if environment.dirty else "")


def _commit_words(commits: Sequence[str]) -> str:
    known = [commit for commit in commits if not commit.startswith("unknown")]
    words = f"commit{'s' if len(known) > 1 else ''} {', '.join(known)}" if known else ""
    changed = " (+: with uncommitted changes)" if any(commit.endswith("+") for commit in known) else ""
    lost = "an unknown commit" if len(known) < len(commits) else ""
    return "code at " + " and ".join(part for part in (words + changed, lost) if part)


def _versions(record: TrialRecord) -> tuple[str, ...]:
    packages = record.environment.packages
    return (
        *(f"{name} {packages[name]}" for name in ("mmbench", "torch") if name in packages),
        f"Python {record.environment.python}",
    )


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
    if _several_sets(records):
        warnings.append("Each seed draws its own corrupted evaluation set, the same for every method.")
    if not all(record.environment.deterministic for record in records):
        warnings.append("Some trials ran without deterministic kernels.")
    return warnings


def _several_sets(records: Sequence[TrialRecord]) -> bool:
    """Whether a case was evaluated on more than one set."""
    first: dict[tuple[str, int], str] = {}
    return any(
        first.setdefault((score.case, score.severity), score.digest) != score.digest
        for record in records
        for score in record.scores
        if score.digest is not None
    )
