"""Which records may stand in one table. What disagrees with the majority is left out and named, never mixed in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Generic, TypeVar

from mmbench.cards import NOT_APPLICABLE, Track
from mmbench.records import TrialRecord

T = TypeVar("T")
Key = Callable[[TrialRecord], str | None]

# What a row may be scored on: its own track first, then those that tell a method less.
FALLBACKS: dict[Track, tuple[Track, ...]] = {
    "informed": ("informed", "avail", "blind"),
    "avail": ("avail", "blind"),
    "blind": ("blind",),
}


@dataclass(frozen=True)
class Selection:
    """The records of one data set and backbone that are comparable, and what was left out."""

    dataset: str
    backbone: str
    records: tuple[TrialRecord, ...]
    problems: tuple[str, ...]

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Those of the rows in which something is random; the seed of any other row says nothing."""
        random = [record for record in self.records if not is_fixed(record)]
        return tuple(sorted({record.trial.seed for record in random or self.records}))

    @cached_property
    def cases(self) -> tuple[str, ...]:
        """Cases in the suite's order."""
        return tuple(dict.fromkeys(case for record in self.records for case in record.trial.cases))

    @cached_property
    def idle(self) -> frozenset[str]:
        """Cases that mean nothing on this data, whatever the method: left out of every mean."""
        scores = (score for record in self.records for score in record.scores)
        return frozenset(score.case for score in scores if (score.reason or "").startswith(NOT_APPLICABLE))

    @cached_property
    def metric(self) -> str:
        return "map" if any(r.data is not None and r.data.multi_label for r in self.records) else "accuracy"

    @cached_property
    def tracks(self) -> tuple[Track, ...]:
        """Tracks that some record was scored on, the one that tells most first; blind if nothing was scored."""
        found = {s.track for r in self.records if r.status == "ok" for s in r.scores if s.metric == self.metric}
        return tuple(track for track in FALLBACKS if track in found) or ("blind",)

    def rows(self) -> tuple[tuple[TrialRecord, ...], ...]:
        """Records grouped by (title, regime), each group in order of seed."""
        groups: dict[tuple[str, str], list[TrialRecord]] = {}
        for record in sorted(self.records, key=lambda r: (r.trial.title, r.trial.regime, r.trial.seed)):
            groups.setdefault((record.trial.title, record.trial.regime), []).append(record)
        return tuple(tuple(group) for group in groups.values())


class Same(Generic[T]):
    """A thing told apart by which one it is, not by what it holds: a key of caches for what is dear to compare."""

    def __init__(self, thing: T) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.thing is self.thing

    def __hash__(self) -> int:
        return id(self.thing)


def select(records: Sequence[TrialRecord], dataset: str, backbone: str, online: bool = False) -> Selection:
    """The largest comparable set of one data set and backbone, of trials with an online adapter or without one."""
    return _select(Same(tuple(records)), dataset, backbone, online)


# Each table and plot of a board asks for the same few; a thousand trials take seconds to compare.
@lru_cache(maxsize=8)
def _select(same: Same[tuple[TrialRecord, ...]], dataset: str, backbone: str, online: bool) -> Selection:
    records = same.thing
    chosen = [r for r in records if (r.trial.dataset, r.trial.backbone) == (dataset, backbone)]
    chosen = [r for r in chosen if (r.trial.online is not None) == online]
    problems: list[str] = []
    for what, key in _CRITERIA:
        chosen = _narrow(chosen, what, key, problems)
    chosen = _same_evaluation_sets(chosen, problems)
    chosen = _same_rows(chosen, problems)
    return Selection(dataset, backbone, tuple(chosen), tuple(problems))


def name_of(record: TrialRecord) -> str:
    """A trial as a reader knows it."""
    regime = "" if record.trial.regime == "none" else f"{record.trial.regime}, "
    return f"{record.trial.title} ({regime}seed {record.trial.seed}, trial {record.trial.id})"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _set_keys(budget: Mapping[str, Any]) -> dict[str, Any]:
    """What a budget sets; a key that is off says as little as one that an older record lacks."""
    return {key: value for key, value in budget.items() if value not in (None, False)}


def is_fixed(record: TrialRecord) -> bool:
    """Whether nothing in the trial is random, because nothing trains or adapts: one stands for every seed."""
    return record.trial.regime == "none" and record.trial.online is None


def _train_cases(*regimes: str) -> Key:
    """What these regimes train on; clean training sees what its name says, whatever the suite lists."""

    def key(record: TrialRecord) -> str | None:
        named = record.trial.contents.get("train_cases", record.trial.train_cases)
        return _json(named) if record.trial.regime in regimes else None

    return key


def _split(record: TrialRecord) -> str | None:
    # A row that uses no training sample is held to its evaluation sets alone; older records do not tell their split.
    split = record.trial.contents.get("split")
    return None if split is None or is_fixed(record) else _json(split)


_CRITERIA: tuple[tuple[str, Key], ...] = (
    # A row that does not train spends nothing; its record may come from a run with another budget.
    ("budget", lambda r: None if r.trial.regime == "none" else _json(_set_keys(r.trial.budget))),
    ("cases", lambda r: _json(r.trial.contents.get("cases", r.trial.cases))),
    ("training cases", _train_cases("mixed", "casewise")),
    ("missing rate in training", _train_cases("missing-rate")),
    ("split", _split),
    ("data digest", lambda r: None if r.data is None else _json(r.data.digest)),
    ("backbone digest", lambda r: None if r.backbone is None else _json(r.backbone.digest)),
)


def _narrow(records: list[TrialRecord], what: str, key: Key, problems: list[str]) -> list[TrialRecord]:
    """Keep the records that agree with the majority, or that say nothing; a tie goes to the newest record."""
    counts = Counter(value for record in records if (value := key(record)) is not None)
    if len(counts) < 2:
        return records
    newest = {value: max(r.environment.date for r in records if key(r) == value) for value in counts}
    winner = max(counts, key=lambda value: (counts[value], newest[value]))
    kept = [record for record in records if key(record) in (winner, None)]
    for record in records:
        value = key(record)
        if value not in (winner, None):
            problems.append(f"left out: {name_of(record)}: its {what} is another: {_difference(str(value), winner)}")
    return kept


def _difference(mine: str, theirs: str) -> str:
    """What differs between two JSON texts, short enough to read."""
    left, right = json.loads(mine), json.loads(theirs)
    if isinstance(left, dict) and isinstance(right, dict):
        keys = [key for key in sorted({*left, *right}) if left.get(key) != right.get(key)]
        return ", ".join(f"{key} {left.get(key)} instead of {right.get(key)}" for key in keys)
    if isinstance(left, list) and isinstance(right, list):
        return f"{', '.join(map(str, left)) or 'none'} instead of {', '.join(map(str, right)) or 'none'}"
    return f"{str(left)[:12]} instead of {str(right)[:12]}"


def _same_evaluation_sets(records: list[TrialRecord], problems: list[str]) -> list[TrialRecord]:
    """Within one seed every record must have been scored on the same corrupted samples."""
    found = {(record.trial.seed, sets) for record in records if (sets := _sets(record))}
    if len(found) == len({seed for seed, _ in found}):
        return records
    digests = {r.trial.id: _digests(r) for r in records}
    seen: dict[tuple[int, str, int], set[str]] = {}
    for places in digests.values():
        for place, text in places.items():
            seen.setdefault(place, set()).add(text)
    for seed, case, severity in sorted(place for place, texts in seen.items() if len(texts) > 1):
        label = f"evaluation set of {case}" + (f" at severity {severity}" if severity else "")

        def digest(record: TrialRecord, key: tuple[int, str, int] = (seed, case, severity)) -> str | None:
            found = digests[record.trial.id].get(key)
            return None if found is None else _json(found)

        records = _narrow(records, label, digest, problems)
    return records


def _sets(record: TrialRecord) -> tuple[tuple[str, int, str], ...]:
    """What `_digests` tells, as fast as it can be compared."""
    return tuple((score.case, score.severity, score.digest) for score in record.scores if score.digest)


def _digests(record: TrialRecord) -> dict[tuple[int, str, int], str]:
    """(seed, case, severity) -> digest of the evaluation set."""
    scores = (score for score in reversed(record.scores) if score.digest)
    seed = record.trial.seed
    return {(seed, score.case, score.severity): str(score.digest) for score in scores}


def content_of(record: TrialRecord) -> str:
    """What a row's title stands for."""
    trial = record.trial
    parts: dict[str, Any] = {"strategies": trial.strategies, "online": trial.online, "streams": _streams(record)}
    return _json({"method": trial.method, **trial.options, **parts, "deviations": trial.deviations})


def _streams(record: TrialRecord) -> list[str]:
    """What an online row was scored on; older records tell by their scores alone."""
    scored = {score.stream for score in record.scores if score.stream}
    return sorted(scored or record.trial.contents.get("streams") or ())


def _same_rows(records: list[TrialRecord], problems: list[str]) -> list[TrialRecord]:
    """One row holds one method with one set of options, and each seed once."""
    kept: list[TrialRecord] = []
    rows: dict[tuple[str, str], list[TrialRecord]] = {}
    for record in records:
        rows.setdefault((record.trial.title, record.trial.regime), []).append(record)
    for row in rows.values():
        row = _narrow(row, "method or option", content_of, problems)
        kept.extend(_one_a_seed(row, problems))
    return kept


def _one_a_seed(row: list[TrialRecord], problems: list[str]) -> list[TrialRecord]:
    """The newest record of each seed; of a row in which nothing is random the finished one of the lowest seed."""
    newest: dict[int, TrialRecord] = {}
    for record in sorted(row, key=lambda r: r.environment.date):
        if record.trial.seed in newest:
            older = name_of(newest[record.trial.seed])
            problems.append(f"left out: {older}: a newer record of this seed stands beside it")
        newest[record.trial.seed] = record
    found = list(newest.values())
    if not is_fixed(row[0]):
        return found
    first, *others = sorted(found, key=lambda r: (r.status != "ok", r.trial.seed))
    problems += [f"left out: {name_of(r)}: nothing in this row is random, so one seed stands for all" for r in others]
    return [first]
